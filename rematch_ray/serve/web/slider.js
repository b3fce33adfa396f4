// A slider over the ladder: a native range input (keyboard and screen readers for free), its marks,
// and a small drawing of how much of the vectors a rung compares. Knows nothing of searching.

import { draw, make } from "./dom.js";
import { findRung, meaningOf } from "./ladder.js";

export class BudgetSlider {
  /**
   * @param {HTMLElement} root  is filled
   * @param {{id: string, label: string, onChange: () => void}} options  `onChange` is called when a
   *   choice is made, not on the way there
   */
  constructor(root, { id, label, onChange }) {
    this.rungs = [];
    this.onChange = onChange;
    this.input = make("input", {
      id, type: "range", min: 0, step: 1,
      on: { input: () => this.say(), change: onChange },
    });
    this.says = make("p", { class: "says", "aria-hidden": "true" }); // aria-valuetext says it aloud
    this.drawing = draw("svg", { class: "nest", preserveAspectRatio: "xMaxYMid", "aria-hidden": "true" });
    this.marks = make("div", { class: "marks", "aria-hidden": "true" });
    root.classList.add("slider");
    root.append(
      make("div", { class: "slider-head" }, make("label", { for: id, class: "label" }, label), this.says, this.drawing),
      make("div", { class: "track" }, this.input),
      this.marks,
    );
    this.root = root;
  }

  /** Offer these rungs; the chosen one stays where it is still there. */
  offer(rungs, fallback) {
    const before = this.value;
    this.rungs = rungs;
    this.input.max = rungs.length - 1;
    this.root.style.setProperty("--count", rungs.length);
    this.marks.replaceChildren(...rungs.map((rung, position) =>
      make("span", { on: { click: () => this.move(position) } },
        make("b", {}, rung.label), make("small", {}, rung.aliases.join(", ")))));
    this.value = findRung(rungs, before) ? before : fallback;
  }

  get rung() { return this.rungs[Number(this.input.value)]; }
  get value() { return this.rung?.name ?? ""; }

  set value(name) {
    const found = findRung(this.rungs, name);
    if (found) this.input.value = this.rungs.indexOf(found);
    this.say();
  }

  move(position) {
    if (Number(this.input.value) === position) return;
    this.input.value = position;
    this.say();
    this.onChange();
  }

  say() {
    const { rung } = this;
    if (!rung) return;
    const meaning = meaningOf(rung);
    this.says.replaceChildren(make("b", {}, rung.label), " ", make("span", {}, meaning));
    this.input.setAttribute("aria-valuetext", `${rung.label}: ${meaning}`);
    [...this.marks.children].forEach((mark, position) =>
      mark.classList.toggle("chosen", position === Number(this.input.value)));
    this.root.style.setProperty("--share", Number(this.input.value) / Math.max(1, this.rungs.length - 1));
    this.drawNest(rung);
  }

  /** Nested rectangles, query vectors down and document vectors across, the chosen one filled. */
  drawNest(chosen) {
    const pairs = this.rungs.filter((rung) => rung.name !== "auto" && rung.name !== "fused");
    const width = Math.max(...pairs.map((rung) => rung.documents), 1);
    const height = Math.max(...pairs.map((rung) => rung.queries), 1);
    const box = (rung, name) => draw("rect", {
      class: name, x: 0, y: 0, width: rung.documents, height: rung.queries, "vector-effect": "non-scaling-stroke",
    });
    this.drawing.setAttribute("viewBox", `-0.5 -0.5 ${width + 1} ${height + 1}`);
    this.drawing.replaceChildren(
      ...pairs.map((rung) => box(rung, "rung")),
      ...(chosen.name === "auto" ? [] : [box(chosen, "chosen")]),
    );
  }
}
