// One run: what it is, its timeline, its answer, and its events as they are.

import { ENDS, follow, get, path, post } from "./api.js";
import { announce, button, count, element, explain, json, lasting, moment, money, plain, state } from "./dom.js";
import { chip } from "./runs.js";
import { tabs } from "./tabs.js";
import { build, paint } from "./timeline.js";
import { Conversation } from "./turn.js";

const EVENTS_AT_ONCE = 200;
const REPAINT_MS = 250;

export class RunView {
  constructor(node) {
    Object.assign(this, { node, abort: null });
  }

  leave() {
    this.abort?.abort();
  }

  async open(runId) {
    this.leave();
    const { signal } = (this.abort = new AbortController());
    performance.clearMarks("run-open");
    performance.mark("run-open");
    this.node.replaceChildren(state("loading", "Reading the run", ""));
    try {
      const run = await get(path`/v1/runs/${runId}`, { signal });
      this.show(run);
      let due = false;
      const repaint = () => ((due = false), signal.aborted || this.paint());
      for await (const event of follow(runId, { signal })) {
        this.events.push(event);
        if (!due && !ENDS.has(event.type)) {
          due = true;
          setTimeout(repaint, REPAINT_MS);
        }
      }
      if (signal.aborted) return;
      if (run.status !== "succeeded" && run.status !== "failed"
        && run.status !== "cancelled") this.facts(await get(path`/v1/runs/${runId}`, { signal }));
      performance.clearMarks("run-read");
      performance.mark("run-read");
      this.paint();
      requestAnimationFrame(() => setTimeout(() => {
        performance.measure("run-open-to-paint", "run-open");
        performance.measure("run-paint", "run-read");
      }));
    } catch (error) {
      if (signal.aborted) return;
      this.node.replaceChildren(this.back(), state("failed", error.status === 404 ? "There is no such run" : "The run could not be read",
        explain(error),
        button("Try again", { onclick: () => this.open(runId) })));
    }
  }

  back() {
    return element("a", { class: "back", href: "#/runs" }, "← Runs");
  }

  show(run) {
    Object.assign(this, { events: [], drawn: false, run });
    this.head = element("dl", { class: "facts" });
    this.place = element("div");
    this.answer = element("div", { class: "log-like" });
    this.raw = element("div");
    this.cancel = button("Cancel the run", { kind: "danger small", onclick: () => this.end() });
    this.chip = element("span");
    const pages = tabs("Of this run", [
      ["Timeline", (panel) => panel.append(this.place)],
      ["Conversation", (panel) => (panel.append(this.answer), this.draw())],
      ["Events", (panel) => (panel.append(this.raw), this.list())],
    ]);
    this.node.replaceChildren(
      this.back(), element("header", { class: "page-head" }, element("h1", { tabIndex: -1, dir: "auto" }, plain(run.agent, 60)), this.chip,
        this.cancel),
      element("p", { class: "id" }, plain(run.run_id)), this.head, pages.node);
    this.place.append(state("loading", "Reading its events", ""));
    this.facts(run);
    this.node.querySelector("h1").focus({ preventScroll: true });
  }

  facts(run) {
    this.run = run;
    const ended = Boolean(run.ended_at);
    this.chip.replaceChildren(chip(run.status));
    this.cancel.hidden = ended;
    const { usage } = run;
    const thread = encodeURIComponent(run.thread_id);
    const rows = [
      ["Thread", element("a", { href: `#/chat/${thread}` }, plain(run.thread_id, 60)), element("a", { href: `#/replay/${thread}` },
        "Replay")],
      ["Version", plain(run.agent_version, 40)], ["Accepted", moment(run.created_at)],
      ["Took", ended ? lasting(Date.parse(run.ended_at) - Date.parse(run.started_at || run.created_at)) : "at work"],
      ["Tokens", `${count(usage.input_tokens)} in, ${count(usage.output_tokens)} out`], ["Cost", money(usage.cost_microusd)],
      ["Calls", `${count(usage.model_calls)} model, ${count(usage.tool_calls)} tool`], ["Attempts", run.attempt > 1
        ? `${run.attempt} (taken over)` : String(run.attempt)],
      run.parent_run_id ? ["Asked by", element("a", { href: `#/runs/${encodeURIComponent(run.parent_run_id)}` }, plain(run.parent_run_id,
        40))] : null,
      run.queue_position ? ["Queue", `position ${run.queue_position}`] : null,
      run.error ? ["Error", element("span", { class: "no" }, plain(run.error.message, 300)), element("code", {}, plain(run.error.reason,
        60))] : null,
    ];
    this.head.replaceChildren(...rows.filter(Boolean).map(([name, ...values]) => element("div", {}, element("dt", {}, name), element("dd",
      {}, ...values.flatMap((value) => [value, " "])))));
  }

  paint() {
    const made = build(this.events);
    if (this.events.length) this.place.replaceChildren(...paint(made));
    else this.place.replaceChildren(state("empty", "No events yet", "The run has not begun to tell anything."));
    // What nobody has opened yet is not drawn.
    if (this.answer.isConnected && this.drawn) this.draw();
    if (this.raw.hasChildNodes()) this.list();
  }

  draw() {
    this.drawn = true;
    this.answer.replaceChildren();
    const conversation = new Conversation(this.answer, { live: false });
    this.events.forEach((event) => conversation.take(event));
  }

  // Raw events, some at a time; the JSON of one is written when it is opened.
  list() {
    const types = [...new Set(this.events.map((event) => event.type))].sort();
    const before = this.raw.querySelector("select")?.value || "";
    const choice = element("select", { "aria-label": "Types of events", onchange: () => ((shown = EVENTS_AT_ONCE), draw()) },
      new Option("all types", ""), ...types.map((type) => new Option(plain(type, 60), type, false, type === before)));
    const told = element("span", { class: "note" });
    const rows = element("ol", { class: "raw" });
    const more = button("Show more", { kind: "small ghost", onclick: () => ((shown += EVENTS_AT_ONCE), draw()) });
    let shown = EVENTS_AT_ONCE;
    const start = Date.parse(this.events[0]?.ts);
    const draw = () => {
      const fitting = this.events.filter((event) => !choice.value || event.type === choice.value);
      rows.replaceChildren(...fitting.slice(0, shown).map((event) => rawEvent(event, start)));
      told.textContent = `${count(Math.min(shown, fitting.length))} of ${count(fitting.length)}`;
      more.hidden = fitting.length <= shown;
    };
    this.raw.replaceChildren(element("div", { class: "filters" }, element("label", {}, "Type ", choice), told), rows, more);
    draw();
  }

  async end() {
    this.cancel.disabled = true;
    try {
      await post(path`/v1/runs/${this.run.run_id}/cancel`, { reason: "cancelled in the console" });
      announce("The run is being cancelled.");
    } catch (error) {
      announce(explain(error), true);
    }
    this.cancel.disabled = false;
  }
}

export function rawEvent(event, start) {
  const shown = element("pre", { tabIndex: 0 });
  const brief = plain(JSON.stringify(event.data), 160);
  const box = element("details", {}, element("summary", {}, element("span", { class: "seq" }, String(event.seq)), element("b", {},
    plain(event.type, 60)),
    element("time", {}, `+${lasting(Date.parse(event.ts) - start)}`), element("span", { class: "brief" }, brief)), shown);
  box.addEventListener("toggle", () => (shown.textContent ||= json(event)), { once: true });
  return element("li", { class: event.provisional ? "provisional" : null }, box);
}
