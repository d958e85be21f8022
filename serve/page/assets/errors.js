// What went wrong, in words for whoever sent an image; the server's own words are for whoever runs it.

import { bytes } from "./answers.js";

/** An error that is a sentence for the reader; `said`: what the server said; `status`: of its answer, 0 without one. */
export class Told extends Error {
  constructor(message, said = "", status = 0) {
    super(message);
    this.said = said;
    this.status = status;
  }

  /** Whether the same request may be answered another time. */
  get passes() {
    return ![400, 401, 403, 404, 413, 415, 422].includes(this.status);
  }
}

const REASONS = {
  404: "The server does not have this model any more. Choose another one.",
  408: "The upload was too slow for the server. Try again, or send a smaller image.",
  413: "The image is too large for this server. Make it smaller, and send it again.",
  415: "This is not an image that the server can read. Save it as JPEG or PNG, and send that.",
  422: "The image cannot be read: the file is damaged, or of a rare kind. Save it as JPEG or PNG, and send that.",
  429: "That was more than this key may ask in so short a time.",
  500: "Something went wrong in the server; its log says what.",
  502: "The server is not running, or is just starting.",
  503: "The server is busy, or this model is not ready.",
  504: "The server took too long.",
};

/** The error for a status that is not 2xx. `keySent`: whether the request came with a key; `wait`: Retry-After. */
export function refused(status, { text = "", keySent = false, wait = NaN } = {}) {
  let reason = REASONS[status] ?? `The server refused (status ${status}).`;
  if (status === 401) reason = keySent ? "The server does not know this key. Enter it again." : "Enter a key first.";
  if (wait > 0) reason += ` Try again in ${duration(wait)}.`;
  else if ([429, 500, 502, 503, 504].includes(status)) reason += " Try again in a moment.";
  return new Told(reason, reasonIn(text), status);
}

/** The error for a request that got no answer: after `timedOut` seconds, to a body of `size` bytes. */
export function unanswered({ timedOut = 0, size = 0, online = true }) {
  if (timedOut) return new Told(`The server did not answer within ${duration(timedOut)}. Try again later.`);
  if (!online) return new Told("This device is offline. Connect it, and try again.");
  const large = size > 1e6 ? `, or did not take a file of ${bytes(size)}` : "";
  return new Told(`The server cannot be reached${large}. Check the connection, and try again.`);
}

/** Seconds from the header Retry-After, which is a number or a date (RFC 9110, section 10.2.3); NaN without one. */
export function waitSeconds(header, now = Date.now()) {
  if (!header) return NaN;
  const seconds = /^\d+$/.test(header.trim()) ? Number(header) : (Date.parse(header) - now) / 1000;
  return Math.max(0, Math.ceil(seconds));
}

function duration(seconds) {
  return seconds < 100 ? `${Math.ceil(seconds)}\u202fs` : `${Math.ceil(seconds / 60)}\u202fmin`;
}

function reasonIn(text) {
  try {
    return JSON.parse(text).error.toString();
  } catch {
    return ""; // a proxy in between answers in its own way
  }
}
