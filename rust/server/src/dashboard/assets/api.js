// Calls of the sidecar. A session is a cookie that no script can read, and a key that is kept here.

const KEY = "bursar.key";

export class Failed extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export const isSignedIn = () => localStorage.getItem(KEY) !== null;

function headers(more = {}) {
  return { "x-bursar-key": localStorage.getItem(KEY) ?? "-", ...more };
}

async function answered(response) {
  if (response.ok) return response;
  let message = `${response.status} ${response.statusText}`;
  try {
    message = (await response.json()).error.message;
  } catch {
    // Not one of the sidecar's own answers: the status says all.
  }
  throw new Failed(response.status, message);
}

async function request(path, options) {
  try {
    return await answered(await fetch(path, { ...options, credentials: "same-origin" }));
  } catch (error) {
    if (error instanceof TypeError) throw new Failed(0, "The sidecar does not answer.");
    throw error;
  }
}

export async function get(path, params = {}) {
  const query = Object.entries(params).map(([name, value]) => `${name}=${encodeURIComponent(value)}`);
  const response = await request(`${path}?${query.join("&")}`, { headers: headers() });
  return response.json();
}

export async function post(path, body) {
  const response = await request(path, {
    method: "POST",
    headers: headers({ "content-type": "application/json" }),
    body: JSON.stringify(body),
  });
  return response.json();
}

export async function signIn(token) {
  const { key } = await post("/api/session", { token });
  localStorage.setItem(KEY, key);
}

export async function signOut() {
  await post("/api/session/end", {}).catch(() => {});
  localStorage.removeItem(KEY);
}

/** Calls `take` with the text of each message of the live picture, until it ends or is aborted. */
export async function watch(take, signal) {
  const response = await request("/api/live", { headers: headers(), signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const messages = (rest + value).split("\n\n");
    rest = messages.pop();
    for (const message of messages) take(message.slice("data: ".length));
  }
}
