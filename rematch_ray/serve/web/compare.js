// Two answers to one query, A and B, side by side: hits as rows, lines from a hit's place in A to its
// place in B, and what each cost on one scale.

import { badgesOf, degradedOf, factsOf, summaryOf } from "./answer.js";
import { draw, make } from "./dom.js";
import { ms, rung, score, titleOf } from "./format.js";
import { stagesOf, stageTable, totalOf } from "./stages.js";
import { thumb } from "./thumb.js";

/**
 * @param {{found?: object, request: object, failure?: Error}[]} runs  A and B; one may have failed
 * @param {{onOpen: (hit, run, rank: number) => void}} listeners
 */
export function compareView(runs, listeners) {
  const ranks = runs.map((run) => new Map((run.found?.results ?? []).map((hit, index) => [hit.id, index])));
  const scaleMs = Math.max(...runs.map((run) => (run.found ? totalOf(stagesOf(run.found)) : 0)));
  const view = make("div", { class: "compare" },
    make("div", { class: "summary" }, make("h2", {}, comparisonOf(runs)),
      make("p", { class: "quiet" }, "Scores compare within one budget only.")),
    make("div", { class: "columns" },
      column("A", runs[0], ranks[1], listeners),
      lines(ranks),
      column("B", runs[1], ranks[0], listeners)),
    make("div", { class: "costs" }, runs.map((run, index) => costs("AB"[index], run, scaleMs))));
  linkTwins(view);
  return view;
}

/** In one sentence what the two have in common. */
export function comparisonOf(runs) {
  const [a, b] = runs.map((run) => run.found);
  if (!a || !b) return `Only ${a ? "A" : b ? "B" : "neither"} was answered`;
  const theirs = new Set(b.results.map((hit) => hit.id));
  const shared = a.results.filter((hit) => theirs.has(hit.id)).length;
  const best = a.results[0] && a.results[0].id === b.results[0]?.id ? ", the same one first" : "";
  return `${shared} of ${Math.max(a.results.length, b.results.length)} hits shared${best} · ` +
    `A ${rung(a.budget)} in ${ms(a.roundTripMs)}, B ${rung(b.budget)} in ${ms(b.roundTripMs)}`;
}

function column(name, run, others, { onOpen }) {
  const { found, failure } = run;
  const title = make("h3", {}, make("b", { class: "side" }, name), ` ${rung(found?.budget ?? run.request.budget)}`);
  if (!found) {
    return make("section", { class: "column", "aria-label": name }, make("header", {}, title),
      make("p", { class: "notice bad" }, failure.message));
  }
  const why = degradedOf(found);
  const rows = found.results.map((hit, index) =>
    make("li", { class: `row ${others.has(hit.id) ? "shared" : "alone"}`, "data-id": hit.id },
      make("span", { class: "rank" }, String(index + 1)),
      thumb(hit),
      make("span", { class: "what" },
        make("button", {
          type: "button", class: "name", title: hit.id, "aria-haspopup": "dialog",
          on: { click: () => onOpen(hit, run, index + 1) },
        }, titleOf(hit)),
        make("span", { class: "quiet" }, make("span", { class: "score" }, score(hit.score)), " ", moveOf(name, index, others.get(hit.id))))));
  return make("section", { class: "column", "aria-label": `${name}: ${summaryOf(found)}` },
    make("header", {}, title, badgesOf(found)),
    why && make("p", { class: "notice warn" }, `Degraded: ${why}.`),
    make("ol", { class: "rows" }, rows));
}

function moveOf(name, here, there) {
  const other = name === "A" ? "B" : "A";
  // A says where a hit went, B how far it came
  if (there === undefined) return make("span", { class: "move alone" }, `not in ${other}`);
  if (name === "A") return make("span", { class: "move", role: "img", "aria-label": `place ${there + 1} in B` }, `→ ${there + 1}`);
  const by = there - here;
  if (by === 0) return make("span", { class: "move", role: "img", "aria-label": `same place as in ${other}` }, "=");
  const words = `${Math.abs(by)} ${Math.abs(by) === 1 ? "place" : "places"} ${by > 0 ? "higher" : "lower"} than in ${other}`;
  return make("span", { class: `move ${by > 0 ? "up" : "down"}`, role: "img", "aria-label": words, title: words },
    `${by > 0 ? "▲" : "▼"} ${Math.abs(by)}`);
}

/** The gutter: rows are of one height, so places are enough to draw from. */
function lines([first, second]) {
  const height = Math.max(first.size, second.size, 1);
  const paths = [...first].filter(([id]) => second.has(id)).map(([id, from]) => {
    const to = second.get(id);
    const kind = to < from ? "up" : to > from ? "down" : "same";
    return draw("path", {
      class: kind, "data-id": id, "vector-effect": "non-scaling-stroke",
      d: `M0 ${from + 0.5} C 45 ${from + 0.5} 55 ${to + 0.5} 100 ${to + 0.5}`,
    });
  });
  return make("div", { class: "gutter", "aria-hidden": "true" },
    draw("svg", { viewBox: `0 0 100 ${height}`, preserveAspectRatio: "none", style: { "--rows": height } }, paths));
}

/** A hit under the pointer, or with the focus, lights up on both sides. */
function linkTwins(view) {
  const parts = new Map();
  for (const part of view.querySelectorAll("[data-id]")) {
    parts.set(part.dataset.id, [...(parts.get(part.dataset.id) ?? []), part]);
  }
  const light = (on) => (event) => {
    const id = event.target.closest?.("[data-id]")?.dataset.id;
    parts.get(id)?.forEach((part) => part.classList.toggle("lit", on));
  };
  for (const [name, on] of [["pointerover", true], ["pointerout", false], ["focusin", true], ["focusout", false]]) {
    view.addEventListener(name, light(on));
  }
}

function costs(name, { found, request }, scaleMs) {
  if (!found) return make("div");
  return make("section", { "aria-label": `How ${name} was found` },
    stageTable(found, { caption: `Where the time of ${name} went`, scaleMs }),
    factsOf(found, request));
}
