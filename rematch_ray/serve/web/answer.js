// What an answer says about itself: how careful it was, what it cost, and what it had to leave out.

import { facts, make } from "./dom.js";
import { count, ms, percent, plural, rung, short } from "./format.js";

const REASONS = {
  load: "the service is busy, so a smaller budget was used",
  deadline: "the deadline left time for a smaller budget only",
  shard_missing: "a shard did not answer, so its documents are missing",
};

/** One line: how many, at which budget, how long. */
export const summaryOf = (found) =>
  `${plural(found.results.length, "result")} at ${rung(found.budget)} in ${ms(found.roundTripMs)}`;

/** In words why less was done than would have been, or "". */
export function degradedOf(found) {
  if (!found.degraded?.is_degraded) return "";
  return found.degraded.reasons.map((reason) => REASONS[reason] ?? reason).join("; ");
}

/** Short labels: exact or not, expected recall, degraded. */
export function badgesOf(found) {
  const badges = [found.exact
    ? make("span", { class: "badge good" }, "exact")
    : make("span", { class: "badge" }, `${count(found.scored)} of ${count(found.live)} scored`)];
  if (typeof found.expected_recall === "number") {
    badges.push(make("span", { class: "badge", title: "against an exhaustive search at the full budget" },
      `recall ${atLeast(found.expected_recall)}`));
  }
  if (degradedOf(found)) badges.push(make("span", { class: "badge warn" }, "degraded"));
  return make("span", { class: "badges" }, badges);
}

/** Everything else, as terms and values. */
export function factsOf(found, request) {
  const asked = request.budget === found.budget ? null : ` (asked: ${rung(request.budget)})`;
  return facts([
    ["Budget", `${rung(found.budget)}${asked ?? ""}`],
    ["Scored", `${count(found.scored)} of ${count(found.live)} documents`, "at the final budget"],
    ["Exact", found.exact ? "yes" : "no", "yes: every document that passes the filter was scored at the final budget"],
    ["Expected recall", recallOf(found), "lower end of what was calibrated, against an exhaustive search at the full budget"],
    ["Degraded", degradedOf(found) || "no"],
    ["Plan", found.plan?.name],
    ["Chosen by", found.plan?.chosen_by],
    ["Groups", found.plan?.groups_short ? "there may be more than were looked for" : null],
    ["Matching head", headOf(found)],
    ...usageOf(found),
    ["Instruction", found.instruction || (found.instruction === "" ? "none" : null)],
    ["Generation", found.generation],
    ["Request", found.request_id],
  ], { class: "terms" });
}

const recallOf = (found) =>
  (typeof found.expected_recall === "number" ? atLeast(found.expected_recall) : "not calibrated");

const atLeast = (share) => (share >= 1 ? "100 %" : `≥ ${percent(share)}`);

function headOf({ rerank }) {
  if (!rerank) return null;
  const weight = typeof rerank.lambda === "number" ? `, weight ${rerank.lambda}` : "";
  return `best ${rerank.top_n} scored again${rerank.raw ? " over raw documents" : ""}${weight}`;
}

function usageOf({ usage }) {
  return Object.entries(usage ?? {})
    .filter(([, value]) => typeof value === "number" && value > 0)
    .map(([name, value]) => [capital(name.replaceAll("_", " ")), short(value), count(value)]);
}

const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);
