// Numbers and names as people read them. Knows no elements.

export function ms(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  return `${value < 10 ? value.toFixed(1) : Math.round(value).toLocaleString("en")} ms`;
}

export const count = (value) => Number(value ?? 0).toLocaleString("en");

export const plural = (value, noun) => `${count(value)} ${noun}${value === 1 ? "" : "s"}`;

/** 12345678 -> 12.3 M */
export function short(value) {
  const units = [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e4, "k"]];
  const [size, name] = units.find(([least]) => Math.abs(value) >= least) ?? [];
  if (!size) return count(value);
  const scaled = value / (name === "k" ? 1e3 : size);
  return `${scaled < 100 ? scaled.toFixed(1) : Math.round(scaled)} ${name}`;
}

export function bytes(value) {
  const power = value < 1024 ? 0 : Math.min(4, Math.floor(Math.log2(value) / 10));
  const scaled = value / 1024 ** power;
  return `${power && scaled < 100 ? scaled.toFixed(1) : Math.round(scaled)} ${["B", "KiB", "MiB", "GiB", "TiB"][power]}`;
}

export const percent = (share) => `${(100 * share).toFixed(share >= 0.9995 ? 0 : 1)} %`;

/** 8x16 -> 8×16 */
export const rung = (name) => String(name ?? "").replace(/^(\d+)x(\d+)$/, "$1×$2");

export const score = (value) => (Math.abs(value) < 0.1 ? value.toFixed(4) : value.toFixed(3));

/** What a document is called: the first of the usual fields that holds words, else its id. */
export function titleOf(hit) {
  const { name, title, caption, text } = hit.payload ?? {};
  return [name, title, caption, text].find((value) => typeof value === "string" && value.trim()) ?? hit.id;
}
