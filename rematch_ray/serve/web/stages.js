// Where the time of a search went, as a table with bars: each bar starts where the one before ended.

import { make } from "./dom.js";
import { count, ms, rung } from "./format.js";

/**
 * @param {object} found  the API's answer
 * @returns {{name: string, kind: string, in: ?number, out: ?number, ms: number}[]} in order
 */
export function stagesOf(found) {
  const { queue_ms: queue, encode_ms: encode, search_ms: search, rerank_ms: rerank, total_ms: total } = found.timing;
  const stages = found.stages.map((stage) => ({
    name: rung(stage.name), kind: "search", in: stage.in, out: stage.out, ms: stage.ms ?? 0,
  }));
  const staged = stages.reduce((sum, stage) => sum + stage.ms, 0);
  const known = (queue ?? 0) + (encode ?? 0) + (rerank ?? 0);
  return [
    { name: "wait", kind: "wait", ms: queue },
    { name: "encode", kind: "encode", ms: encode },
    ...stages,
    { name: "hand over", kind: "wait", ms: Math.max(0, (search ?? staged) - staged) },
    { name: "matching head", kind: "rerank", ms: rerank },
    { name: "service", kind: "wait", ms: Math.max(0, (total ?? 0) - known - Math.max(search ?? 0, staged)) },
    { name: "network", kind: "network", ms: Math.max(0, found.roundTripMs - (total ?? 0)) },
  ].filter((stage) => stage.ms !== undefined && stage.ms !== null && (stage.kind === "search" || stage.ms >= 0.05));
}

export const totalOf = (stages) => stages.reduce((sum, stage) => sum + stage.ms, 0);

/**
 * @param {object} found
 * @param {{caption: string, scaleMs?: number}} options  `scaleMs`: length of a full bar, so that two
 *   tables can share one scale
 */
export function stageTable(found, { caption, scaleMs }) {
  const stages = stagesOf(found);
  const total = totalOf(stages);
  const scale = Math.max(scaleMs ?? total, 1e-9);
  let start = 0;
  const rows = stages.map((stage) => {
    const row = stageRow(stage, start / scale, stage.ms / scale);
    start += stage.ms;
    return row;
  });
  const head = ["stage", "documents", "", "time"].map((name) =>
    name ? make("th", { scope: "col" }, name) : make("td", { "aria-hidden": "true" }));
  return make("table", { class: "stages" },
    make("caption", {}, caption),
    make("thead", { class: "hidden" }, make("tr", {}, head)),
    make("tbody", {}, rows),
    make("tfoot", {}, make("tr", {},
      make("th", { scope: "row" }, "total"), make("td"), make("td", { "aria-hidden": "true" }),
      make("td", { class: "ms" }, ms(total)))));
}

function stageRow(stage, start, length) {
  const bar = make("i", {
    class: `bar ${stage.kind}`,
    style: { "margin-inline-start": `${100 * start}%`, "inline-size": `max(2px, ${100 * length}%)` },
  });
  const documents = stage.in === undefined ? "" : `${count(stage.in)} → ${count(stage.out)}`;
  return make("tr", {},
    make("th", { scope: "row" }, stage.name),
    make("td", { class: "flow" }, documents),
    make("td", { class: "lane", "aria-hidden": "true" }, bar),
    make("td", { class: "ms" }, ms(stage.ms)));
}
