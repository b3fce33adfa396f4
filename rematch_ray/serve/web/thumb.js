// A document in a box: its image, or else its words.

import { imageOf } from "./api.js";
import { make } from "./dom.js";
import { titleOf } from "./format.js";

/** Filled once the image is here; until then, and where there is none, it holds the words. */
export function thumb(hit) {
  const words = make("p", { class: "words" }, textOf(hit));
  const box = make("div", { class: "thumb" }, words);
  if (hit.payload?.media || hit.payload?.uri) box.classList.add("waiting");
  imageOf(hit).then((url) => {
    box.classList.remove("waiting");
    if (!url) return;
    const image = make("img", { alt: "", src: url }); // the title stands beside every box, in words
    image.addEventListener("error", () => box.replaceChildren(words)); // bytes that are no image
    box.replaceChildren(image);
  });
  return box;
}

function textOf(hit) {
  const { text } = hit.payload ?? {};
  return typeof text === "string" && text.trim() ? text : titleOf(hit);
}
