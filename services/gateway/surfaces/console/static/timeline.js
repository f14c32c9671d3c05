// A run's events as bars over time: its wait, steps, model and tool calls, runs of other agents, questions to people. `build` is arithmetic
// alone; `paint` draws what it made.

import { button, count, drawing, element, entry, icon, json, lasting, money, plain } from "./dom.js";

const FIRST_ROWS = 800;
const ENDED = { run_finished: "done", run_failed: "failed", run_cancelled: "stopped" };

export function build(events, now = Date.now()) {
  const bars = [];
  const marks = [];
  const attempts = [];
  const open = new Map();
  const totals = { input: 0, output: 0, cost: 0, models: 0, tools: 0, warnings: 0 };
  let started = null;
  let last = null;
  let status = "";
  let step = 0;

  const begin = (key, kind, label, at, more = {}) => {
    const bar = { kind, label, from: at, to: null, status: "open", step, ...more };
    bars.push(bar);
    open.set(key, bar);
    return bar;
  };
  const end = (key, at, outcome = "done", more = {}) => {
    const bar = open.get(key);
    if (!bar) return null;
    open.delete(key);
    return Object.assign(bar, { to: at, status: outcome }, more);
  };
  const endAll = (at, outcome) => [...open.keys()].forEach((key) => end(key, at, outcome));
  const mark = (at, kind, text, detail) => marks.push({ at, kind, text, detail });

  for (const event of events) {
    const at = Date.parse(event.ts);
    if (Number.isNaN(at)) continue;
    const { type, data = {} } = event;
    started ??= at;
    last = at;
    if (event.attempt && event.attempt !== attempts.at(-1)?.number) {
      if (attempts.length) attempts.at(-1).to = at;
      attempts.push({ number: event.attempt, from: at, to: null });
    }
    switch (type) {
      case "run_queued": begin("queue", "queue", "Waiting to start", at); break;
      case "run_started": end("queue", at); break;
      case "step_started":
        end("queue", at);
        step = data.step;
        begin(`step ${step} ${data.name || ""}`, "step", data.name ? `Step ${step}: ${plain(data.name, 60)}` : `Step ${step}`, at);
        if (!data.name || data.request_digest) begin(`model ${step}`, "model", "Model call", at);
        break;
      case "message_delta": {
        const model = open.get(`model ${step}`);
        if (model) model.first ??= at;
        break;
      }
      case "usage": {
        const told = { model: data.model, provider: data.provider, tokens: (data.input_tokens || 0) + (data.output_tokens || 0),
          cost: data.cost_microusd || 0, detail: data };
        if (!end(`model ${data.step}`, at, data.lost ? "failed" : data.stopped ? "stopped" : "done", told)) {
          bars.push({ kind: "model", label: data.lost ? "Lost model call" : "Model call", from: at, to: at, status: data.lost ? "failed"
            : "done", step: data.step, ...told });
        }
        totals.models += data.model_calls || 1;
        totals.input += data.input_tokens || 0;
        totals.output += data.output_tokens || 0;
        totals.cost += data.cost_microusd || 0;
        break;
      }
      case "step_completed":
        end(`model ${data.step}`, at);
        end(`step ${data.step} ${data.name || ""}`, at);
        break;
      case "tool_call_started":
        totals.tools += 1;
        begin(`tool ${data.call_id}`, "tool", plain(data.tool, 80), at, { detail: { arguments: data.arguments } });
        break;
      case "tool_call_completed": case "tool_call_failed": {
        const failed = type === "tool_call_failed";
        const bar = end(`tool ${data.call_id}`, at, failed ? "failed" : "done");
        if (bar) bar.detail = { ...bar.detail, ...(failed ? { error: data.error } : { output: data.output }) };
        break;
      }
      case "child_run_started": begin(`child ${data.run_id}`, "child", `Agent ${plain(data.agent, 60)}`, at, { run: data.run_id }); break;
      case "child_run_finished": end(`child ${data.run_id}`, at, data.status === "succeeded" ? "done" : "failed", { detail: data }); break;
      case "interrupt_raised":
        if (data.interrupt_id) begin(`ask ${data.interrupt_id}`, "wait", `A person decides on ${plain(data.tool, 60)}`, at,
          { detail: { arguments: data.arguments } });
        break;
      case "interrupt_resolved": end(`ask ${data.interrupt_id}`, at, data.outcome === "approved" || data.outcome === "answered" ? "done"
        : "failed"); break;
      case "warning":
        totals.warnings += 1;
        mark(at, "warning", data.user_message || plain(data.code, 80), data);
        break;
      case "attempt_superseded":
        endAll(at, "lost");
        mark(at, "attempt", "Another worker took the run over", data);
        break;
      case "log_gap": mark(at, "attempt", "The store lost what was written last", data); break;
      case "guard_triggered": mark(at, "warning", `Guard: ${plain(data.stage, 20)}, ${plain(data.action, 20)}`, data); break;
      case "steer_applied": mark(at, "steer", `Steered: ${plain(data.text, 120)}`, data); break;
      case "memory_recalled": if (data.parts) mark(at, "memory", `Recalled ${count(data.parts)} parts`, data); break;
      case "citation": mark(at, "memory", `Cited ${plain(data.title || data.document_id, 80)}`, data); break;
    }
    if (entry(ENDED, type)) {
      status = ENDED[type];
      endAll(at, status === "done" ? "done" : status);
    }
  }
  const finish = status ? last : Math.max(last ?? 0, now);
  for (const bar of bars) bar.to ??= finish;
  if (attempts.length) attempts.at(-1).to = finish;
  return { start: started ?? 0, end: Math.max(finish, (started ?? 0) + 1), bars, marks, attempts, totals, status, events: events.length };
}

const KIND = { queue: "Queue", step: "Step", model: "Model", tool: "Tool", child: "Agent", wait: "Person" };
const WORD = { done: "", open: "at work", failed: "failed", stopped: "stopped", lost: "taken over" };

function bar(made, { from, to, first, kind, status }) {
  const span = made.end - made.start;
  const box = element("span", { class: "bar-fill", "data-kind": kind, "data-status": status });
  box.style.left = `${((from - made.start) / span) * 100}%`;
  box.style.width = `${Math.max(0.3, ((to - from) / span) * 100)}%`;
  if (first > from && to > from) {
    const wait = element("span", { class: "bar-wait" });
    wait.style.width = `${((first - from) / (to - from)) * 100}%`;
    box.append(wait);
  }
  return element("span", { class: "track", "aria-hidden": "true" }, box);
}

// What a row has to tell is written below it when it is asked for.
function disclose(line, one, event) {
  const open = event.currentTarget.getAttribute("aria-expanded") !== "true";
  event.currentTarget.setAttribute("aria-expanded", String(open));
  if (!open) return line.nextElementSibling.remove();
  const shown = element("pre", { tabIndex: 0 }, json(one.detail).slice(0, 40_000));
  return line.after(element("tr", { class: "detail" }, element("td", { colSpan: 5 }, shown)));
}

function row(made, one) {
  const line = element("tr", { class: `row ${one.kind}` });
  const name = one.detail === undefined ? element("span", {}, one.label)
    : element("button", { type: "button", class: "disclose", "aria-expanded": "false", onclick: (event) => disclose(line, one, event) },
      one.label);
  const run = one.run ? element("a", { class: "note", href: `#/runs/${encodeURIComponent(one.run)}` }, "its run") : null;
  const model = one.model ? element("span", { class: "note" }, plain(one.model, 60)) : null;
  const word = WORD[one.status] ? element("span", { class: "note", "data-status": one.status }, WORD[one.status]) : null;
  line.append(
    element("th", { scope: "row" }, element("i", { class: "kind", "data-kind": one.kind, "aria-hidden": "true" }, KIND[one.kind]), name,
      ...[run, model, word].filter(Boolean)),
    element("td", { class: "number" }, `+${lasting(one.from - made.start)}`), element("td", { class: "bars" }, bar(made, one)),
    element("td", { class: "number" }, lasting(one.to - one.from)),
    element("td", { class: "number" }, one.tokens ? `${count(one.tokens)} tok` : "", one.cost ? ` ${money(one.cost)}` : ""));
  return line;
}

function ruler(made) {
  const span = made.end - made.start;
  const place = (at) => ((at - made.start) / span) * 1000;
  const line = drawing("svg", { class: "ruler", viewBox: "0 0 1000 16", preserveAspectRatio: "none", "aria-hidden": "true" });
  for (const attempt of made.attempts) {
    line.append(drawing("rect", { class: `attempt a${attempt.number % 2}`, x: place(attempt.from), y: 5, width: Math.max(1,
      place(attempt.to) - place(attempt.from)), height: 6, rx: 3 }));
  }
  for (const { at, kind } of made.marks.slice(0, 500)) line.append(drawing("rect", { class: `mark ${kind}`, x: Math.min(997, place(at)),
    y: 1, width: 3, height: 14, rx: 1 }));
  return line;
}

export function paint(made) {
  const shown = made.bars.slice(0, FIRST_ROWS);
  const body = element("tbody", {}, ...shown.map((one) => row(made, one)));
  const rest = made.bars.length - shown.length;
  const more = rest > 0 ? button(`Show ${count(rest)} more`, { kind: "small ghost",
    onclick: () => (body.append(...made.bars.slice(FIRST_ROWS).map((one) => row(made, one))), more.remove()) }) : null;
  const told = made.marks.slice(0, 200).map(({ at, kind, text }) => element("li", { "data-kind": kind }, icon(kind === "warning"
    ? "warning" : "dot"), element("time", {}, `+${lasting(at - made.start)}`), element("span", { dir: "auto" }, text)));
  return [
    element("div", { class: "scroller timeline", tabIndex: 0, role: "region", "aria-label": "Timeline" },
      element("table", {}, element("caption", {}, `${count(made.events)} events in ${lasting(made.end - made.start)}`),
        element("thead", {}, element("tr", {}, ...["What", "Start", "Over time", "Took", "Used"].map((name, index) =>
          element("th", { scope: "col", class: index === 2 ? "bars" : index ? "number" : null }, name, index === 2 ? ruler(made)
            : null)))), body)),
    more, told.length ? element("section", { class: "marks-list" }, element("h3", {}, "What happened on the way"), element("ol", {},
      ...told)) : null,
  ].filter(Boolean);
}
