// One answer: a grid of hits, and beside it how they were found.

import { badgesOf, degradedOf, factsOf, summaryOf } from "./answer.js";
import { make } from "./dom.js";
import { score, titleOf } from "./format.js";
import { stageTable } from "./stages.js";
import { thumb } from "./thumb.js";

/**
 * @param {{found: object, request: object}} run
 * @param {{onOpen: (hit, run, rank: number) => void, onLike: (hit) => void}} listeners
 */
export function resultsView(run, listeners) {
  const { found, request } = run;
  const why = degradedOf(found);
  const best = Math.max(1, ...found.results.map((hit) => hit.score));
  const hits = found.results.map((hit, index) => card(hit, index + 1, best, run, listeners));
  return make("div", { class: "answer" },
    make("div", { class: "found" },
      make("div", { class: "summary" }, make("h2", {}, summaryOf(found)), badgesOf(found)),
      why && make("p", { class: "notice warn" }, `Degraded: ${why}.`),
      hits.length
        ? make("ol", { class: "grid" }, hits)
        : make("p", { class: "notice" }, "Nothing was found. A filter, a least score or an empty index leaves no documents.")),
    make("aside", { class: "how", "aria-label": "How it was found" },
      stageTable(found, { caption: "Where the time went" }),
      make("h3", { class: "label" }, "What was used"),
      factsOf(found, request)));
}

function card(hit, rank, best, run, { onOpen, onLike }) {
  const title = titleOf(hit);
  return make("li", { class: "hit" },
    thumb(hit),
    make("div", { class: "caption" },
      make("button", {
        type: "button", class: "name", title: hit.id, "aria-haspopup": "dialog",
        on: { click: () => onOpen(hit, run, rank) },
      }, title),
      make("span", { class: "meter", "aria-hidden": "true" },
        make("i", { style: { "inline-size": `${(100 * Math.max(0, hit.score)) / best}%` } })),
      make("span", { class: "score" },
        make("span", { class: "hidden" }, `rank ${rank}, score `), score(hit.score))),
    make("button", {
      type: "button", class: "like", "aria-label": `More like ${title}`, on: { click: () => onLike(hit) },
    }, "More like this"));
}
