// The last messages of the last threads, kept in this tab so that a page that is loaded again shows them at once. Gone at sign-out.

const PREFIX = "bulkhead.thread.";
const THREADS = 8;
const MOST_CHARACTERS = 150_000;
const MOST_EVENTS = 600;

const names = () => Object.keys(sessionStorage).filter((name) => name.startsWith(PREFIX));

function parsed(name) {
  try {
    return JSON.parse(sessionStorage.getItem(name)) || null;
  } catch {
    return null;
  }
}

export function read(thread) {
  const kept = parsed(PREFIX + thread);
  return kept && Array.isArray(kept.events) ? kept : { events: [], title: "", at: 0 };
}

// Whole runs from the end of the log on, as many as fit; of a run that has ended what was provisional is left out.
export function keep(thread, events) {
  const ended = new Set(events.filter((event) => /^run_(finished|failed|cancelled)$/.test(event.type)).map((event) => event.run_id));
  const lasting = events.filter((event) => !(event.provisional && ended.has(event.run_id)));
  const first = events.find((event) => event.type === "run_queued");
  let from = Math.max(0, lasting.length - MOST_EVENTS);
  let text = "";
  while (from <= lasting.length) {
    while (from > 0 && from < lasting.length && lasting[from].type !== "run_queued") from += 1;
    text = JSON.stringify({ events: lasting.slice(from), whole: from === 0, title: titled(first), at: Date.now() });
    if (text.length <= MOST_CHARACTERS) break;
    from += 1;
  }
  const others = names().filter((name) => name !== PREFIX + thread).sort((a, b) => (parsed(a)?.at || 0) - (parsed(b)?.at || 0));
  while (others.length >= THREADS) sessionStorage.removeItem(others.shift());
  try {
    sessionStorage.setItem(PREFIX + thread, text);
  } catch {
    // The browser's own limit is smaller than ours: nothing is kept, and the thread is read from its log next time.
    forget();
  }
}

export function titled(event) {
  const said = (event?.data?.input || []).at(-1);
  return String(said?.text ?? said?.content ?? "").replace(/\s+/g, " ").trim().slice(0, 80);
}

export const drop = (thread) => sessionStorage.removeItem(PREFIX + thread);
export const forget = () => names().forEach((name) => sessionStorage.removeItem(name));
