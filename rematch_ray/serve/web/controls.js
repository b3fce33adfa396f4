// The fields of the form as one flat object of strings, "" where a field says nothing, and back. The
// address holds exactly these, so a link reproduces a search. Knows no API.

import { $ } from "./dom.js";

// name in the address -> field; the value a field has when the address does not name it
const FIELDS = {
  q: ["text", ""],
  deadline: ["deadline", ""],
  k: ["top-k", "24"],
  candidates: ["candidates", ""],
  recall: ["target-recall", ""],
  min: ["min-score", ""],
  group: ["group-by", ""],
  rerank: ["rerank", ""],
  words: ["hybrid", ""],
  weight: ["lexical-weight", ""],
  filter: ["filter", ""],
  instruction: ["instruction", ""],
};
const UNSURPRISING = ["q", "deadline", "k"]; // the rest is shown where the address names it

/** What the fields say, without budgets, which are sliders of their own. */
export function readFields() {
  return Object.fromEntries(
    Object.entries(FIELDS).map(([name, [id]]) => [name, $(id).value.trim()]));
}

export function writeFields(settings) {
  for (const [name, [id, fallback]] of Object.entries(FIELDS)) {
    const field = $(id);
    const value = settings[name] ?? fallback;
    // a value of the address that the list does not hold is offered, so that it is not lost
    if (field.tagName === "SELECT" && ![...field.options].some((option) => option.value === value)) {
      field.add(new Option(value, value));
    }
    field.value = value;
  }
  if (Object.keys(FIELDS).some((name) => !UNSURPRISING.includes(name) && settings[name])) $("more").open = true;
}

/** Fields that what is served decides about. */
export function offerFields(info) {
  const fields = info.index.fields ?? [];
  const names = Array.isArray(fields) ? fields : Object.keys(fields);
  const chosen = $("group-by").value;
  $("group-by").replaceChildren(new Option("document", ""), ...names.map((name) => new Option(name, name)));
  if (names.includes(chosen)) $("group-by").value = chosen;
  $("instruction").placeholder = info.instruction || "none";
  $("filter").placeholder = JSON.stringify({ [names[0] ?? "field"]: "value" });
  const most = info.limits?.max_top_k ?? Infinity;
  for (const option of $("top-k").options) option.disabled = Number(option.value) > most;
}

/** Settings without what is the default anyway, as an address has them. */
export function toHash(settings) {
  const usual = (name) => (name === "budget" ? "auto" : FIELDS[name]?.[1]);
  const said = Object.entries(settings).filter(([name, value]) => value && value !== usual(name));
  const text = new URLSearchParams(said).toString();
  return text ? `#${text}` : "";
}

export const fromHash = (hash) => Object.fromEntries(new URLSearchParams(hash.replace(/^#/, "")));
