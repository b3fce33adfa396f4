// The API page: openapi.json as headings, tables and one example per path. Nothing is fetched from
// elsewhere, so it works offline.

import { $, make } from "./dom.js";

const named = (reference) => reference.split("/").pop();

function typeName(schema) {
  if (!schema) return "";
  if (schema.$ref) return named(schema.$ref);
  const choices = schema.anyOf ?? schema.oneOf;
  if (choices) return choices.map(typeName).join(" | ");
  if (schema.enum ?? schema.const !== undefined) return (schema.enum ?? [schema.const]).map((v) => JSON.stringify(v)).join(" | ");
  if (schema.type === "array") return `list of ${typeName(schema.items)}`;
  return schema.type ?? "any";
}

function fieldTable(schema) {
  const required = new Set(schema.required ?? []);
  const rows = Object.entries(schema.properties ?? {}).map(([name, field]) => {
    const fallback = field.default === undefined || field.default === null ? "" : JSON.stringify(field.default);
    return make("tr", {},
      make("td", {}, make("code", {}, required.has(name) ? `${name} *` : name)),
      make("td", {}, typeName(field)),
      make("td", {}, fallback),
      make("td", {}, field.description ?? ""));
  });
  const head = make("tr", {}, ["field", "type", "default", "meaning"].map((word) => make("th", { scope: "col" }, word)));
  return make("div", { class: "scroll" }, make("table", {}, make("thead", {}, head), make("tbody", {}, rows)));
}

const isSuccess = (code) => code.startsWith("2");

/** What an answer is: the type of its JSON, or the media type of what is none. */
function answerType(content = {}) {
  const json = content["application/json"];
  return json ? typeName(json.schema) : Object.keys(content).join(", ");
}

/** Parameters in the form that fields of a body have. */
function parametersAsFields(parameters) {
  const named = parameters.map((it) => [it.name, { description: `in the ${it.in}`, ...it.schema }]);
  return {
    required: parameters.filter((it) => it.required).map((it) => it.name),
    properties: Object.fromEntries(named),
  };
}

function operation(path, verb, details) {
  const body = [make("p", {}, details.description ?? "")];
  if (details.security?.length) body.push(make("p", { class: "quiet" }, "Asks for an API key."));
  if (details.parameters?.length) body.push(fieldTable(parametersAsFields(details.parameters)));
  const request = details.requestBody?.content?.["application/json"]?.schema;
  if (request) body.push(make("p", {}, "Takes ", make("code", {}, typeName(request))));
  const answers = Object.entries(details.responses ?? {});
  for (const [code, { content }] of answers.filter(([code]) => isSuccess(code))) {
    body.push(make("p", {}, `Answers ${code}, `, make("code", {}, answerType(content))));
  }
  if (path === "/v1/search") body.push(make("pre", {}, example()));
  const codes = answers.map(([code]) => code).filter((code) => !isSuccess(code));
  if (codes.length) body.push(make("p", { class: "quiet" }, `Failures, as ErrorBody: ${codes.join(", ")}`));
  const summary = make("summary", {}, make("span", { class: "verb" }, verb.toUpperCase()), make("code", {}, path));
  return make("details", { open: path === "/v1/search" }, summary, ...body);
}

function example() {
  return `curl ${location.origin}/v1/search \\\n  -H 'content-type: application/json' \\\n` +
    `  -d '{"query": "an otter", "budget": "full", "top_k": 3}'`;
}

async function start() {
  const answer = await fetch("openapi.json");
  if (!answer.ok) throw new Error(`status ${answer.status}`);
  const api = await answer.json();
  const paths = Object.entries(api.paths)
    .sort(([a], [b]) => b.startsWith("/v1/") - a.startsWith("/v1/")) // health and metrics last
    .flatMap(([path, verbs]) =>
      Object.entries(verbs).map(([verb, details]) => operation(path, verb, details)));
  const types = Object.entries(api.components?.schemas ?? {}).map(([name, schema]) =>
    make("details", {}, make("summary", {}, make("code", {}, name)), make("p", {}, schema.description ?? ""), fieldTable(schema)));
  $("api").replaceChildren(
    make("p", {}, api.info.description),
    make("p", {}, api.components?.securitySchemes
      ? "Send 'Authorization: Bearer KEY' or 'x-api-key: KEY' with calls that ask for a key."
      : "No key is asked for here."),
    make("h2", {}, "Paths"), ...paths, make("h2", {}, "Types"), ...types);
}

start().catch((failed) => $("api").replaceChildren(
  make("p", { role: "alert" }, `openapi.json could not be read (${failed.message}). Reload the page, or look whether the service runs.`)));
