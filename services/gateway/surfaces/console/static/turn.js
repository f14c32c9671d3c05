// One turn of a conversation, drawn from the events of its run. Live and replayed turns take the same way.

import { element, json, prose } from "./markup.js";

const STATUS = {
  thinking: "thinking", searching: "searching", calling_tool: "calling a tool", writing: "writing", waiting_approval: "waiting for approval",
};

export class Turn {
  constructor(log, agent, changed) {
    this.log = log;
    this.changed = changed;
    this.usage = null;
    this.ended = false;
    this.deltas = []; // {seq, message, text}, so that superseded text can be taken back
    this.messages = new Map();
    this.tools = new Map();
    this.sources = new Map();
    this.begun = 0;
    this.answer = "";
    this.simulated = false;
    this.body = element("div", { class: "agent" }, element("p", { class: "who" }, element("b", {}, agent || "agent"), (this.meta = element("i"))));
    this.node = element("article", { class: "turn", "data-live": "" }, this.body);
    this.anchor = `t${log.childElementCount}`;
    log.append(this.node);
  }

  said(text) {
    if (this.user) return;
    this.user = element("p", { class: "user" }, text);
    this.node.prepend(this.user);
  }

  // Takes one event. Unknown types are ignored: newer services may send more.
  take(event) {
    const { type, data, seq } = event;
    this.begun ||= event.ts ? Date.parse(event.ts) : 0;
    switch (type) {
      case "accepted": this.runId = event.run_id; return;
      case "run_queued": return this.queued(data);
      case "message_delta": return this.delta(seq, data);
      case "message_completed": return this.completed(seq, data);
      case "attempt_superseded": return this.superseded(data.from_seq, "taken over by another worker");
      case "log_gap": return this.superseded(data.from_seq, "the store lost what was shown last");
      case "tool_call_started": return this.tool(data);
      case "tool_call_progress": return this.progress(data);
      case "tool_call_completed": return this.toolEnded(data, "done", data.output);
      case "tool_call_failed": return this.toolEnded(data, "failed", data.error);
      case "usage": this.simulated ||= data.provider === "simulator"; return;
      case "memory_recalled": return this.note(recalled(data));
      case "citation": return this.source(data);
      case "warning": return this.notice(data.user_message || data.code, "", data.code);
      case "agent_status": return this.changed(STATUS[data.status] || data.status);
      case "run_finished": return this.end(event, "finished", "ok");
      case "run_cancelled": return this.end(event, "stopped", "no");
      case "run_failed": return this.end(event, "failed", "no");
    }
  }

  queued(data) {
    const last = (data.input || []).at(-1);
    const text = Array.isArray(last) ? last[1] : last && (last.text ?? last.content);
    if (text) this.said(text);
    if (data.agent) this.body.querySelector(".who b").textContent = data.agent;
    if (data.position > 0) this.changed(`queued, position ${data.position}`);
  }

  delta(seq, { text, message_id: message = "" }) {
    this.deltas.push({ seq, message, text });
    this.draw(message);
  }

  completed(seq, { text, message_id: message = "" }) {
    if (!text) return;
    this.deltas = this.deltas.filter((delta) => delta.message !== message);
    this.deltas.push({ seq, message, text });
    this.draw(message);
  }

  superseded(from, why) {
    const touched = new Set(this.deltas.filter((delta) => delta.seq >= from).map((delta) => delta.message));
    this.deltas = this.deltas.filter((delta) => delta.seq < from);
    touched.forEach((message) => this.draw(message));
    this.note(why);
  }

  draw(message) {
    let box = this.messages.get(message);
    if (!box) {
      this.body.querySelector(".tail")?.classList.remove("tail");
      box = element("div", { class: "prose tail" });
      box.due = false;
      this.messages.set(message, box);
      this.body.append(box);
    }
    if (box.due) return;
    box.due = true;
    // Once a frame, however fast the words come.
    requestAnimationFrame(() => {
      box.due = false;
      const text = this.deltas.filter((delta) => delta.message === message).map((delta) => delta.text).join("");
      box.replaceChildren(...prose(text, this.anchor));
      this.changed(this.ended ? "" : "writing");
    });
  }

  tool({ call_id: id, tool, version, arguments: given }) {
    const time = element("time");
    const node = element(
      "details",
      { class: "tool" },
      element("summary", {}, element("b", {}, tool), element("span", { class: "brief" }, brief(given)), time),
      element("dl", {}, element("dt", {}, "version"), element("dd", {}, version || "—"), element("dt", {}, "arguments"), element("dd", {}, element("pre", { tabIndex: 0 }, json(given ?? {})))),
    );
    this.tools.set(id, { node, time });
    this.body.append(node);
    this.changed(`calling ${tool}`);
  }

  progress({ call_id: id, message, fraction }) {
    const known = this.tools.get(id);
    if (known) known.time.textContent = message || (fraction >= 0 ? `${Math.round(fraction * 100)} %` : "");
  }

  toolEnded({ call_id: id, duration_ms: took }, outcome, result) {
    const known = this.tools.get(id);
    if (!known) return;
    known.node.dataset.outcome = outcome;
    known.time.textContent = took === undefined ? "" : `${took} ms`;
    const title = outcome === "done" ? "result" : "error";
    known.node.lastChild.append(element("dt", {}, title), element("dd", {}, element("pre", { tabIndex: 0 }, json(result ?? ""))));
    known.node.querySelector(".brief").append(`  →  ${brief(result)}`);
    this.changed();
  }

  source(data) {
    if (this.sources.has(data.citation_id)) return;
    this.list ||= element("ul", { class: "sources", "aria-label": "Sources" });
    const where = data.heading ? element("span", {}, data.heading) : null;
    const item = element("li", { id: `${this.anchor}-${data.citation_id}` }, element("span", { class: "cite" }, data.citation_id), element("b", {}, data.title || data.document_id), where);
    this.sources.set(data.citation_id, item);
    this.list.append(item);
    if (this.ended) return;
    this.body.append(this.list);
  }

  notice(text, kind = "", code = "") {
    this.body.append(element("p", { class: `notice ${kind}` }, element("span", {}, text, code ? " " : null, code ? element("code", {}, code) : null)));
    this.changed();
  }

  note(text) {
    if (text) this.body.append(element("p", { class: "trace" }, text));
  }

  end(event, word, tone) {
    const { data } = event;
    if (this.ended) return;
    if (!this.messages.size && data.output_text) this.completed(event.seq, { text: data.output_text, message_id: "final" });
    for (const citation of data.citations || []) this.source(citation);
    if (data.error) this.notice(data.error.message || "The run failed.", "bad", data.error.reason);
    for (const { node } of this.tools.values()) if (!node.dataset.outcome) node.dataset.outcome = "failed";
    this.usage = data.usage || {};
    this.answer = data.output_text || "";
    const tokens = (this.usage.input_tokens || 0) + (this.usage.output_tokens || 0);
    const parts = [element("span", { class: tone }, word)];
    if (this.begun && event.ts) parts.push(element("span", {}, `${((Date.parse(event.ts) - this.begun) / 1000).toFixed(2)} s`));
    if (tokens) parts.push(element("span", {}, `${tokens.toLocaleString("en")} tokens`));
    if (this.usage.cost_microusd) parts.push(element("span", {}, money(this.usage.cost_microusd)));
    if (this.simulated) parts.push(element("span", {}, "simulator, no real model"));
    parts.push(element("span", {}, event.run_id || ""));
    if (this.list) this.body.append(this.list);
    this.body.append(element("p", { class: "foot" }, ...parts));
    this.finish();
  }

  finish() {
    this.ended = true;
    this.node.removeAttribute("data-live");
    this.changed();
  }
}

export function money(microusd) {
  return `$${(microusd / 1e6).toFixed(microusd < 10_000 ? 6 : 4)}`;
}

function brief(value) {
  if (value === undefined || value === null) return "";
  if (typeof value === "object") value = value.result ?? value.value ?? value.message ?? value;
  const text = typeof value === "string" ? value : typeof value === "object" && Object.keys(value).length === 1 ? json(Object.values(value)[0]) : JSON.stringify(value);
  return text.replace(/\s+/g, " ").slice(0, 120);
}

function recalled({ parts, kinds }) {
  if (!parts) return "";
  const names = Array.isArray(kinds) ? kinds.join(", ") : Object.entries(kinds || {}).map(([kind, count]) => `${count} ${kind}`).join(", ");
  return `recalled ${parts} ${parts === 1 ? "part" : "parts"}${names ? ` (${names})` : ""}`;
}
