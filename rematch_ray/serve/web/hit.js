// One hit in a dialog: its image or words, its payload, and the heat map of what its score is made of.

import { search } from "./api.js";
import { $, facts, make } from "./dom.js";
import { rung, score, titleOf } from "./format.js";
import { HeatMap } from "./heatmap.js";
import { thumb } from "./thumb.js";

/**
 * Shows a hit. The matrices come with a repeated search, once for all hits of an answer.
 * @param {object} hit
 * @param {{found: object, request: object, explained?: Promise<object>}} run  the answer it is from
 * @param {{rank: number, rungs: object[], onLike: (hit) => void}} options
 */
export async function openHit(hit, run, { rank, rungs, onLike }) {
  const dialog = $("hit");
  const heat = make("section", { class: "why", "aria-busy": "true" },
    make("h3", { class: "label" }, "Why this score"), make("p", { class: "quiet" }, "Comparing the vectors…"));
  dialog.replaceChildren(...contents(hit, run, rank, heat, dialog, onLike));
  dialog.showModal();
  dialog.scrollTop = 0;
  heat.replaceChildren(...await explanation(hit, run, rungs));
  heat.removeAttribute("aria-busy");
}

function contents(hit, { found }, rank, heat, dialog, onLike) {
  const close = () => dialog.close();
  return [
    make("header", {},
      make("h2", { id: "hit-title" }, titleOf(hit)),
      make("button", { type: "button", class: "plain close", "aria-label": "Close", on: { click: close } }, "×")),
    make("div", { class: "sides" },
      make("div", { class: "document" },
        thumb(hit),
        facts([["Rank", String(rank)], ["Score", `${score(hit.score)} at ${rung(found.budget)}`], ...partsOf(hit), ["Id", hit.id]], { class: "terms" }),
        make("button", { type: "button", on: { click: () => { close(); onLike(hit); } } }, "More like this")),
      heat),
    make("details", { class: "payload" },
      make("summary", {}, "Payload"),
      facts(Object.entries(hit.payload ?? {}).map(([name, value]) => [name, shown(value)]), { class: "terms" })),
  ];
}

const partsOf = (hit) => Object.entries(hit.parts ?? {})
  .filter(([, value]) => typeof value === "number")
  .map(([name, value]) => [`– ${name}`, score(value)]);

const shown = (value) => (typeof value === "string" ? value : JSON.stringify(value));

async function explanation(hit, run, rungs) {
  const title = make("h3", { class: "label" }, "Why this score");
  let again;
  try {
    run.explained ??= search({ ...run.request, with_explain: true });
    again = await run.explained;
  } catch (failure) {
    run.explained = null; // it may work the next time
    return [title, make("p", { class: "notice bad" }, failure.message)];
  }
  const matrix = matrixOf(again.results.find((other) => other.id === hit.id));
  if (!matrix) {
    return [title, make("p", { class: "notice" }, "The repeated search did not return this document: the index or the load has changed.")];
  }
  const map = new HeatMap(matrix, rungs.filter((it) => it.documents && it.name !== "fused"));
  const sentence = `MaxSim at ${rung(again.budget)}: ${score(map.score)}, the mean over ${matrix.length} query ` +
    `vector${matrix.length === 1 ? "" : "s"} of the best similarity with any of ${matrix[0].length} document vector${matrix[0].length === 1 ? "" : "s"}.`;
  return [
    title,
    make("p", { class: "quiet" }, sentence),
    map.element,
    make("details", { class: "as-table" }, make("summary", {}, "As a table"),
      make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Similarities as a table" }, map.table())),
  ];
}

function matrixOf(hit) {
  const matrix = hit?.explain?.similarities ?? hit?.explain;
  return Array.isArray(matrix) && Array.isArray(matrix[0]) ? matrix : null;
}
