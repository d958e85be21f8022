// What a model is and knows, as a part of the page.

import { bytes, element, percent } from "./answers.js";

const FEW = 24; // labels that are shown without being asked for

const plain = (text) => text.normalize("NFKC").toLowerCase().replace(/[_-]/g, " ");

/** Those of `labels` that have `text` in them, whatever the case. */
export function matching(labels, text) {
  const wanted = plain(text.trim());
  return labels.filter((label) => plain(label).includes(wanted));
}

export const numberOf = (labels) => (labels.length === 1 ? "1 label" : `${labels.length.toLocaleString("en")} labels`);

/** The facts and labels of `model`, an entry of GET /models. */
export function describe(model) {
  const node = document.getElementById("known-template").content.cloneNode(true).firstElementChild;
  const part = (name) => node.querySelector(`.${name}`);
  part("known-name").textContent = model.name;
  part("facts").textContent = facts(model);
  part("engine").textContent = model.engine_reason ?? ""; // begins with its name
  const labels = model.labels ?? [];
  const many = labels.length > FEW;
  part("known-many").hidden = !many;
  part("known-few").hidden = many;
  if (many) searchable(part, labels);
  else part("known-few").replaceChildren(...items(labels));
  return node;
}

const items = (labels) => labels.map((label) => element("li", label));

function facts({ precision, bytes: size, accuracy, input }) {
  const told = [accuracy ? measured(accuracy) : "accuracy not known"];
  if (input) told.push(`sees ${input.size[1]} × ${input.size[0]} pixels${input.colour === "L" ? ", greyscale" : ""}`);
  return [...told, precision, bytes(size)].filter(Boolean).join(" · ");
}

function measured({ top1, n, split, dataset }) {
  return `${percent(top1)} right (${dataset} ${split}, n\u00a0=\u00a0${n.toLocaleString("en")})`;
}

function searchable(part, labels) {
  const search = part("search");
  part("known-many").firstElementChild.textContent = `Show its ${numberOf(labels)}`;
  const list = part("labels");
  list.ariaLabel = `Labels of ${part("known-name").textContent}`;
  const fill = () => {
    const found = matching(labels, search.value);
    list.replaceChildren(...items(found));
    part("found").textContent = search.value.trim() ? `${numberOf(found)} of ${labels.length.toLocaleString("en")}` : "";
  };
  part("known-many").addEventListener("toggle", fill, { once: true });
  search.addEventListener("input", fill);
}
