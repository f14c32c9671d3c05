// Calls of the native API, and its event streams. The key lives in this tab's session storage and nowhere else.

const KEY = "bulkhead.key";

export class Problem extends Error {
  constructor(status, body) {
    super(body.detail || body.title || `HTTP ${status}`);
    this.status = status;
    this.requestId = body.request_id || "";
    this.retryAfterMs = body.retry_after_ms || 0;
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEY) || "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

async function call(method, path, body, { accept = "application/json", signal, headers = {} } = {}) {
  const response = await fetch(path, {
    method,
    signal,
    cache: "no-store",
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

export const get = async (path) => (await call("GET", path)).json();
export const post = async (path, body) => (await call("POST", path, body)).json();

// Server-sent events of a response as {id, event, data}. Comments and events without data are passed over.
async function* frames(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    while (true) {
      const { value, done } = await reader.read();
      if (done) return;
      rest += value;
      let end;
      while ((end = rest.indexOf("\n\n")) >= 0) {
        const frame = parse(rest.slice(0, end));
        rest = rest.slice(end + 2);
        if (frame.data) yield frame;
      }
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

const ENDS = new Set(["run_finished", "run_failed", "run_cancelled"]);
const TRIES = 20;

// The events of a new run to its end. A broken connection is taken up again after the last number that came.
export async function* run(thread, body, onReconnect) {
  const opened = await call("POST", `/v1/threads/${encodeURIComponent(thread)}/runs`, { ...body, stream: true }, { accept: "text/event-stream" });
  const runId = opened.headers.get("x-bulkhead-run-id");
  yield { type: "accepted", run_id: runId, data: {} };
  let response = opened;
  let last = "0";
  let failures = 0;
  while (true) {
    try {
      for await (const frame of frames(response)) {
        failures = 0;
        if (frame.event === "stream_error") throw new Error("the stream was closed");
        last = frame.id || last;
        const event = JSON.parse(frame.data);
        yield event;
        if (ENDS.has(event.type) && event.run_id === runId) return;
      }
    } catch (error) {
      if (error instanceof SyntaxError) throw error;
    }
    do {
      failures += 1;
      if (failures > TRIES) throw new Error("The connection is lost. The run goes on; open the thread again to see it.");
      onReconnect(failures);
      await new Promise((done) => setTimeout(done, Math.min(150 * failures, 2000)));
      response = await call("GET", `/v1/runs/${encodeURIComponent(runId)}/events`, undefined, {
        accept: "text/event-stream",
        headers: { "last-event-id": last },
      }).catch((error) => {
        if (error instanceof Problem && error.status < 500) throw error;
        return null;
      });
    } while (!response);
  }
}
