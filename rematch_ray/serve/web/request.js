// Settings of the page as a request of POST /v1/search. Knows no elements and sends nothing.

import { ApiError } from "./api.js";

/**
 * @param {object} settings  of controls.js, with `like`
 * @param {string|null} image  data URI
 * @param {string} budget
 * @returns {object} the request; fields that were left open are left out
 * @throws {ApiError} a field that cannot be sent at all
 */
export function requestOf(settings, image, budget) {
  const { q: text, like } = settings;
  const asked = like ? { like } : { query: { ...(text && { text }), ...(image && { image }) } };
  return leaveOut({
    ...asked,
    budget,
    top_k: Number(settings.k),
    deadline_ms: number(settings.deadline),
    candidates: /^\d+$/.test(settings.candidates) ? Number(settings.candidates) : settings.candidates,
    target_recall: number(settings.recall),
    min_score: number(settings.min),
    group_by: settings.group,
    filter: filterOf(settings.filter),
    instruction: like ? "" : settings.instruction,
    hybrid: hybridOf(settings, text),
    ...rerankOf(settings.rerank),
  });
}

const number = (text) => (text === "" ? "" : Number(text));

function filterOf(text) {
  if (!text) return "";
  try {
    return JSON.parse(text);
  } catch (broken) {
    throw new ApiError(`The filter is no JSON (${broken.message}). Write, for example, {"source": "emoji"}.`);
  }
}

function hybridOf({ words, weight }, text) {
  if (!words) return "";
  if (!text) throw new ApiError("Searching by words needs words: type some, or set Words to 'not used'.");
  return { fusion: words, ...(words === "weighted" && weight !== "" && { lexical_weight: Number(weight) }) };
}

function rerankOf(choice) {
  return choice ? { rerank: choice === "on" } : {};
}

const leaveOut = (fields) =>
  Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== "" && value !== undefined));
