// The HTTP API as the page uses it; the same that everybody else calls. The key of this tab lives in
// sessionStorage and travels in a header, never in an address. Knows no elements.

const KEY = "api-key";

/** A refusal, in the API's own words. */
export class ApiError extends Error {
  constructor(message, { status = 0, code = "", retryAfter = null } = {}) {
    super(message);
    Object.assign(this, { status, code, retryAfter });
  }
}

export const hasKey = () => Boolean(sessionStorage.getItem(KEY));

export function setKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
  forgetImages();
}

async function call(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...options.headers, ...(key && { authorization: `Bearer ${key}` }) };
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch (failure) {
    if (failure.name === "AbortError") throw failure;
    throw new ApiError("The server does not answer. Is it still running?");
  }
  if (!answer.ok) throw await refusal(answer);
  return answer;
}

async function refusal(answer) {
  const body = await answer.json().catch(() => null);
  const { message = `The server answered ${answer.status}.`, code = "" } = body?.error ?? {};
  const retryAfter = Number(answer.headers.get("retry-after")) || null;
  return new ApiError(message, { status: answer.status, code, retryAfter });
}

/** What is served: model, index, budgets and limits. */
export const info = async () => (await call("v1/info")).json();

/**
 * One search.
 * @returns {Promise<object>} the API's answer, and `roundTripMs` as seen from here
 */
export async function search(request, signal) {
  const started = performance.now();
  const answer = await call("v1/search", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(request),
    signal,
  });
  const found = await answer.json();
  return { ...found, roundTripMs: performance.now() - started };
}

const images = new Map(); // document id -> promise of an object URL, or of null
const MOST_IMAGES = 400;

/**
 * A document's image as an object URL; null when it has none. Fetched rather than linked: an <img>
 * cannot send the key.
 */
export function imageOf(hit) {
  if (!hit.payload?.media && !hit.payload?.uri) return Promise.resolve(null);
  if (!images.has(hit.id)) {
    if (images.size >= MOST_IMAGES) forgetImages();
    images.set(hit.id, fetchImage(hit.id));
  }
  return images.get(hit.id);
}

async function fetchImage(id) {
  try {
    const answer = await call(`v1/documents/${encodeURIComponent(id)}/image`);
    return URL.createObjectURL(await answer.blob());
  } catch (failure) {
    if (!(failure instanceof ApiError)) throw failure;
    // 404 is an answer: there is no image. Anything else may pass, so it is asked again next time.
    if (failure.status !== 404) images.delete(id);
    return null;
  }
}

function forgetImages() {
  for (const url of images.values()) url.then((it) => it && URL.revokeObjectURL(it));
  images.clear();
}
