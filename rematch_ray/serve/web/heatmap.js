// A matrix of similarities, query vectors down and document vectors across, as a picture that can be
// read cell by cell with the pointer or the arrow keys. Knows nothing of hits.

import { draw, make } from "./dom.js";

const CELL = { least: 9, most: 52 };
const LEFT = 34;
const TOP = 20;
const RIGHT = 64;
const WIDTH = 655; // of all cells, where the window has room for them
const MARGINS = 40;

export class HeatMap {
  /**
   * @param {number[][]} matrix  (r_q, r_d) similarities
   * @param {{queries: number, documents: number}[]} rungs  whose corners are marked
   */
  constructor(matrix, rungs = []) {
    this.matrix = matrix;
    this.best = matrix.map((row) => row.indexOf(Math.max(...row)));
    this.reach = Math.max(...matrix.flat().map(Math.abs), 1e-6);
    const room = Math.min(WIDTH, innerWidth - LEFT - RIGHT - MARGINS);
    this.size = Math.max(CELL.least, Math.min(CELL.most, Math.floor(room / matrix[0].length)));
    this.rungs = rungs.filter((rung) => rung.queries <= matrix.length && rung.documents <= matrix[0].length);
    this.place = { row: 0, column: this.best[0] };
    this.element = this.build();
    this.point(this.place);
  }

  /** The score that the matrix stands for: the mean of the rows' best. */
  get score() {
    return this.matrix.reduce((sum, row, index) => sum + row[this.best[index]], 0) / this.matrix.length;
  }

  build() {
    const [rows, columns, size] = [this.matrix.length, this.matrix[0].length, this.size];
    const [width, height] = [LEFT + columns * size + RIGHT, TOP + rows * size + 4];
    this.cursor = draw("rect", { class: "cursor", width: size, height: size });
    this.picture = draw("svg", {
      viewBox: `0 0 ${width} ${height}`, width, height, "aria-hidden": "true",
      on: {
        pointermove: (event) => this.follow(event),
        pointerdown: (event) => this.follow(event),
      },
    }, this.cells(), this.corners(), this.marks(), this.axes(), this.bests(), this.cursor);
    this.readout = make("output", { class: "readout", id: "heat-readout", "aria-live": "polite" });
    this.board = make("div", {
      class: "heat", tabindex: 0, role: "application", "aria-roledescription": "heat map",
      "aria-label": `${rows} query vectors by ${columns} document vectors; arrow keys read a cell`,
      "aria-describedby": "heat-readout",
      on: { keydown: (event) => this.steer(event) },
    }, this.picture);
    return make("div", { class: "heat-map" }, this.board, this.readout, this.legend());
  }

  cells() {
    return draw("g", {}, this.matrix.flatMap((row, r) => row.map((value, c) =>
      draw("rect", { ...this.corner(r, c), width: this.size, height: this.size, style: { fill: this.colour(value) } }))));
  }

  colour(value) {
    const strength = (100 * Math.abs(value)) / this.reach;
    return `color-mix(in oklab, var(${value < 0 ? "--cold" : "--warm"}) ${strength.toFixed(1)}%, var(--zero))`;
  }

  corner(row, column) {
    return { x: LEFT + column * this.size, y: TOP + row * this.size };
  }

  /** Outlines of the smaller budgets: what they would have seen of this matrix. */
  corners() {
    return draw("g", { class: "corners" }, this.rungs.map((rung) =>
      draw("rect", { ...this.corner(0, 0), width: rung.documents * this.size, height: rung.queries * this.size })));
  }

  /** A dot on the best cell of each row: those are what counts. */
  marks() {
    const half = this.size / 2;
    return draw("g", { class: "best" }, this.best.map((column, row) => {
      const { x, y } = this.corner(row, column);
      return draw("circle", { cx: x + half, cy: y + half, r: Math.max(2, this.size / 6) });
    }));
  }

  axes() {
    const some = (count, of) => [...new Set([1, ...this.rungs.map(of), count])];
    const half = this.size / 2;
    const columns = some(this.matrix[0].length, (rung) => rung.documents).map((n) =>
      draw("text", { x: LEFT + n * this.size - half, y: TOP - 6, "text-anchor": "middle" }, String(n)));
    const rows = some(this.matrix.length, (rung) => rung.queries).map((n) =>
      draw("text", { x: LEFT - 6, y: TOP + n * this.size - half, "text-anchor": "end", "dominant-baseline": "central" }, String(n)));
    return draw("g", { class: "axes" }, columns, rows);
  }

  /** What each row adds, as bars on the right. */
  bests() {
    const x = LEFT + this.matrix[0].length * this.size + 8;
    return draw("g", { class: "bests" }, this.best.map((column, row) => draw("rect", {
      x, y: TOP + (row + 0.25) * this.size, height: this.size / 2, rx: 1,
      width: Math.max(1, (RIGHT - 12) * Math.max(0, this.matrix[row][column])),
    })));
  }

  legend() {
    const end = this.reach.toFixed(2);
    return make("p", { class: "legend quiet" },
      make("span", {}, `−${end}`), make("i", { "aria-hidden": "true" }), make("span", {}, end),
      make("span", { class: "dot" }, "best of its row; the score is their mean"));
  }

  follow(event) {
    const box = this.picture.getBoundingClientRect();
    const scale = this.picture.viewBox.baseVal.width / box.width;
    const column = Math.floor(((event.clientX - box.left) * scale - LEFT) / this.size);
    const row = Math.floor(((event.clientY - box.top) * scale - TOP) / this.size);
    if (this.matrix[row]?.[column] !== undefined) this.point({ row, column });
  }

  steer(event) {
    const { row, column } = this.place;
    const moved = {
      ArrowLeft: { row, column: column - 1 },
      ArrowRight: { row, column: column + 1 },
      ArrowUp: { row: row - 1, column },
      ArrowDown: { row: row + 1, column },
      Home: { row, column: 0 },
      End: { row, column: this.matrix[0].length - 1 },
      Enter: { row, column: this.best[row] },
    }[event.key];
    if (!moved) return; // Tab and Escape stay what they are: nobody is held here
    event.preventDefault();
    if (this.matrix[moved.row]?.[moved.column] === undefined) return;
    this.point(moved);
    this.cursor.scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  point(place) {
    this.place = place;
    const { row, column } = place;
    for (const [name, value] of Object.entries(this.corner(row, column))) this.cursor.setAttribute(name, value);
    const isBest = this.best[row] === column ? ", the best of its row" : "";
    this.readout.textContent =
      `query vector ${row + 1}, document vector ${column + 1}: ${this.matrix[row][column].toFixed(3)}${isBest}`;
  }

  /** The same numbers as a table. */
  table() {
    const columns = this.matrix[0].map((_, column) => make("th", { scope: "col" }, String(column + 1)));
    const rows = this.matrix.map((row, index) => make("tr", {},
      make("th", { scope: "row" }, String(index + 1)),
      make("td", {}, make("b", {}, row[this.best[index]].toFixed(3)), ` at ${this.best[index] + 1}`),
      row.map((value, column) => make("td", { class: column === this.best[index] ? "top" : null }, value.toFixed(2)))));
    return make("table", { class: "numbers" },
      make("caption", { class: "hidden" }, "Similarity of each query vector (rows) with each document vector (columns)"),
      make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "query"), make("th", { scope: "col" }, "best"), columns)),
      make("tbody", {}, rows));
  }
}
