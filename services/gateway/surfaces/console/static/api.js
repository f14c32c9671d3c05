// Calls of the native API, and its event streams. The key lives in this tab's session storage and nowhere else.

const KEY = "bulkhead.key";

export class Problem extends Error {
  constructor(status, body) {
    super(body.detail || body.title || `HTTP ${status}`);
    this.status = status;
    this.reason = body.reason || "";
    this.requestId = body.request_id || "";
    this.retryable = body.retryable ?? status >= 500;
    this.retryAfterMs = body.retry_after_ms || 0;
    this.body = body;
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEY) || "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

// A path of parts, each escaped. Ids of approvals keep their slashes: `whole` is escaped between them.
export const path = (strings, ...values) => strings.reduce((made, text, index) =>
  made + text + (index < values.length ? encodeURIComponent(values[index]) : ""), "");
export const whole = (id) => String(id).split("/").map(encodeURIComponent).join("/");

async function call(method, url, body, { accept = "application/json", signal, headers = {} } = {}) {
  const response = await fetch(url, {
    method,
    signal,
    cache: "no-store",
    credentials: "omit",
    headers: {
      accept,
      authorization: `Bearer ${key.get()}`,
      ...(body === undefined ? {} : { "content-type": "application/json" }),
      ...headers,
    },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  if (!response.ok) throw new Problem(response.status, await response.json().catch(() => ({})));
  return response;
}

// An answer that comes after its reader has signed out is nobody's.
async function own(asking) {
  const reader = key.get();
  const answer = await asking();
  if (key.get() !== reader) throw new Error("You have signed out.");
  return answer;
}

export const get = (url, options) => own(async () => (await call("GET", url, undefined, options)).json());
export const bytesOf = (url) => own(async () => (await call("GET", url, undefined, { accept: "*/*" })).arrayBuffer());

const pause = (ms) => new Promise((done) => setTimeout(done, ms));
const TRIES = 60;

// Something that changes something: said again under the same key until it is answered, so that it happens once.
export async function post(url, body) {
  const name = Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
  for (let tries = 1; ; tries += 1) {
    try {
      return await (await call("POST", url, body, { headers: { "idempotency-key": `console-${name}` } })).json();
    } catch (error) {
      const again = !(error instanceof Problem) || error.status >= 500 || error.reason === "IDEMPOTENCY_IN_FLIGHT";
      if (!again || tries >= 6) throw error;
      await pause(Math.min(200 * 2 ** tries, 3000));
    }
  }
}

// Server-sent events of a response as {id, event, data}. Comments and events without data are passed over.
async function* frames(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    while (true) {
      const { value, done } = await reader.read();
      if (done) return;
      rest += value;
      let at = 0;
      for (let end; (end = rest.indexOf("\n\n", at)) >= 0; at = end + 2) {
        const frame = parse(rest.slice(at, end));
        if (frame.data) yield frame;
      }
      rest = rest.slice(at);
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function parse(block) {
  const frame = { id: "", event: "message", data: "" };
  for (const line of block.split("\n")) {
    const colon = line.indexOf(":");
    if (colon <= 0) continue;
    const value = line.slice(colon + 1).replace(/^ /, "");
    if (line.startsWith("data:")) frame.data += value;
    else if (line.startsWith("id:")) frame.id = value;
    else if (line.startsWith("event:")) frame.event = value;
  }
  return frame;
}

export const ENDS = new Set(["run_finished", "run_failed", "run_cancelled"]);

// The events of a run after a number, to its end. A broken connection is taken up again after the last number that came.
export async function* follow(runId, { after = 0, signal, lost = () => {}, resumed = () => {} } = {}) {
  let last = String(after);
  for (let failures = 0; ; ) {
    try {
      const headers = last === "0" ? {} : { "last-event-id": last };
      const response = await call("GET", path`/v1/runs/${runId}/events`, undefined, { accept: "text/event-stream", headers, signal });
      for await (const frame of frames(response)) {
        if (frame.event === "stream_error") throw new Error("the stream was closed");
        if (failures) resumed();
        failures = 0;
        last = frame.id || last;
        const event = JSON.parse(frame.data);
        yield event;
        if (ENDS.has(event.type) && event.run_id === runId) return;
      }
    } catch (error) {
      if (signal?.aborted || error instanceof SyntaxError || (error instanceof Problem && error.status < 500
        && error.status !== 429)) throw error;
    }
    if (signal?.aborted) return;
    failures += 1;
    if (failures > TRIES) throw new Error("The connection is lost. The run goes on; open the thread again to see it.");
    lost(failures);
    await pause(Math.min(150 * failures, 2000));
  }
}

// Every entry of a list, page by page, up to `most`.
export async function list(url, most = 200) {
  const found = [];
  for (let after = null; found.length < most; ) {
    const query = new URLSearchParams({ limit: String(Math.min(100, most - found.length)), ...(after ? { after } : {}) });
    const page = await get(`${url}${url.includes("?") ? "&" : "?"}${query}`);
    found.push(...page.data);
    after = page.next_after;
    if (!after) break;
  }
  return found;
}
