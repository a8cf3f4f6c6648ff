// Calls the HTTP interface, which scripts can use just as well; errors come as sentences.

export const API = new URL("../api/v1/", import.meta.url);

export class ApiError extends Error {
  constructor(status, message, retryAfterS = 0) {
    super(message);
    this.status = status;
    this.retryAfterS = retryAfterS;
  }
}

export function url(path, query = {}) {
  const whole = new URL(path, API);
  for (const [name, value] of Object.entries(query)) {
    if (value !== "" && value !== null && value !== undefined) whole.searchParams.set(name, value);
  }
  return whole;
}

export const forkPath = (id) => `forks/${encodeURIComponent(id)}`;
export const get = (path, query, timeoutS) => call("GET", path, { query, timeoutS });
export const post = (path, body) => call("POST", path, { body });
export const patch = (path, body) => call("PATCH", path, { body });
export const remove = (path) => call("DELETE", path, {});

/** Call it; return the answer's JSON, null if it has none. */
async function call(method, path, { query, body, timeoutS = 15 }) {
  const response = await answered(url(path, query), {
    method,
    headers: body
      ? { "Content-Type": "application/json", Accept: "application/json" }
      : { Accept: "application/json" },
    body: body ? JSON.stringify(body) : undefined,
    signal: AbortSignal.timeout(timeoutS * 1000),
  });
  return response.status === 204 ? null : response.json();
}

/** Fetch; throw ApiError if there is no answer, or if it is an error. */
export async function answered(where, options) {
  let response;
  try {
    response = await fetch(where, { credentials: "same-origin", cache: "no-store", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(
      0,
      error.name === "TimeoutError"
        ? "audiofork has not answered in time"
        : "audiofork does not answer",
    );
  }
  if (!response.ok) throw await errorOf(response);
  return response;
}

async function errorOf(response) {
  let problem = {};
  try {
    problem = await response.json();
  } catch {
    // A proxy between may answer in its own way.
  }
  const error = new ApiError(
    response.status,
    problem.detail || problem.title || `audiofork answers ${response.status}`,
    Number(response.headers.get("Retry-After")) || 0,
  );
  if (response.status === 401) window.dispatchEvent(new Event("signed-out"));
  return error;
}
