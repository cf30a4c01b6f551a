// The page of `serve`: a post goes to POST /explain; answer.js draws the answer, which is kept in this page alone.

import { drawAnswer, element, percent } from "./answer.js";
import { PhotoField, size } from "./photo.js";

const KEPT = 8; // answers
const LOOPBACK = /^(localhost|.+\.localhost|127(\.\d+){3}|\[::1\])$/;
const $ = (id) => document.getElementById(id);

let model = null; // what GET /model says
let running = null; // the AbortController of the request in progress
let kept = []; // {answer, text, thumbnail}, the newest first

class Problem extends Error {} // its message is for the person

// Messages

function say(message) {
  $("status").textContent = message;
}

function complain(message) {
  say("");
  $("problem").hidden = !message;
  $("problem").textContent = message;
}

// The server

/** The JSON of an address. Raises Problem with the server's own line, or with what to do if there is no server. */
async function fetched(address, options = {}) {
  let response, found = null;
  try {
    response = await fetch(address, { cache: "no-store", ...options });
    found = JSON.parse(await response.text());
  } catch (error) {
    if (error.name === "AbortError") throw error;
    if (!(error instanceof SyntaxError)) {
      throw new Problem("The server does not answer. Your post is kept here: try again when the server runs.");
    }
  }
  if (response.ok && found) return found;
  const wait = Number(response.headers.get("Retry-After"));
  const line = typeof found?.detail === "string" ? found.detail : `the server answered with status ${response.status}`;
  throw new Problem(wait > 0 ? `${line} (try again in ${wait} s)` : line);
}

/** What GET /model says, asked once; the page is fitted to it. */
async function introduced() {
  if (model) return model;
  model = await fetched("model");
  const { run, labels, encoders, limits, reads, needs } = model;
  const names = labels.slice(0, labels.length > 6 ? 5 : 6).flatMap((label) => [", ", element("bdi", {}, label)]);
  const more = labels.length > 6 ? ` and ${labels.length - 5} more` : "";
  $("about").replaceChildren("Model: ", element("b", {}, element("bdi", {}, run)), ". Labels: ", ...names.slice(1), more, ".");
  for (const [name, field] of [["image", "photo"], ["text", "text"]]) {
    $(`${field}-field`).hidden = !reads[name];
    $(`${field}-optional`).hidden = needs[name];
  }
  const used = [reads.image && encoders.image, reads.text && encoders.text].filter(Boolean).join(" and ");
  const pixels = Math.round(limits.pixels / 1e6), letters = limits.characters.toLocaleString("en");
  $("facts").textContent = `Encoders: ${used}. Limits of a post: ${size(limits.bytes)}, ${pixels} megapixels, ${letters} characters, ${limits.seconds} s.`;
  $("facts").hidden = false;
  count();
  return model;
}

async function ask() {
  const text = $("text").value, began = performance.now(), focused = document.activeElement;
  running?.abort();
  const mine = (running = new AbortController());
  busy(true);
  try {
    await introduced();
    check(text);
    const form = new FormData();
    if (photo.current) form.append("image", photo.current.blob, "photo"); // the server has no need of the file's name
    if (text.trim()) form.append("text", text);
    const entry = { text: text.trim() ? text : "", thumbnail: photo.current?.thumbnail };
    entry.answer = await fetched("explain", { method: "POST", body: form, signal: mine.signal });
    if (mine !== running) return;
    kept = [entry, ...kept].slice(0, KEPT);
    show(entry);
    const { label, probabilities } = entry.answer;
    say(`\u2068${label}\u2069, ${percent(probabilities[label])}, in ${((performance.now() - began) / 1000).toFixed(1)} s`);
    // Whoever has turned to something else meanwhile is not called away from it.
    if ([focused, document.body].includes(document.activeElement) && $("text").value === text) toAnswer();
  } catch (error) {
    if (mine !== running) return; // a newer request has taken its place
    if (error.name === "AbortError") say("Cancelled.");
    else if (error instanceof Problem) complain(error.message);
    else throw error;
  } finally {
    if (mine === running) busy(false);
  }
}

/** Raises Problem if the server would refuse the post anyway. */
function check(text) {
  const { reads, needs, limits } = model;
  const given = { image: Boolean(photo.current), text: Boolean(text.trim()) };
  const read = Object.keys(given).filter((name) => reads[name]);
  const missing = read.filter((name) => needs[name] && !given[name]);
  if (missing.length) {
    const what = missing.map((name) => (name === "image" ? "a photo" : "a text"));
    throw new Problem(`Not sent: this run needs ${what.join(" and ")}.`);
  }
  if (!read.some((name) => given[name])) throw new Problem("Not sent: there is neither a photo nor a text yet.");
  if (characters(text) > limits.characters) {
    throw new Problem(`Not sent: the text is longer than ${limits.characters.toLocaleString("en")} characters.`);
  }
  const bytes = (photo.current?.blob.size ?? 0) + new Blob([text]).size + 1024;
  if (bytes > limits.bytes) throw new Problem(`Not sent: photo and text are more than ${size(limits.bytes)} together.`);
}

function busy(is) {
  if (is) {
    complain("");
    say("Reading the post …");
  } else {
    running = null;
    if (document.activeElement === $("cancel")) $("ask").focus();
  }
  $("form").setAttribute("aria-busy", String(is));
  $("answer").setAttribute("aria-busy", String(is));
  $("ask-label").textContent = is ? "Reading …" : "Read the post";
  $("cancel").hidden = !is;
}

// The text

/** As the server counts: code points, and a line break is sent as two. */
function characters(text) {
  return text.length > 1e6 ? text.length : [...text.replaceAll("\n", "\r\n")].length;
}

function count() {
  const has = characters($("text").value), most = model?.limits.characters ?? Infinity;
  const said = `${has.toLocaleString("en")} of ${most.toLocaleString("en")} characters`;
  $("count").textContent = has && most < Infinity ? said : "";
  $("count").classList.toggle("over", has > most);
  $("text").setAttribute("aria-invalid", String(has > most));
  // A screen reader hears of it near the limit only, and then not at every letter.
  if (has <= 0.9 * most) $("count-spoken").textContent = "";
  else if (has > most || has % 50 === 0 || !$("count-spoken").textContent) $("count-spoken").textContent = said;
}

// Answers

function show(entry) {
  const { title, body } = drawAnswer(entry.answer, entry.text);
  $("answer-title").replaceChildren(...title);
  $("answer-body").replaceChildren(...body);
  $("history").hidden = false;
  $("history-list").replaceChildren(...kept.map((one) => element("li", {}, keptButton(one, one === entry))));
}

function keptButton(entry, current) {
  const { answer, text, thumbnail } = entry;
  const button = element(
    "button",
    { type: "button", "aria-current": current && "true" },
    thumbnail ? element("img", { src: thumbnail, alt: "" }) : element("span", { class: "no-picture" }),
    element("span", { class: "said" }, element("bdi", {}, answer.label), ` ${percent(answer.probabilities[answer.label])}`),
    element("span", { class: "clamped", dir: "auto" }, text || "without text"),
  );
  button.addEventListener("click", () => {
    show(entry);
    toAnswer();
  });
  return button;
}

function forget() {
  kept = [];
  $("history").hidden = true;
  $("answer-title").focus();
}

/** The focus, and what is seen, go to the answer. */
function toAnswer() {
  $("answer-title").focus({ preventScroll: true });
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const { top } = $("answer").getBoundingClientRect();
  if (top < 0 || top > innerHeight / 2) $("answer").scrollIntoView({ behavior: still ? "auto" : "smooth" });
}

// Examples

function exampleButton({ text, image }) {
  const picture = image?.startsWith("data:image/") ? element("img", { src: image, alt: "" }) : null;
  const button = element("button", { type: "button" }, picture, element("span", { class: "clamped", dir: "auto" }, text));
  button.addEventListener("click", () => {
    complain("");
    if (picture && model.reads.image) {
      const [head, data] = image.split(",");
      const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
      photo.set(new Blob([bytes], { type: head.slice("data:".length).split(";")[0] }), "drawn example");
    } else {
      photo.set(null);
    }
    $("text").value = text;
    count();
    $("ask").focus();
  });
  return button;
}

async function offerExamples() {
  const examples = await fetched("examples");
  $("example-list").replaceChildren(...examples.map((example) => element("li", {}, exampleButton(example))));
  $("examples").hidden = examples.length === 0;
}

// Beginning

function showFault(fault) {
  if (fault instanceof Problem) complain(fault.message);
  else complain(`Something in this page went wrong (${fault?.message ?? fault}). Reload it and try again.`);
}

addEventListener("error", (event) => showFault(event.error ?? event.message));
addEventListener("unhandledrejection", (event) => showFault(event.reason));

const photo = new PhotoField(introduced, complain);
const local = LOOPBACK.test(location.hostname);
const open = location.protocol === "http:" ? ", without encryption" : "";
$("destination").textContent = local ? "Nothing leaves this machine." : `A post is sent to ${location.host}${open}.`;
$("destination").classList.toggle("afar", !local);
$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
$("cancel").addEventListener("click", () => running?.abort());
$("forget").addEventListener("click", forget);
$("text").addEventListener("input", count);
document.addEventListener("keydown", (event) => {
  if (event.isComposing) return;
  if (event.key === "Escape") running?.abort();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && event.target === $("text")) $("form").requestSubmit();
});
$("unscripted").hidden = true;
$("app").hidden = false;
introduced().then(offerExamples);
