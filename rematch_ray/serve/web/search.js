// The search page: one form, one request, one grid. It talks to the same API as everybody else and
// keeps nothing but, for this tab, the API key.
"use strict";

const $ = (id) => document.getElementById(id);
const state = { image: null, busy: null, urls: [] };

function headers(more = {}) {
  const key = sessionStorage.getItem("api-key");
  return key ? { ...more, authorization: `Bearer ${key}` } : more;
}

async function call(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, { ...options, headers: headers(options.headers) });
  } catch (failure) {
    if (failure.name === "AbortError") throw failure;
    throw new Error("The server does not answer. Is it still running?");
  }
  if (answer.status === 401) {
    $("key-form").hidden = false;
    $("key").focus();
  }
  if (!answer.ok) {
    const body = await answer.json().catch(() => null);
    throw new Error(body?.error?.message ?? `The server answered ${answer.status}.`);
  }
  return answer;
}

function complain(message) {
  $("problem").textContent = message;
  $("problem").hidden = !message;
}

// ---- what is served

async function readInfo() {
  const info = await (await call("v1/info")).json();
  const documents = info.index.documents ?? info.index.live ?? 0;
  const model = info.model.name || `model ${info.model.digest.slice(0, 8)}`;
  $("facts").textContent =
    `${documents.toLocaleString()} documents · ${model} · ${info.model.embedding_dim} dimensions`;
  $("facts").title = `generation ${info.index.generation}`;
  offerBudgets(info.budgets);
}

function offerBudgets(budgets) {
  const names = new Map(); // rung -> the names that stand for it
  for (const [name, rung] of Object.entries(budgets)) {
    if (name === "auto") continue;
    names.set(rung, [...(names.get(rung) ?? []), ...(name === rung ? [] : [name])]);
  }
  const chosen = new URLSearchParams(location.search).get("budget") ?? budgets.auto;
  $("budget").replaceChildren();
  const cost = (rung) => rung.split("x").map(Number).reduce((a, b) => a * b, 1) || 0;
  for (const [rung, aliases] of [...names].sort(([a], [b]) => cost(a) - cost(b))) {
    const [label, input, face] = ["label", "input", "span"].map((tag) => document.createElement(tag));
    Object.assign(input, { type: "radio", name: "budget", value: rung, checked: rung === chosen });
    face.textContent = rung.replace("x", "×");
    if (aliases.length) {
      const note = document.createElement("small");
      note.textContent = aliases.join(", ");
      face.append(note);
    }
    label.append(input, face);
    $("budget").append(label);
  }
  if (!picked()) $("budget").querySelector("input").checked = true;
  sayBudget();
}

const picked = () => $("budget").querySelector("input:checked")?.value;

function sayBudget() {
  const [queries, documents] = (picked() ?? "").split("x").map(Number);
  $("budget-says").textContent = documents
    ? `${queries} query × ${documents} document vector${documents > 1 ? "s" : ""}`
    : "one fused vector on each side";
}

// ---- the query

function useImage(file) {
  if (!file?.type.startsWith("image/")) return complain("That is not an image.");
  const reader = new FileReader();
  reader.onload = () => showImage(reader.result);
  reader.readAsDataURL(file);
}

function showImage(dataUri) {
  state.image = dataUri;
  $("preview").hidden = !dataUri;
  if (dataUri) $("preview").querySelector("img").src = dataUri;
  $("image").value = "";
  if (dataUri) search();
}

async function search() {
  const text = $("text").value.trim();
  if (!text && !state.image) return $("text").focus();
  state.busy?.abort();
  state.busy = new AbortController();
  complain("");
  $("results").setAttribute("aria-busy", "true");
  const candidates = $("candidates").value;
  const request = {
    query: { ...(text && { text }), ...(state.image && { image: state.image }) },
    budget: picked() ?? "auto",
    candidates: /^\d+$/.test(candidates) ? Number(candidates) : candidates,
    top_k: Number($("top-k").value),
  };
  const started = performance.now();
  try {
    const answer = await call("v1/search", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(request),
      signal: state.busy.signal,
    });
    show(await answer.json(), performance.now() - started);
    remember(text);
  } catch (failure) {
    if (failure.name === "AbortError") return;
    complain(failure.message);
    $("summary").textContent = "";
    $("results").replaceChildren();
  }
  $("results").removeAttribute("aria-busy");
}

function remember(text) {
  const address = new URL(location);
  address.search = new URLSearchParams({ ...(text && { q: text }), budget: picked() });
  history.replaceState(null, "", address);
}

// ---- the answer

function show(found, roundTrip) {
  const ms = (value) => `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;
  const count = found.results.length;
  const facts = document.createElement("b");
  facts.textContent = `${count} result${count === 1 ? "" : "s"}`;
  $("summary").replaceChildren(
    facts,
    ` at budget ${found.budget.replace("x", "×")} · ${found.scored.toLocaleString()} of ` +
      `${found.live.toLocaleString()} documents scored${found.exact ? " (exact)" : ""} · encoding ` +
      `${ms(found.timing.encode_ms)}, search ${ms(found.timing.search_ms)}, round trip ${ms(roundTrip)}`,
  );
  state.urls.splice(0).forEach((url) => URL.revokeObjectURL(url));
  $("results").replaceChildren(...found.results.map(card));
}

function card(hit, position) {
  const item = $("hit").content.cloneNode(true).firstElementChild;
  const part = (name) => item.querySelector(name);
  const { name, title, caption, text } = hit.payload;
  const words = [name, title, caption, text].find((value) => typeof value === "string" && value) ?? hit.id;
  part(".name").textContent = words;
  part(".name").title = `${words}\n${hit.id}`;
  part(".score").textContent = hit.score.toFixed(3);
  part(".score").setAttribute("aria-label", `rank ${position + 1}, score ${hit.score.toFixed(3)}`);
  part(".meter i").style.setProperty("width", `${Math.max(0, Math.min(1, hit.score)) * 100}%`);
  loadImage(hit, part(".thumb img"), words).then((blob) => {
    if (blob) return offerLikeThis(part(".like"), blob, words);
    part(".words").textContent = typeof text === "string" ? text : words;
    part(".words").hidden = false;
  });
  return item;
}

// fetched rather than linked: a key travels in a header, which an <img> cannot send
async function loadImage(hit, image, words) {
  if (!hit.payload.media && !hit.payload.uri) return null;
  try {
    const answer = await fetch(`v1/documents/${encodeURIComponent(hit.id)}/image`, { headers: headers() });
    if (!answer.ok) return null;
    const blob = await answer.blob();
    const url = URL.createObjectURL(blob);
    state.urls.push(url);
    Object.assign(image, { src: url, alt: words, hidden: false });
    return blob;
  } catch {
    return null; // the words stand in its place
  }
}

function offerLikeThis(button, blob, words) {
  button.hidden = false;
  button.setAttribute("aria-label", `More like ${words}`);
  button.addEventListener("click", () => {
    $("text").value = "";
    useImage(new File([blob], "hit", { type: blob.type }));
    $("text").focus();
  });
}

// ---- wiring

$("search").addEventListener("submit", (event) => { event.preventDefault(); search(); });
$("search").addEventListener("change", (event) => {
  if (event.target.name === "budget") sayBudget();
  if (event.target.type === "file") useImage(event.target.files[0]);
  else if (event.target !== $("text")) ($("text").value || state.image) && search();
});
$("pick").addEventListener("click", () => $("image").click());
$("drop-image").addEventListener("click", () => { showImage(null); $("text").focus(); if ($("text").value) search(); });
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("api-key", $("key").value);
  $("key-form").hidden = true;
  complain("");
  start();
});
document.addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find((entry) => entry.type.startsWith("image/"));
  if (file) useImage(file);
});
for (const [name, visible] of [["dragover", true], ["dragleave", false], ["drop", false]]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    $("veil").hidden = !visible;
    if (name === "drop" && event.dataTransfer.files.length) useImage(event.dataTransfer.files[0]);
  });
}

async function start() {
  try {
    await readInfo();
  } catch (failure) {
    return complain(failure.message);
  }
  const query = new URLSearchParams(location.search).get("q");
  if (query) { $("text").value = query; search(); }
}
start();
