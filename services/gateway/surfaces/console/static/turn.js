// One turn of a conversation, drawn from the events of its run. Live, cached and replayed turns take the same way.

import { ApprovalCard } from "./approvals.js";
import { button, count, element, entry, icon, json, lasting, money, plain } from "./dom.js";
import { prose } from "./markup.js";
import { has, render } from "./renderers.js";
import { childLine, PlanBox, ToolCard } from "./steps.js";

const LONG = 8000;
const SLOWLY_MS = 150;
const STEERED = ["sent", "received", "applied", "dropped"];
const words = (name) => plain(name, 80).replace(/_/g, " ");

let turns = 0;

export class Turn {
  // `live`: approvals can be decided and feedback given. `changed` is told after each thing that alters what is seen.
  constructor(log, { agent = "", live = false, changed = () => {}, feedback = null } = {}) {
    Object.assign(this, { log, live, changed, feedback, usage: null, ended: false, begun: 0, answer: "", simulated: false, runId: "",
      said: "" });
    this.deltas = []; // {seq, message, text}, so that superseded text can be taken back
    this.messages = new Map();
    this.tools = new Map();
    this.sources = new Map();
    this.approvals = new Map();
    this.steers = new Map();
    this.spent = { input_tokens: 0, output_tokens: 0, cost_microusd: 0 };
    this.name = element("b", { dir: "auto" }, plain(agent, 60) || "agent");
    this.body = element("div", { class: "agent" }, element("p", { class: "who" }, icon("agent"), this.name));
    this.node = element("article", { class: "turn", "data-live": "" }, this.body);
    this.anchor = `t${(turns += 1)}`;
    log.append(this.node);
  }

  say(text) {
    if (this.said) return;
    this.said = text;
    this.node.prepend(element("p", { class: "user", dir: "auto" }, text));
  }

  take(event) {
    this.begun ||= event.ts ? Date.parse(event.ts) : 0;
    this.runId ||= event.run_id || "";
    const data = event.data ?? {};
    if (Object.hasOwn(TAKE, event.type)) TAKE[event.type](this, data, event);
    else if (has(event.type) || !QUIET.has(event.type)) this.put(render(event.type, data, this.anchor));
  }

  // Below what is there; the sources of a turn at work stay last.
  put(node) {
    this.body.querySelector(".tail")?.classList.remove("tail");
    if (this.list?.isConnected) this.list.before(node);
    else this.body.append(node);
    this.changed();
    return node;
  }

  note(text) {
    if (text) this.put(element("p", { class: "trace" }, text));
  }

  notice(title, text, kind = "", code = "") {
    this.put(element("div", { class: `notice ${kind}` }, icon("warning"),
      element("div", {}, element("b", {}, title), text ? element("p", {}, text) : null, code ? element("code", {}, plain(code, 60))
        : null)));
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
      box = element("div", { class: "prose", dir: "auto" });
      box.due = false;
      box.length = 0;
      this.messages.set(message, box);
      this.put(box);
    }
    box.classList.add("tail");
    if (box.due) return;
    box.due = true;
    // Once a frame, however fast the words come; of a long text less often, since all of it is read again.
    const paint = () => {
      box.due = false;
      const text = this.deltas.filter((delta) => delta.message === message).map((delta) => delta.text).join("");
      box.length = text.length;
      box.replaceChildren(...prose(text, this.anchor));
      this.changed();
    };
    if (box.length > LONG && !this.ended) setTimeout(paint, SLOWLY_MS);
    else requestAnimationFrame(paint);
  }

  source(data) {
    if (this.sources.has(data.citation_id)) return;
    this.list ||= element("ol", { class: "sources", "aria-label": "Sources" });
    const where = [data.heading, data.char_end > data.char_start ? `characters ${count(data.char_start)}–${count(data.char_end)}` : ""];
    const item = element("li", { id: `${this.anchor}-${data.citation_id}`, tabIndex: -1 },
      element("span", { class: "cite" }, plain(data.citation_id, 12)), element("b", { dir: "auto" }, plain(data.title || data.document_id)),
      ...where.filter(Boolean).map((part) => element("span", { dir: "auto" }, plain(part))));
    this.sources.set(data.citation_id, item);
    this.list.append(item);
    this.body.append(this.list);
    this.changed();
  }

  steer(number, text, state) {
    let box = this.steers.get(number);
    if (!box) {
      box = this.put(element("p", { class: "user steer", dir: "auto" }, element("span", {}, text || "A message for the run at work"),
        element("i")));
      this.steers.set(number, box);
    }
    if (text) box.firstChild.textContent = text;
    // The answer to the sender and the events of the run may come in either order.
    if (STEERED.indexOf(state) < STEERED.indexOf(box.dataset.state)) return;
    box.dataset.state = state;
    box.lastChild.textContent = { sent: "sent", received: "waits for the next step", applied: "read by the agent",
      dropped: "came too late" }[state];
    this.changed();
  }

  ask(data) {
    if (data.kind === "client_tools") {
      const calls = (data.calls || []).map((call) => element("li", {}, element("code", {}, plain(call.name, 80)), " ",
        plain(json(call.arguments), 300)));
      this.put(element("div", { class: "notice" }, icon("wait"), element("div", {},
        element("b", {}, "This run waits for tools of the program that began it."), element("ul", {}, ...calls))));
      return;
    }
    if (this.approvals.has(data.interrupt_id)) return;
    const card = new ApprovalCard(data, { live: this.live && !this.ended });
    this.approvals.set(data.interrupt_id, card);
    this.put(card.node);
  }

  end(event, word, tone) {
    if (this.ended) return;
    const { data = {} } = event;
    this.ended = true;
    if (!this.deltas.length && data.output_text) this.completed(event.seq, { text: data.output_text, message_id: "final" });
    for (const citation of data.citations || []) this.source(citation);
    if (data.error) this.notice("The run failed", data.error.message || "It does not say why.", "bad", data.error.reason);
    for (const tool of this.tools.values()) tool.abandon();
    for (const card of this.approvals.values()) card.close();
    this.usage = data.usage || {};
    this.answer = data.output_text || "";
    const tokens = (this.usage.input_tokens || 0) + (this.usage.output_tokens || 0);
    const facts = [[word, tone]];
    if (this.begun && event.ts) facts.push([lasting(Date.parse(event.ts) - this.begun)]);
    if (tokens) facts.push([`${count(tokens)} tokens`]);
    if (this.usage.cost_microusd) facts.push([money(this.usage.cost_microusd)]);
    if (this.simulated) facts.push(["simulator, no real model"]);
    const run = element("a", { href: `#/runs/${encodeURIComponent(event.run_id || this.runId)}`, class: "run-link" }, "Timeline");
    this.foot = element("footer", { class: "foot" }, ...facts.map(([text, kind]) => element("span", kind ? { class: kind } : {}, text)),
      run);
    if (this.live && this.feedback) this.foot.append(this.thumbs());
    this.body.append(this.foot);
    this.finish();
  }

  thumbs() {
    const row = element("span", { class: "thumbs", role: "group", "aria-label": "Was this answer good?" });
    const made = ["up", "down"].map((thumb) => button(thumb === "up" ? "Good answer" : "Bad answer", {
      kind: "small ghost", symbol: `thumb-${thumb}`, quiet: true, "aria-pressed": "false", "data-thumb": thumb,
      onclick: async () => {
        made.forEach((one) => (one.disabled = true));
        if (await this.feedback(this.runId, thumb)) this.rated(thumb);
        made.forEach((one) => (one.disabled = false));
      },
    }));
    row.append(...made);
    return row;
  }

  rated(thumb) {
    for (const one of this.node.querySelectorAll(".thumbs button")) one.setAttribute("aria-pressed", String(one.dataset.thumb === thumb));
  }

  finish() {
    this.ended = true;
    this.node.removeAttribute("data-live");
    this.changed();
  }

  // What a thread's rollback took out of the conversation.
  takenBack() {
    this.node.classList.add("gone");
    this.note("Taken back: this turn is no longer part of the conversation.");
  }
}

function recalled({ parts, kinds }) {
  if (!parts) return "";
  const names = Array.isArray(kinds) ? kinds.join(", ") : Object.entries(kinds || {}).map(([kind,
    many]) => `${many} ${words(kind)}`).join(", ");
  return `Recalled ${parts} ${parts === 1 ? "part" : "parts"}${names ? ` (${names})` : ""}`;
}

const FINISH = { stopped: ["stopped", "no"], length: ["cut off at a limit", "no"], tool_calls: ["waits for tools", "no"] };

const TAKE = {
  run_queued(turn, data) {
    const last = (data.input || []).at(-1);
    const text = Array.isArray(last) ? last[1] : last?.text ?? last?.content;
    if (text) turn.say(String(text));
    if (data.agent) turn.name.textContent = plain(data.agent, 60);
    if (data.queue_position) turn.note(`Waits for a slot, at position ${data.queue_position}`);
  },
  message_delta(turn, { text, message_id: message = "" }, { seq }) {
    turn.deltas.push({ seq, message, text: String(text ?? "") });
    turn.draw(message);
  },
  message_completed: (turn, data, { seq }) => turn.completed(seq, data),
  attempt_superseded: (turn, data) => turn.superseded(data.from_seq, "Another worker took the run over and goes on here"),
  log_gap: (turn, data) => turn.superseded(data.from_seq, "The store lost what was shown last"),
  tool_call_started(turn, data) {
    const card = new ToolCard(data);
    turn.tools.set(data.call_id, card);
    turn.put(card.node);
  },
  tool_call_progress: (turn, data) => turn.tools.get(data.call_id)?.progress(data),
  tool_call_completed(turn, data) {
    turn.tools.get(data.call_id)?.end("done", data);
    turn.changed();
  },
  tool_call_failed(turn, data) {
    turn.tools.get(data.call_id)?.end("failed", data);
    turn.changed();
  },
  usage(turn, data) {
    turn.simulated ||= data.provider === "simulator";
    for (const name of ["input_tokens", "output_tokens", "cost_microusd"]) turn.spent[name] += data[name] || 0;
    turn.changed();
  },
  memory_recalled: (turn, data) => turn.note(recalled(data)),
  memory_reset: (turn) => turn.note("Earlier turns are forgotten from here on"),
  citation: (turn, data) => turn.source(data),
  warning(turn, data) {
    const lost = data.capability_lost ? `Without ${words(data.capability_lost)}` : "Not everything worked";
    const instead = data.fallback && data.fallback !== "none" ? `Instead: ${words(data.fallback)}.` : "";
    turn.notice(lost, [data.user_message, instead].filter(Boolean).join(" "), "", data.code);
  },
  guard_triggered: (turn, data) => data.action !== "allow"
    && turn.notice(`A guard had something against this ${words(data.stage)}`, words(data.reason), "", data.detector),
  handoff_requested: (turn, data) => turn.notice(`Handed over to ${plain(data.label || data.target)}`, plain(data.reason, 500)),
  plan_updated(turn, data) {
    if (!turn.plan) turn.put((turn.plan = new PlanBox()).node);
    turn.plan.show(data.steps || []);
  },
  child_run_started: (turn, data) => turn.put(childLine(data)),
  child_run_finished(turn, data) {
    const line = [...turn.body.querySelectorAll(".child")].find((one) => one.dataset.run === data.run_id);
    if (line) line.querySelector("i").textContent = plain(data.status, 20);
  },
  interrupt_raised: (turn, data) => turn.ask(data),
  interrupt_updated: (turn, data) => turn.approvals.get(data.interrupt_id)?.update(data),
  interrupt_resolved: (turn, data) => turn.approvals.get(data.interrupt_id)?.resolve(data),
  steer_received: (turn, data) => turn.steer(data.number, "", "received"),
  steer_applied: (turn, data) => turn.steer(data.number, data.text, "applied"),
  steer_dropped: (turn, data) => turn.steer(data.number, "", "dropped"),
  feedback: (turn, data) => data.thumbs && turn.rated(data.thumbs),
  run_finished: (turn, data, event) => turn.end(event, ...(entry(FINISH, data.finish_reason) || ["finished", "ok"])),
  run_cancelled: (turn, data, event) => turn.end(event, "stopped", "no"),
  run_failed: (turn, data, event) => turn.end(event, "failed", "no"),
};

// Events that a conversation does not show; the timeline of the run has them.
const QUIET = new Set([
  "run_started", "step_started", "step_completed", "agent_status", "plan_update_dropped", "stop_received", "tool_cancel_received",
  "tool_cancel_ignored", "tool_call_retried", "tool_call_arguments", "thread_forked", "thread_rolled_back", "thread_deleted",
    "guard_verdict",
  "memory_stored", "agent_decision", "heartbeat",
]);

// All turns of a list of events, in the order of their runs; of a thread's own events what concerns a turn.
export class Conversation {
  constructor(log, options) {
    Object.assign(this, { log, options, turns: new Map() });
  }

  get all() {
    return [...this.turns.values()];
  }

  of(runId, agent = "") {
    if (!this.turns.has(runId)) this.turns.set(runId, new Turn(this.log, { ...this.options, agent }));
    return this.turns.get(runId);
  }

  // The turn of words that are on their way: its run has no name yet.
  begin(agent, text) {
    const turn = new Turn(this.log, { ...this.options, agent });
    turn.say(text);
    return turn;
  }

  take(event) {
    if (event.type === "thread_rolled_back") (event.data.run_ids || []).forEach((id) => this.turns.get(id)?.takenBack());
    else if (event.type === "feedback") this.turns.get(event.data.run_id)?.take(event);
    else if (event.run_id) this.of(event.run_id).take(event);
  }

  clear() {
    this.all.forEach((turn) => turn.node.remove());
    this.turns.clear();
  }
}
