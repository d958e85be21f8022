// Requests to the server, whose failures are sentences.

import { Told, refused, unanswered, waitSeconds } from "./errors.js";

const PATIENCE_MS = 60_000;

/** Fetches JSON with the key, if there is one; throws Told where there is none. */
export async function fetchJson(address, { key, signal, ...options }) {
  const headers = { ...options.headers, ...(key && { "X-API-Key": key }) };
  const patience = AbortSignal.timeout(PATIENCE_MS);
  let response, text;
  try {
    response = await fetch(address, { ...options, headers, signal: AbortSignal.any([patience, ...(signal ? [signal] : [])]) });
    text = await response.text();
  } catch (error) {
    if (signal?.aborted) throw error;
    const timedOut = patience.aborted ? PATIENCE_MS / 1000 : 0;
    throw unanswered({ timedOut, size: options.body?.byteLength, online: navigator.onLine });
  }
  if (!response.ok) {
    throw refused(response.status, { text, keySent: Boolean(key), wait: waitSeconds(response.headers.get("Retry-After")) });
  }
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Told("The page cannot make sense of the answer; something on the way may have changed it.", error.message);
  }
}

/** The answer to an image file, and the milliseconds that it took to come. */
export async function classify(file, model, { key, signal }) {
  let body;
  try {
    body = await file.arrayBuffer();
  } catch {
    throw new Told("The file cannot be read; it may be a folder, or have been moved since.");
  }
  const headers = { "Content-Type": file.type || "application/octet-stream" };
  const started = performance.now();
  const address = `v1/models/${encodeURIComponent(model)}:predict`;
  const answer = await fetchJson(address, { method: "POST", body, headers, key, signal });
  return { answer, trip: performance.now() - started };
}
