// Draws an answer of POST /explain. What comes from outside enters as text or as an attribute, never as HTML.

const FIRST = 10; // so many labels are shown at first
const UNEXPLAINED = "This run's model gives probabilities alone: it has no heat map and no word weights.";
const NOTES = {
  no_text: "There is no text: this is predicted from the photo alone.",
  no_image: "There is no photo: this is predicted from the text alone.",
  empty_text: "The text is empty.",
  truncated: "The text is longer than the encoder reads; its end was left out (struck through below).",
  rotated: "The photo was turned upright, as its camera noted.",
  animated: "Only the first picture of the animation was read.",
  converted: "The photo was converted to RGB, with white behind what is transparent.",
};

/** A new element. A `false`, null or undefined attribute is left out, `true` stands without a value. */
export function element(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== false && value !== null && value !== undefined) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

/** 0.813 -> "81.3 %". What is not quite nothing or everything is not rounded to it. */
export function percent(share, digits = 1) {
  const least = 10 ** -(digits + 2) / 2;
  if (share > 0 && share < least) return `< ${(2 * least * 100).toFixed(digits)} %`;
  if (share < 1 && share > 1 - least) return `> ${((1 - 2 * least) * 100).toFixed(digits)} %`;
  return `${(100 * share).toFixed(digits)} %`;
}

/** The heading and the parts of an answer to a post with this text. */
export function drawAnswer(answer, text) {
  const title = [
    element("span", { class: "soft" }, "The answer"), " ",
    element("bdi", { class: answer.label.length > 24 ? "label long" : "label" }, answer.label), " ",
    element("span", { class: "sure" }, percent(answer.probabilities[answer.label])),
  ];
  const explained = answer.heat_map || answer.words.length;
  const why = explained ? [heatMap(answer), words(answer, text), shares(answer)] : element("p", { class: "soft" }, UNEXPLAINED);
  const body = [bars(answer), notes(answer.flags), why];
  return { title, body: body.flat(2).filter((part) => part !== null) };
}

function bars(answer) {
  const sorted = Object.entries(answer.probabilities).sort((one, other) => other[1] - one[1]);
  const list = element("ul", { class: "odds", "aria-label": "Probability of each label" });
  sorted.forEach(([label, share], place) => {
    const said = label === answer.label && "said";
    const bar = element("i", { class: said });
    bar.style.width = `${(100 * share).toFixed(2)}%`;
    const row = element(
      "li",
      { "data-label": label, "data-probability": share, title: `${label}: ${share.toFixed(6)}`, hidden: place >= FIRST },
      element("span", { class: said }, element("bdi", {}, label)),
      element("span", { class: "track" }, bar),
      element("span", { class: said }, percent(share)),
    );
    list.append(row);
  });
  return sorted.length > FIRST ? [list, showAll(list)] : list;
}

function showAll(list) {
  list.id = "bars";
  const button = element("button", { type: "button", class: "small", "aria-expanded": "false", "aria-controls": "bars" });
  const label = () => (button.textContent = open ? `Show the first ${FIRST}` : `Show all ${list.children.length} labels`);
  let open = false;
  button.addEventListener("click", () => {
    open = !open;
    [...list.children].forEach((row, place) => (row.hidden = !open && place >= FIRST));
    button.setAttribute("aria-expanded", String(open));
    label();
  });
  label();
  return button;
}

function notes(flags) {
  if (!flags.length) return null;
  return element("ul", { class: "notes" }, ...flags.map((flag) => element("li", {}, NOTES[flag] ?? flag)));
}

function heatMap(answer) {
  if (!answer.heat_map?.startsWith("data:image/")) return null;
  const scale = element("i", { class: "bar" });
  const stops = answer.legend.map(([colour, at]) => `${colour} ${(100 * at).toFixed(1)}%`);
  scale.style.backgroundImage = `linear-gradient(90deg, ${stops.join(", ")})`;
  const alt = "The photo under its heat map; the strongest places are numbered from 1.";
  return [
    element("h3", {}, "Where it looked"),
    element(
      "figure",
      { class: "heat" },
      element("img", { src: answer.heat_map, alt }),
      element(
        "figcaption",
        { class: "legend" },
        element("span", {}, "least", scale, "most"),
        element("span", {}, element("b", { class: "rank" }, "1"), " strongest"),
        element("span", {}, "grey: cut off by the encoder"),
      ),
    ),
  ];
}

function words(answer, text) {
  if (!answer.words.length) return null;
  const shown = element("p", { class: "words", dir: "auto" });
  let from = 0;
  for (const [place, word] of answer.words.entries()) {
    // Between two words stands what stood there in the post: line breaks stay, and Chinese gets no spaces.
    const at = text.indexOf(word.text, from);
    const gap = at < 0 ? (place ? " " : "") : text.slice(from, at);
    shown.append(/^\s*$/.test(gap) ? gap : " ", drawWord(word));
    if (at >= 0) from = at + word.text.length;
  }
  const ranked = answer.words.filter((word) => word.rank).sort((one, other) => one.rank - other.rank);
  const strongest = ranked.map((word) => `${word.rank}: ${word.text}`).join(", ");
  return [
    element("h3", {}, "Which words counted"),
    strongest ? element("p", { class: "unseen" }, `The strongest words, ${strongest}.`) : null,
    shown,
  ];
}

function drawWord(word) {
  if (!word.read) return element("span", { class: "unread", title: "beyond what the encoder reads" }, word.text);
  const rank = word.rank ? element("b", { class: "rank", "aria-hidden": "true" }, String(word.rank)) : null;
  const shaded = element(
    "span",
    { class: word.weight > 0.66 ? "w strong" : "w", title: `${word.weight.toFixed(2)} of the strongest word` },
    word.text, rank && "\u2060", rank, // a word joiner: the number stays on its word's line
  );
  shaded.style.setProperty("--s", word.weight.toFixed(2));
  return shaded;
}

function shares(answer) {
  const method = element("span", { class: "soft" }, `method: ${answer.method}`);
  if (answer.text_share === null || !answer.heat_map || !answer.words.length) return element("p", {}, method);
  const parts = [["text", answer.text_share], ["photo", 1 - answer.text_share]];
  const bar = element("div", { class: "shares", "aria-hidden": "true" });
  for (const [name, share] of parts) {
    const part = element("i", { class: name });
    part.style.width = `${(100 * share).toFixed(2)}%`;
    bar.append(part);
  }
  const said = parts.map(([name, share]) => element("span", { class: name }, `${name} ${percent(share, 0)}`));
  return [
    element("h3", {}, "Text against photo"),
    bar,
    element("p", { class: "shares-text" }, said[0], " ", said[1], " ", method),
  ];
}
