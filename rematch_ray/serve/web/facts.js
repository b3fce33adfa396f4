// What is served, in the head of the page: one line, and the rest behind it.

import { $, facts, make } from "./dom.js";
import { bytes, count, rung } from "./format.js";

/** Let the panel close as people expect of one that lies over the page. */
export function wireFacts() {
  const panel = $("facts");
  panel.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !panel.open) return;
    panel.open = false;
    panel.querySelector("summary").focus();
  });
  document.addEventListener("click", (event) => { if (!panel.contains(event.target)) panel.open = false; });
}

/** Show what /v1/info says. */
export function showFacts(info, rungs) {
  const { index, model, calibration } = info;
  const live = index.live ?? index.documents ?? 0;
  const calibrated = calibration.valid ? "calibrated" : "not calibrated";
  $("facts").hidden = false;
  $("facts-line").replaceChildren(
    make("b", {}, `${count(live)} documents`), ` · ${nameOf(model)} · ${index.generation} · ${calibrated}`);
  $("facts-body").replaceChildren(
    facts([
      ["Documents", live === index.documents ? count(live) : `${count(live)} live of ${count(index.documents)}`],
      ["Generation", index.generation],
      ["Model", nameOf(model)],
      ["Vectors", `${model.num_query_vectors ?? "?"} per query, ${model.num_document_vectors ?? documentVectors(rungs)} per document, ${model.embedding_dim} dimensions`],
      ["Fused vector", model.fused_dim ? `${count(model.fused_dim)} dimensions` : "none"],
      ["Shards", index.shards && `${count(index.shards)} with ${count(index.segments)} segments`],
      ["Size", index.bytes && bytes(index.bytes)],
      ["Calibration", calibrationOf(calibration)],
      ["Words (BM25)", index.lexical ? "indexed" : "not indexed"],
      ["Instruction", info.instruction || "none"],
      ["Load", loadOf(info.load)],
      ["Version", info.version],
    ], { class: "terms" }),
    ladderTable(rungs, index.bytes_per_document ?? {}));
}

const nameOf = (model) => model.name || `model ${String(model.digest ?? "").slice(0, 8)}`;
const documentVectors = (rungs) => Math.max(...rungs.map((it) => it.documents), 0) || "?";

function calibrationOf({ valid, why, summary }) {
  if (!valid) return `no: ${why}`;
  const queries = summary.queries?.count;
  const when = String(summary.created ?? "").slice(0, 10);
  return ["yes", queries && `${count(queries)} queries`, summary.k && `best ${summary.k}`, when].filter(Boolean).join(", ");
}

function loadOf(load) {
  if (!load.level && !load.refusing) return "low: every budget is open";
  return `auto budgets up to ${rung(load.ceiling)}${load.refusing ? "; new requests are refused" : ""}`;
}

function ladderTable(rungs, sizes) {
  const rows = rungs.filter((it) => it.name !== "auto").map((it) => make("tr", {},
    make("th", { scope: "row" }, it.label),
    make("td", {}, it.aliases.join(", ")),
    make("td", { class: "ms" }, count(it.queries * it.documents)),
    make("td", { class: "ms" }, sizes[it.name] ? bytes(sizes[it.name]) : "")));
  return make("table", { class: "numbers ladder" },
    make("caption", {}, "Ladder of budgets: work and reading per document"),
    make("thead", {}, make("tr", {},
      make("th", { scope: "col" }, "budget"), make("th", { scope: "col" }, "name"),
      make("th", { scope: "col", class: "ms" }, "dot products"), make("th", { scope: "col", class: "ms" }, "bytes"))),
    make("tbody", {}, rows));
}
