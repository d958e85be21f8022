// The page of the server: images in, answers beside each other. Text reaches the document through textContent only.

import { bytes, element, percent, show, showFailure, verdict } from "./answers.js";
import { Told } from "./errors.js";
import { describe, numberOf } from "./known.js";
import { drawDigit, takesDigits } from "./sample.js";
import { classify, fetchJson } from "./server.js";

const MOST_IMAGES = 64;
const KEY = "pocketzoo-key";

const $ = (id) => document.getElementById(id);

const state = {
  abort: new AbortController(),
  models: new Map(), // name -> entry of GET /models
  answered: new Set(), // digests of the models that have
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

/** Shows a sentence above everything, what the server `said` and a button to do it `again`, if any; "" hides it. */
function tell(text, said, again) {
  const parts = [element("p", text)];
  if (said) {
    const details = element("details", undefined, "said");
    details.append(element("summary", "What the server said"), element("p", said));
    parts.push(details);
  }
  if (again) {
    const button = element("button", "Try again");
    button.onclick = () => {
      again();
      $("file").focus(); // the button goes
    };
    parts.push(button);
  }
  $("message").replaceChildren(...parts);
  $("message").hidden = !text;
}

// What the server has

/** The error as a Told; a missing or wrong key is asked for. */
function told(error) {
  if (!(error instanceof Told)) {
    console.error(error);
    return new Told("This page failed; the browser's console says where.", error.message);
  }
  if (error.status === 401) askForKey(state.key && error.message);
  return error;
}

/** Shows the form, unless it is there; `why`: what is wrong with the key that was sent, if one was. */
function askForKey(why) {
  state.locked = true;
  document.body.dataset.locked = "";
  tell(why);
  if (!$("key-form").hidden) return;
  $("key-form").hidden = false;
  $("as-json").hidden = true;
  $("key").focus();
}

async function loadModels() {
  try {
    const broken = await listModels();
    tell(state.models.size ? "" : "This server has no model that works.", broken);
    restart([]);
  } catch (error) {
    const { message, said } = told(error);
    if (state.locked) return;
    $("model").options[0].textContent = "not known";
    tell(message, said, loadModels);
  }
}

/** Looks up the models; returns which cannot be used, and why. */
async function listModels() {
  const { default: preferred, models } = await fetchJson("models", { key: state.key });
  const works = models.filter((model) => !model.error);
  state.models = new Map(works.map((model) => [model.name, model]));
  fillSelect($("model"), state.models.has(preferred) ? preferred : works[0]?.name);
  fillSelect($("second"), "");
  $("second").parentNode.hidden = works.length < 2;
  const broken = models.filter((model) => model.error).map(({ name, error }) => `${name} (${error})`).join("; ");
  $("unusable").textContent = `Cannot be used: ${broken}`;
  $("unusable").hidden = broken === "";
  $("as-json").hidden = state.key !== ""; // a link sends no key
  showKnown();
  return broken;
}

/** The chosen models, the second only if it is another one. */
function chosen() {
  const names = new Set([$("model").value, $("second").value]);
  return [...names].map((name) => state.models.get(name)).filter(Boolean);
}

function showKnown() {
  const models = chosen();
  $("known-title").textContent = models.length > 1 ? "What they know" : "What it knows";
  $("known-models").replaceChildren(...models.map(describe));
  $("known").hidden = models.length === 0;
  $("sample").hidden = !models.some(takesDigits);
}

function fillSelect(select, preferred) {
  const value = state.models.has(select.value) ? select.value : preferred;
  const options = [...state.models.values()].map(({ name, accuracy }) => {
    const option = element("option", accuracy ? `${name} (${percent(accuracy.top1)})` : name);
    option.value = name;
    return option;
  });
  if (select === $("second")) options.unshift(select.options[0]);
  select.replaceChildren(...options);
  select.value = value;
  select.disabled = state.models.size === 0;
}

// Images

function add(files) {
  if (!files.length) return;
  const room = MOST_IMAGES - state.cards.length;
  tell(files.length > room ? `The page holds ${MOST_IMAGES} images; the rest was left out. Clear the answers first.` : "");
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
  image.alt = `The image ${file.name}`;
  image.onload = () => (facts.textContent = `${image.naturalWidth} × ${image.naturalHeight} pixels, ${bytes(file.size)}`);
  image.onerror = () => image.replaceWith(element("p", "no preview", "hint")) ?? URL.revokeObjectURL(image.src);
  image.src = URL.createObjectURL(file);
  return node;
}

/** Puts an empty answer per chosen model into the card. */
function prepare(card) {
  card.asked = chosen().map(({ name }) => {
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
      const { answer, trip } = await classify(card.file, name, { key: state.key, signal });
      if (signal.aborted) return;
      const { label, spoken } = show(node, answer, trip);
      labels.push(label);
      $("spoken").textContent = `${card.file.name}, ${name}: ${spoken}`;
      await noteAnswer(node, answer);
    } catch (error) {
      if (signal.aborted) return;
      fail(card, node, error);
    }
  }
  card.done = !state.locked;
  if (labels.length < 2) return;
  const known = card.asked.map(({ name }) => state.models.get(name)?.labels);
  card.node.querySelector(".verdict").textContent = verdict(labels, known);
  card.node.querySelector(".verdict").hidden = false;
}

/** Says of how many labels the answer is one. A model just loaded or swapped is looked up again. */
async function noteAnswer(node, { model, digest }) {
  const known = state.models.get(model);
  if (!state.answered.has(digest) && !(known?.loaded && known.digest === digest)) {
    await listModels().catch((error) => tell(told(error).message));
  }
  state.answered.add(digest);
  const labels = state.models.get(model)?.labels;
  if (labels) {
    const link = element("a", numberOf(labels));
    link.href = "#known";
    node.querySelector(".one-of").append("One of its ", link, ", whatever the image shows.");
  }
}

function fail(card, node, error) {
  const failure = told(error);
  showFailure(node, failure);
  $("spoken").textContent = `${card.file.name}: ${failure.message}`;
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

function drop(event) {
  event.preventDefault();
  delete document.body.dataset.dragging;
  const files = [...event.dataTransfer.files];
  if (!files.length) tell("Only image files can be dropped here. Save the image first, then drop its file.");
  add(files);
}

async function useKey(event) {
  event.preventDefault();
  const key = $("key").value.trim();
  if (!/^[\x21-\x7e]+$/.test(key)) return tell("A key has letters, digits and signs, and no spaces. Enter it again.");
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
  delete document.body.dataset.locked;
  tell("");
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

for (const id of ["file", "camera"]) {
  $(id).addEventListener("change", () => {
    add([...$(id).files]);
    $(id).value = ""; // so that the same file can be chosen again
  });
}
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
for (const id of ["model", "second"]) {
  $(id).addEventListener("change", () => {
    showKnown();
    restart(state.cards);
  });
}
$("sample").addEventListener("click", async () => add([await drawDigit()]));
$("clear").addEventListener("click", clear);
$("key-form").addEventListener("submit", useKey);
loadModels();
