// Elements from plain values. Text enters as text nodes and attributes only: nothing that a payload
// says is ever read as markup. (The page's policy for Trusted Types forbids the other way.)

const SVG = "http://www.w3.org/2000/svg";

export const $ = (id) => document.getElementById(id);

/**
 * An HTML element.
 * @param {string} tag
 * @param {object} attributes  `on` holds listeners, `style` CSS properties; true sets an empty
 *   attribute, false and null set none
 * @param {...(Node|string)} children
 */
export function make(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same in SVG. */
export function draw(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, { on = {}, style = {}, ...attributes }, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    element.setAttribute(name, value === true ? "" : value);
  }
  for (const [event, listener] of Object.entries(on)) element.addEventListener(event, listener);
  for (const [name, value] of Object.entries(style)) element.style.setProperty(name, value);
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** Terms and what they are, as a description list; pairs without a value are left out. */
export function facts(pairs, attributes = {}) {
  const known = pairs.filter(([, value]) => value !== null && value !== undefined && value !== "");
  return make("dl", attributes, known.map(([term, value, note]) =>
    make("div", { title: note }, make("dt", {}, term), make("dd", {}, value))));
}
