// Light, dark or as the system says. A classic script in the head, so that it runs before the first
// paint; the pages' modules find `rematchTheme` on the window.
"use strict";

(() => {
  const CHOICES = ["auto", "light", "dark"];
  const root = document.documentElement;
  let chosen = "auto";
  try {
    chosen = localStorage.getItem("theme") ?? "auto";
  } catch { /* storage may be blocked: then every visit starts as the system says */ }

  function apply(choice) {
    chosen = CHOICES.includes(choice) ? choice : "auto";
    if (chosen === "auto") delete root.dataset.theme;
    else root.dataset.theme = chosen;
  }

  function wire(button) {
    const say = () => {
      button.dataset.choice = chosen;
      button.setAttribute("aria-label", `Theme: ${chosen === "auto" ? "as the system" : chosen}. Change it`);
      button.title = `Theme: ${chosen}`;
    };
    button.addEventListener("click", () => {
      apply(CHOICES[(CHOICES.indexOf(chosen) + 1) % CHOICES.length]);
      try { localStorage.setItem("theme", chosen); } catch { /* as above */ }
      say();
    });
    say();
  }

  apply(chosen);
  document.addEventListener("DOMContentLoaded", () =>
    document.querySelectorAll("[data-theme-button]").forEach(wire));
})();
