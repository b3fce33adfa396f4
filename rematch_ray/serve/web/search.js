// The search page: puts form, address, requests and views together. It talks to the same API as
// everybody else.

import { ApiError, info as fetchInfo, search } from "./api.js";
import { summaryOf } from "./answer.js";
import { compareView, comparisonOf } from "./compare.js";
import { fromHash, offerFields, readFields, toHash, writeFields } from "./controls.js";
import { $, make } from "./dom.js";
import { showFacts, wireFacts } from "./facts.js";
import { titleOf } from "./format.js";
import { openHit } from "./hit.js";
import { askForKey, wireKey } from "./key.js";
import { rungsOf } from "./ladder.js";
import { Picture } from "./picture.js";
import { requestOf } from "./request.js";
import { resultsView } from "./results.js";
import { BudgetSlider } from "./slider.js";

const state = { rungs: [], like: "", busy: null, hash: "" };
const sliders = {
  a: new BudgetSlider($("budget-a"), { id: "budget", label: "Budget", onChange: again }),
  b: new BudgetSlider($("budget-b"), { id: "budget-2", label: "Budget B", onChange: again }),
};
const picture = new Picture({
  onChange: () => { setLike(""); if (hasQuery()) run(); else clear(); },
  onProblem: complain,
});

// ---- the form, the address

function settings() {
  return {
    ...readFields(),
    like: state.like,
    budget: sliders.a.value,
    b: $("compare").checked ? sliders.b.value : "",
  };
}

function restore(wanted) {
  writeFields(wanted);
  setLike(wanted.like ?? "");
  sliders.a.value = wanted.budget ?? state.rungs[0]?.name;
  setCompare(Boolean(wanted.b));
  if (wanted.b) sliders.b.value = wanted.b;
}

function setLike(id, name = id) {
  state.like = id;
  $("like").hidden = !id;
  $("like-name").textContent = name;
}

function setCompare(on) {
  $("compare").checked = on;
  $("budget-b").hidden = !on;
  $("budget-a").querySelector("label").textContent = on ? "Budget A" : "Budget";
  // two equal sides say nothing: B starts at the other end of the ladder
  if (on && sliders.b.value === sliders.a.value) {
    const top = state.rungs.at(-1)?.name;
    sliders.b.value = sliders.a.value === top ? state.rungs.at(1)?.name : top;
  }
}

/** Put the search into the address: a new entry for a new query, the same for other settings. */
function remember(isNew) {
  const hash = toHash(settings());
  if (hash === state.hash) return;
  state.hash = hash;
  history[isNew ? "pushState" : "replaceState"](null, "", hash || location.pathname + location.search);
}

// ---- one search

const hasQuery = () => Boolean($("text").value.trim() || picture.uri || state.like);

function again() {
  if (hasQuery()) run();
  else remember(false);
}

async function run({ isNew = false } = {}) {
  if (!hasQuery()) return $("text").focus();
  state.busy?.abort();
  const { signal } = (state.busy = new AbortController());
  complain("");
  $("answer").setAttribute("aria-busy", "true");
  const wanted = settings();
  remember(isNew);
  try {
    const budgets = wanted.b ? [wanted.budget, wanted.b] : [wanted.budget];
    show(await searchEach(budgets.map((budget) => requestOf(wanted, picture.uri, budget)), signal));
  } catch (failure) {
    if (failure.name !== "AbortError") refuse(failure); // aborted: a newer search has taken over
  }
}

/** One after the other, so that neither waits for the other and their times compare. */
async function searchEach(requests, signal) {
  const runs = [];
  for (const request of requests) {
    try {
      runs.push({ request, found: await search(request, signal) });
    } catch (failure) {
      if (!(failure instanceof ApiError) || requests.length === 1) throw failure;
      runs.push({ request, failure });
    }
  }
  if (runs.every((run) => run.failure)) throw runs[0].failure;
  return runs;
}

function show(runs) {
  $("answer").removeAttribute("aria-busy");
  const listeners = { onOpen: open, onLike: like };
  const isPair = runs.length === 2;
  $("intro").hidden = true;
  $("answer").replaceChildren(isPair ? compareView(runs, listeners) : resultsView(runs[0], listeners));
  $("status").textContent = isPair ? comparisonOf(runs) : summaryOf(runs[0].found);
}

function clear() {
  $("answer").removeAttribute("aria-busy");
  $("answer").replaceChildren();
  $("status").textContent = "";
  $("intro").hidden = false;
}

function open(hit, run, rank) {
  openHit(hit, run, { rank, rungs: state.rungs, onLike: like });
}

function like(hit) {
  $("text").value = "";
  picture.clear();
  setLike(hit.id, titleOf(hit));
  run({ isNew: true });
  $("drop-like").focus();
}

// ---- what goes wrong

function complain(message, { code = "", retryAfter = null } = {}) {
  $("problem").hidden = !message;
  $("problem").replaceChildren(...(message ? [
    make("p", {}, message, retryAfter ? ` Try again in ${retryAfter} s.` : ""),
    ...(code ? [make("code", {}, code)] : []),
  ] : []));
}

function refuse(failure) {
  complain(failure.message, failure);
  clear();
  $("intro").hidden = true;
  if (failure.status === 401) askForKey();
  if (!(failure instanceof ApiError)) throw failure; // a mistake of ours belongs in the console too
}

// ---- wiring

function wire() {
  $("search").addEventListener("submit", (event) => {
    event.preventDefault();
    if ($("text").value.trim() || picture.uri) setLike("");
    run({ isNew: true });
  });
  $("search").addEventListener("change", (event) => {
    const { target } = event;
    if (target === $("compare")) setCompare(target.checked);
    if (target !== $("text") && target.type !== "file" && target.type !== "range") again();
  });
  $("drop-like").addEventListener("click", () => { setLike(""); $("text").focus(); again(); });
  $("hit").addEventListener("click", (event) => { if (event.target === $("hit")) $("hit").close(); });
  addEventListener("popstate", () => follow());
  addEventListener("hashchange", () => follow());
  wireFacts();
  wireKey(start);
}

/** Go where the address points. */
function follow() {
  if (location.hash === state.hash) return;
  state.hash = location.hash;
  picture.clear();
  restore(fromHash(location.hash));
  if (hasQuery()) run();
  else clear();
}

async function start() {
  complain("");
  try {
    const info = await fetchInfo();
    state.rungs = rungsOf(info.budgets);
    const wanted = fromHash(location.hash);
    sliders.a.offer(state.rungs, state.rungs[0]?.name);
    sliders.b.offer(state.rungs, state.rungs.at(-1)?.name);
    picture.limits = info.limits ?? {};
    offerFields(info);
    showFacts(info, state.rungs);
    restore(wanted);
    state.hash = location.hash;
  } catch (failure) {
    refuse(failure);
    if (failure.code === "not_ready") setTimeout(start, 1000 * (failure.retryAfter ?? 1));
    return;
  }
  if (hasQuery()) run();
}

wire();
start();
