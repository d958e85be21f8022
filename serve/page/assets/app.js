// The page of the server: pictures in, answers beside each other. Text reaches the document through textContent only.

import { bytes, element, percent, show } from "./answers.js";

const PATIENCE_MS = 60_000;
const MOST_PICTURES = 64;
const KEY = "pocketzoo-key";

const $ = (id) => document.getElementById(id);

/** An error that is a sentence for the reader. */
class Told extends Error {}

const state = {
  abort: new AbortController(),
  models: new Map(), // name -> entry of GET /models
  cards: [], // { file, node, asked: [{ name, node }], done }, the newest first
  queue: [],
  running: false,
  locked: false, // a key is missing
  key: "",
};
try {
  state.key = sessionStorage.getItem(KEY) ?? "";
} catch {
  // Storage is switched off: a key lives as long as the page.
}

function sentence(text) {
  const trimmed = text.trim();
  return trimmed.charAt(0).toUpperCase() + trimmed.slice(1) + (/[.!?]$/.test(trimmed) ? "" : ".");
}

function words(error) {
  return error instanceof Told ? error.message : sentence(`This page does not understand the answer: ${error.message}`);
}

function tell(text) {
  $("message").textContent = text;
  $("message").hidden = !text;
}

// The server

/** Fetches JSON; throws Told with the server's own sentence, or what happened instead of an answer. */
async function fetchJson(address, signal, options = {}) {
  const headers = { ...options.headers, ...(state.key && { "X-API-Key": state.key }) };
  const patience = AbortSignal.timeout(PATIENCE_MS);
  let response, text;
  try {
    response = await fetch(address, { ...options, headers, signal: AbortSignal.any([signal, patience]) });
    text = await response.text();
  } catch (error) {
    if (signal.aborted) throw error;
    if (patience.aborted) throw new Told(`The server did not answer within ${PATIENCE_MS / 1000} seconds.`);
    throw new Told("No answer: the server cannot be reached, or closed the connection, as it may with a large file.");
  }
  if (response.ok) return JSON.parse(text);
  if (response.status === 401) askForKey();
  const reason = sentence(reasonIn(text) ?? `The server answered with status ${response.status} and no reason`);
  const wait = Number(response.headers.get("Retry-After") ?? NaN);
  throw new Told(wait > 0 ? `${reason} Try again in ${wait} s.` : reason);
}

function reasonIn(text) {
  try {
    return JSON.parse(text).error.toString();
  } catch {
    return null; // a proxy in between answers in its own way
  }
}

function askForKey() {
  state.locked = true;
  if (!$("key-form").hidden) return;
  $("key-form").hidden = false;
  $("key").focus();
}

async function classify(file, model, signal) {
  let body;
  try {
    body = await file.arrayBuffer();
  } catch {
    throw new Told("The file cannot be read; it may be a folder, or have been moved since.");
  }
  const headers = { "Content-Type": file.type || "application/octet-stream" };
  const started = performance.now();
  const address = `v1/models/${encodeURIComponent(model)}:predict`;
  const answer = await fetchJson(address, signal, { method: "POST", body, headers });
  return { answer, trip: performance.now() - started };
}

async function loadModels() {
  try {
    const { default: preferred, models } = await fetchJson("models", new AbortController().signal);
    state.models = new Map(models.filter((model) => !model.error).map((model) => [model.name, model]));
    fillSelect($("model"), preferred);
    fillSelect($("second"), "");
    tell(state.models.size ? "" : "This server has no model that works; GET /models says why.");
    restart([]);
  } catch (error) {
    $("model").options[0].textContent = "not known";
    tell(words(error));
  }
}

function fillSelect(select, preferred) {
  const chosen = state.models.has(select.value) ? select.value : preferred;
  const options = [...state.models.values()].map(({ name, accuracy }) => {
    const option = element("option", accuracy ? `${name} (${percent(accuracy.top1)})` : name);
    option.value = name;
    return option;
  });
  if (select === $("second")) options.unshift(select.options[0]);
  select.replaceChildren(...options);
  select.value = chosen;
  select.disabled = state.models.size === 0;
}

// Pictures

function add(files) {
  if (!files.length) return;
  const room = MOST_PICTURES - state.cards.length;
  tell(files.length > room ? `The page holds ${MOST_PICTURES} pictures; the rest was left out. Clear the answers first.` : "");
  const cards = files.slice(0, room).map((file) => ({ file, node: draw(file), done: false }));
  $("cards").prepend(...cards.map((card) => card.node));
  state.cards.unshift(...cards);
  state.queue.push(...cards);
  cards.forEach(prepare);
  $("results").hidden = state.cards.length === 0;
  work();
}

function draw(file) {
  const node = $("card-template").content.cloneNode(true).firstElementChild;
  const image = node.querySelector("img");
  const facts = node.querySelector(".facts");
  node.querySelector(".name").textContent = file.name;
  facts.textContent = bytes(file.size);
  image.alt = `The picture ${file.name}`;
  image.onload = () => (facts.textContent = `${image.naturalWidth} × ${image.naturalHeight} pixels, ${bytes(file.size)}`);
  image.onerror = () => image.replaceWith(element("p", "no preview", "hint")) ?? URL.revokeObjectURL(image.src);
  image.src = URL.createObjectURL(file);
  return node;
}

/** Puts an empty answer per chosen model into the card. */
function prepare(card) {
  const names = [...new Set([$("model").value, $("second").value])].filter((name) => state.models.has(name));
  card.asked = names.map((name) => {
    const node = $("answer-template").content.cloneNode(true).firstElementChild;
    node.querySelector(".model").textContent = name;
    node.querySelector(".again").onclick = () => {
      restart([card]);
      card.node.focus(); // the button is gone
    };
    return { name, node };
  });
  card.node.querySelector(".verdict").hidden = true;
  card.node.querySelector(".answers").replaceChildren(...card.asked.map(({ node }) => node));
}

/** Works the queue off, one request at a time: so the times shown are not those of our own crowd. */
async function work() {
  if (state.running) return;
  state.running = true;
  while (state.queue.length && state.models.size && !state.locked) await answer(state.queue.shift(), state.abort.signal);
  state.running = false;
}

async function answer(card, signal) {
  const labels = [];
  for (const { name, node } of card.asked) {
    node.querySelector(".state").textContent = "looking …";
    try {
      const { answer, trip } = await classify(card.file, name, signal);
      if (signal.aborted) return;
      labels.push(show(node, answer, trip, state.models.get(answer.model)));
      $("spoken").textContent = `${card.file.name}, ${name}: ${node.querySelector(".bars").firstElementChild.textContent}`;
    } catch (error) {
      if (signal.aborted) return;
      fail(card, node, error);
    }
  }
  card.done = !state.locked;
  if (labels.length < 2) return;
  const verdict = card.node.querySelector(".verdict");
  verdict.textContent = labels[0] === labels[1] ? `Both say ${labels[0]}.` : `They disagree: ${labels[0]} or ${labels[1]}.`;
  verdict.hidden = false;
}

function fail(card, node, error) {
  const text = words(error);
  node.classList.add("failed");
  node.querySelector(".state").textContent = text;
  node.querySelector(".again").hidden = false;
  $("spoken").textContent = `${card.file.name}: ${text}`;
}

/** Asks again for these cards, and for those that have no answer yet. */
function restart(cards) {
  state.abort.abort();
  state.abort = new AbortController();
  for (const card of cards) card.done = false;
  state.queue = state.cards.filter((card) => !card.done);
  state.queue.forEach(prepare);
  work();
}

// What the reader does

/** A handwritten 3, white on black, as the usual collections of digits have it. */
function sample() {
  const canvas = element("canvas");
  canvas.width = canvas.height = 224;
  const pen = canvas.getContext("2d");
  pen.fillRect(0, 0, 224, 224);
  pen.strokeStyle = "#fff";
  pen.lineWidth = 20;
  pen.lineCap = "round";
  pen.stroke(new Path2D("M72 62C100 34 156 44 148 80C144 98 122 106 104 106C140 106 164 124 156 152C146 188 96 190 68 168"));
  canvas.toBlob((blob) => add([new File([blob], "sample digit 3.png", { type: "image/png" })]), "image/png");
}

function drop(event) {
  event.preventDefault();
  delete document.body.dataset.dragging;
  const files = [...event.dataTransfer.files];
  if (!files.length) tell("Only files can be dropped here; this page fetches nothing from other places.");
  add(files);
}

async function useKey(event) {
  event.preventDefault();
  const key = $("key").value.trim();
  if (!/^[\x21-\x7e]+$/.test(key)) return tell("A key has letters, digits and signs, without spaces; enter it again.");
  state.key = key;
  try {
    sessionStorage.setItem(KEY, key);
  } catch {
    // As above.
  }
  $("key").value = "";
  $("key-form").hidden = true;
  $("file").focus();
  state.locked = false;
  return state.models.size ? restart([]) : loadModels();
}

function clear() {
  for (const { node } of state.cards) URL.revokeObjectURL(node.querySelector("img")?.src ?? "");
  state.cards = [];
  restart([]);
  $("cards").replaceChildren();
  $("results").hidden = true;
  tell("");
  $("file").focus();
}

$("file").addEventListener("change", () => {
  add([...$("file").files]);
  $("file").value = ""; // so that the same file can be chosen again
});
document.addEventListener("paste", (event) => {
  const files = [...(event.clipboardData?.files ?? [])];
  if (files.length) event.preventDefault();
  add(files);
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.dataset.dragging = "";
});
document.addEventListener("dragleave", (event) => event.relatedTarget ?? delete document.body.dataset.dragging);
document.addEventListener("drop", drop);
for (const id of ["model", "second"]) $(id).addEventListener("change", () => restart(state.cards));
$("sample").addEventListener("click", sample);
$("clear").addEventListener("click", clear);
$("key-form").addEventListener("submit", useKey);
loadModels();
