// The image of a query: picked, dropped or pasted, as a data URI. One that the service would refuse
// for its size is made smaller here. Knows nothing of searching.

import { $ } from "./dom.js";

const ENCODED_SHARE = 0.7; // base64 takes 4/3 of the bytes, and the request holds more than the image

export class Picture {
  /** @param {{onChange: () => void, onProblem: (message: string) => void}} listeners */
  constructor({ onChange, onProblem }) {
    this.uri = null;
    this.limits = {};
    this.onChange = onChange;
    this.onProblem = onProblem;
    $("pick").addEventListener("click", () => $("image").click());
    $("image").addEventListener("change", () => this.take($("image").files[0]));
    $("drop-image").addEventListener("click", () => { this.clear(); $("text").focus(); onChange(); });
    document.addEventListener("paste", (event) => this.takeFirst(event.clipboardData.files, event));
    this.watchDrops();
  }

  clear() {
    this.uri = null;
    $("image").value = "";
    $("preview").hidden = true;
  }

  async take(file) {
    if (!file) return;
    try {
      this.uri = await dataUri(await fitting(file, this.limits));
    } catch {
      return this.onProblem(`"${file.name}" cannot be read as an image.`);
    }
    $("image").value = "";
    $("preview").hidden = false;
    $("preview").querySelector("img").src = this.uri;
    this.onChange();
  }

  takeFirst(files, event) {
    if (!files?.length) return;
    event.preventDefault();
    this.take([...files].find((file) => file.type.startsWith("image/")) ?? files[0]);
  }

  watchDrops() {
    const veil = (visible) => (event) => {
      if (![...(event.dataTransfer?.types ?? [])].includes("Files")) return;
      event.preventDefault();
      $("veil").hidden = !visible;
    };
    document.addEventListener("dragover", veil(true));
    document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) veil(false)(event); });
    document.addEventListener("drop", (event) => {
      veil(false)(event);
      this.takeFirst(event.dataTransfer?.files, event);
    });
  }
}

async function fitting(file, { max_image_pixels: pixels = Infinity, max_body_bytes: bytes = Infinity }) {
  const bitmap = await createImageBitmap(file); // rejects what is no image
  const scale = Math.min(1, Math.sqrt(pixels / (bitmap.width * bitmap.height)));
  const fits = scale === 1 && file.size <= ENCODED_SHARE * bytes;
  if (fits) return file;
  return shrunk(bitmap, scale === 1 ? Math.min(1, Math.sqrt((ENCODED_SHARE * bytes) / file.size)) : 0.99 * scale);
}

function shrunk(bitmap, scale) {
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.floor(bitmap.width * scale));
  canvas.height = Math.max(1, Math.floor(bitmap.height * scale));
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.92));
}

function dataUri(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}
