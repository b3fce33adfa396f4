// The form for the API key: asked for when the service wants one, else behind a button.

import { hasKey, setKey } from "./api.js";
import { $ } from "./dom.js";

/** @param {() => void} onKey  called once another key holds, or none */
export function wireKey(onKey) {
  $("key-open").addEventListener("click", () => ($("key-form").hidden ? askForKey() : hide()));
  $("key-forget").addEventListener("click", () => use("", onKey));
  $("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    use($("key").value, onKey);
  });
  say();
}

export function askForKey() {
  $("key-form").hidden = false;
  say();
  $("key").focus();
}

function use(key, onKey) {
  setKey(key);
  $("key").value = "";
  hide();
  onKey();
}

function hide() {
  $("key-form").hidden = true;
  say();
  $("text").focus();
}

function say() {
  $("key-open").setAttribute("aria-expanded", String(!$("key-form").hidden));
  $("key-open").classList.toggle("set", hasKey());
  $("key-forget").hidden = !hasKey();
}
