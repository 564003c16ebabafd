// Asking the service. Every answer is JSON, every refusal a problem with a sentence in it.

const TIMEOUT_MILLISECONDS = 15_000;

export class ApiError extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

let onLoggedOut = () => {};
export function whenLoggedOut(callback) {
  onLoggedOut = callback;
}

export async function ask(path, { method = "GET", body = undefined, signal = undefined } = {}) {
  const limit = AbortSignal.timeout(TIMEOUT_MILLISECONDS);
  const options = {
    method,
    cache: "no-store",
    headers: { Accept: "application/json", ...(body === undefined ? {} : { "Content-Type": "application/json" }) },
    body: body === undefined ? undefined : JSON.stringify(body),
    signal: signal ? AbortSignal.any([signal, limit]) : limit,
  };
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ApiError(
      0,
      error.name === "TimeoutError" ? "control takes too long to answer" : "control does not answer",
    );
  }
  if (answer.status === 204) return null;
  let content = null;
  try {
    content = await answer.json();
  } catch {
    if (signal?.aborted) throw new DOMException("left", "AbortError");
    throw new ApiError(answer.status, `control answered ${answer.status} without saying why`);
  }
  if (answer.ok) return content;
  const error = new ApiError(answer.status, content?.detail ?? `control answered ${answer.status}`);
  if (answer.status === 401 && path !== "/sessions") onLoggedOut(error.message);
  throw error;
}

export function query(path, parameters) {
  const given = Object.entries(parameters).filter(([, value]) => value !== undefined && value !== null && value !== "");
  return `${path}?${new URLSearchParams(given)}`;
}
