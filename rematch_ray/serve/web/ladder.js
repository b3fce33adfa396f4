// The ladder of budgets, from what /v1/info lists. Knows no elements.

/**
 * @typedef {object} Rung
 * @property {string} name       as the API takes it: auto, fused, 8x16
 * @property {string} label      as people read it
 * @property {string[]} aliases  other names that stand for it
 * @property {number} queries    query vectors compared
 * @property {number} documents  document vectors compared
 */

/** Every position of the slider: auto, then the ladder upwards. */
export function rungsOf(budgets) {
  const aliases = new Map();
  for (const [name, rung] of Object.entries(budgets)) {
    if (name === "auto") continue;
    aliases.set(rung, [...(aliases.get(rung) ?? []), ...(name === rung ? [] : [name])]);
  }
  const ladder = [...aliases].map(([name, others]) => ({ name, ...parse(name), aliases: others }));
  ladder.sort((a, b) => a.queries * a.documents - b.queries * b.documents || (a.name === "fused" ? -1 : 1));
  const auto = { name: "auto", label: "auto", queries: 0, documents: 0, aliases: [] };
  return "auto" in budgets ? [auto, ...ladder] : ladder;
}

function parse(name) {
  const [, queries, documents] = /^(\d+)x(\d+)$/.exec(name) ?? [];
  if (!queries) return { label: name, queries: 1, documents: 1 };
  return { label: `${queries}×${documents}`, queries: Number(queries), documents: Number(documents) };
}

/** What a rung means, in a few words. */
export function meaningOf(rung) {
  if (rung.name === "auto") return "the service chooses, and may go lower under load";
  if (rung.name === "fused") return "one fused vector on each side";
  const some = (n, side) => `${n} ${side} vector${n === 1 ? "" : "s"}`;
  return `${some(rung.queries, "query")} × ${some(rung.documents, "document")}`;
}

/** The rung of a name or an alias, or undefined. */
export const findRung = (rungs, name) =>
  rungs.find((rung) => rung.name === name || rung.aliases.includes(name));
