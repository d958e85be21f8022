// One answer of a model as a part of the page: label, bars, times. Text reaches it through textContent only.

const STAGES = ["read", "load", "queue", "decode", "preprocess", "infer", "encode"];
const thin = "\u202f"; // narrow no-break space, between number and unit

export function percent(share) {
  if (share >= 0.9995 && share < 1) return `> 99.9${thin}%`;
  if (share < 0.0005 && share > 0) return `< 0.1${thin}%`;
  return `${(100 * share).toFixed(1)}${thin}%`;
}

const milliseconds = (value) => `${value.toFixed(value < 9.95 ? 1 : 0)}${thin}ms`;

export function bytes(count) {
  if (count < 1000) return `${count}${thin}B`;
  return count < 1e6 ? `${Math.round(count / 1e3)}${thin}kB` : `${(count / 1e6).toFixed(1)}${thin}MB`;
}

export function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

/** Fills the node of one answer; `trip`: the milliseconds seen here. Returns the label and, in words, how sure it is. */
export function show(node, answer, trip) {
  const [{ label, abstained, probabilities }] = answer.predictions;
  const [best, ...others] = probabilities;
  const part = (name) => node.querySelector(`.${name}`);
  part("best-label").textContent = label;
  part("best-share").textContent = percent(best.probability);
  part("best-fill").style.setProperty("--share", best.probability);
  part("badge").hidden = part("doubt").hidden = !abstained;
  part("bars").replaceChildren(...others.slice(0, 4).map(bar));
  times(part, answer.milliseconds, trip);
  part("identity").textContent = `version ${answer.version}`;
  part("identity").title = `SHA-256 ${answer.digest}`;
  part("state").hidden = true;
  part("outcome").hidden = false;
  node.classList.toggle("unsure", abstained);
  return { label, spoken: `${label} ${percent(best.probability)}${abstained ? ", abstained" : ""}` };
}

/** What to think of two labels, each one of its model's `known` labels. */
export function verdict([one, other], known) {
  const [first, second] = known.map((labels) => JSON.stringify(labels?.toSorted()));
  if (one === other) return `Both say ${one}.`;
  return first === second ? `They disagree: ${one} or ${other}.` : "They know different labels, so the answers do not compare.";
}

/** Puts a Told in the place of an answer. */
export function showFailure(node, { message, said, passes }) {
  const part = (name) => node.querySelector(`.${name}`);
  node.classList.add("failed");
  part("state").textContent = message;
  part("again").hidden = !passes;
  part("said").hidden = !said;
  part("said").lastElementChild.textContent = said;
}

function bar({ label, probability }) {
  const item = element("li");
  const track = element("span", undefined, "track");
  const fill = element("span", undefined, "fill");
  fill.style.setProperty("--share", probability);
  track.append(fill);
  item.append(element("span", label, "label"), " ", element("span", percent(probability), "share"), track);
  return item;
}

function times(part, spent, trip) {
  const stages = STAGES.filter((stage) => stage in spent).map((stage) => [stage, spent[stage]]);
  const rest = spent.total - stages.reduce((sum, [, value]) => sum + value, 0);
  if (rest > 0.05) stages.push(["rest", rest]);
  part("spent-total").textContent = milliseconds(spent.total);
  part("spent-trip").textContent = milliseconds(trip);
  part("strip").replaceChildren(...stages.map(([stage, value]) => {
    const piece = element("span");
    piece.dataset.stage = stage;
    piece.style.flexGrow = value;
    return piece;
  }));
  part("times").replaceChildren(...stages.map(([stage, value]) => {
    const row = element("div");
    row.dataset.stage = stage;
    row.append(element("dt", stage), element("dd", milliseconds(value)));
    return row;
  }));
}
