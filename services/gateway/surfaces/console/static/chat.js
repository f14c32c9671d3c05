// The conversation: its thread, the run at work, and what the composer offers, as the machine's state says.

import { follow, get, path, post, Problem, key } from "./api.js";
import * as cache from "./cache.js";
import { $, announce, count, element, explain, money, plain, some, state as placeholder, button } from "./dom.js";
import { Machine, STATES } from "./machine.js";
import { Conversation } from "./turn.js";

const NOT_STOPPABLE = new Set(["RUN_NOT_STARTED", "RUN_WAITING", "RUN_IS_WORKFLOW"]);
const NEAR_PX = 160;

export function freshThread() {
  const bytes = crypto.getRandomValues(new Uint8Array(4));
  return `console-${Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}

export class Chat {
  // `listed` is told when the list of threads may have changed.
  constructor({ listed }) {
    Object.assign(this, { listed, thread: "", unused: "", active: "", turn: null, events: [], generation: 0, abort: null });
    this.log = $("log");
    this.machine = new Machine((next, before, detail) => this.entered(next, before, detail));
    this.conversation = new Conversation(this.log, { live: true, changed: () => this.changed(), feedback: (run, thumb) => this.rate(run,
      thumb) });
    $("composer").addEventListener("submit", (event) => (event.preventDefault(), this.submit()));
    $("input").addEventListener("input", () => this.grow());
    $("input").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) (event.preventDefault(), this.submit());
    });
    $("stop").addEventListener("click", () => this.stop());
    // What is at work is kept as well when the page goes away; at sign-out there is no thread any more.
    addEventListener("pagehide", () => this.thread && this.events.length && cache.keep(this.thread, this.events));
    $("prompts").addEventListener("click", (event) => {
      const chosen = event.target.closest("button");
      if (chosen) ($("input").value = chosen.textContent), this.grow(), $("input").focus();
    });
    this.log.addEventListener("click", (event) => this.toSource(event));
    this.entered("signed_out", "signed_out");
  }

  entered(next, before, detail = "") {
    const { label, busy, send, stop } = STATES[next];
    const words = detail ? (next === "calling_tool" ? `calling ${plain(detail, 40)}` : `${label}, ${plain(detail, 40)}`) : label;
    $("state").dataset.state = next;
    $("state").toggleAttribute("data-busy", busy);
    $("state-words").textContent = words;
    $("stop").hidden = !stop;
    $("stop").lastElementChild.textContent = next === "stopping" ? "Cancel the run" : "Stop";
    $("send").disabled = send === "none";
    $("send").lastElementChild.textContent = send === "steer" ? "Steer" : "Send";
    $("input").placeholder = send === "steer" ? "Tell the agent something while it works" : "Write a message";
    $("agent").disabled = busy || next === "signed_out";
    if (next === "waiting_approval" && before !== next) announce("The run waits for an approval.", true);
    if (next === "reconnecting" && before !== next) announce("The connection is lost; it is taken up again.");
  }

  changed() {
    // Follows the end of the log unless the reader has scrolled away from it.
    if (this.log.scrollHeight - this.log.scrollTop - this.log.clientHeight < NEAR_PX) this.log.scrollTop = this.log.scrollHeight;
    this.totals();
  }

  toSource(event) {
    const cited = event.target.closest("a.cite");
    if (!cited) return;
    event.preventDefault();
    const source = document.getElementById(cited.getAttribute("href").slice(1));
    if (!source) return announce("This source is not in the list.");
    source.scrollIntoView({ block: "center" });
    source.focus();
  }

  totals() {
    const turns = this.conversation.all;
    const sum = (name) => turns.reduce((total, turn) => total + (turn.usage?.[name] ?? turn.spent[name]), 0);
    $("total-turns").textContent = turns.length;
    $("total-tokens").textContent = count(sum("input_tokens") + sum("output_tokens"));
    $("total-tools").textContent = turns.reduce((total, turn) => total + turn.tools.size, 0);
    $("total-cost").textContent = money(sum("cost_microusd"));
    $("welcome").hidden = turns.length > 0 || this.log.querySelector(".placeholder, .turn") !== null;
  }

  async rate(run, thumb) {
    try {
      await post("/v1/feedback", { run_id: run, thumbs: thumb });
      announce("Thank you. The feedback is kept.");
      return true;
    } catch (error) {
      announce(explain(error), true);
      return false;
    }
  }

  take(event) {
    this.events.push(event);
    this.conversation.take(event);
  }

  // The last number that is known of the thread; the next one is asked for.
  get last() {
    return this.events.reduce((most, event) => Math.max(most, event.seq || 0), 0);
  }

  clear() {
    this.abort?.abort();
    this.generation += 1;
    Object.assign(this, { active: "", turn: null, events: [] });
    this.conversation.clear();
    this.log.querySelectorAll(".placeholder, .turn").forEach((node) => node.remove());
    // Whatever was at work goes on without this page.
    this.machine.take("ended");
    this.machine.take("mended");
    this.totals();
  }

  // Shows a thread: at once what this tab remembers of it, then what its log has more, then what comes.
  async open(thread) {
    if (thread && thread === this.thread && (this.conversation.all.length || thread === this.unused)) return;
    this.clear();
    if (!thread) this.unused = thread = freshThread();
    this.thread = thread;
    $("title").textContent = thread === this.unused ? "New conversation" : cache.read(thread).title || thread;
    $("title").title = thread;
    $("thread").value = thread;
    $("replay-link").href = `#/replay/${encodeURIComponent(thread)}`;
    if (thread === this.unused || !key.get()) return;
    const generation = this.generation;
    const kept = cache.read(thread).events;
    kept.forEach((event) => this.take(event));
    const loading = kept.length ? null : placeholder("loading", "Reading the thread", "");
    if (loading) this.log.append(loading), this.totals();
    try {
      const events = await this.read(thread);
      if (generation !== this.generation) return;
      loading?.remove();
      events.forEach((event) => this.take(event));
      this.title();
      this.totals();
      this.log.scrollTop = this.log.scrollHeight;
      if (events.length) announce(`${some(this.conversation.all.length, "turn")} read back.`);
      cache.keep(thread, this.events);
      this.listed();
      await this.rest(generation);
    } catch (error) {
      if (generation !== this.generation) return;
      loading?.remove();
      if (error.status === 404) return this.missing(kept.length > 0);
      this.log.append(placeholder("failed", "The thread could not be read", explain(error), button("Try again",
        { onclick: () => ((this.thread = ""), this.open(thread)) })));
      this.machine.take("failed");
      this.totals();
    }
  }

  async read(thread) {
    try {
      return (await get(`${path`/replay/${thread}`}?after=${this.last}`)).events;
    } catch (error) {
      // The log is another one than this tab remembers: it was deleted and begun again, or its beginning is kept no longer.
      if (!(error instanceof Problem) || !this.last || error.status === 404 || error.status >= 500 || error.status === 401) throw error;
      cache.drop(thread);
      this.conversation.clear();
      this.events = [];
      return (await get(path`/replay/${thread}`)).events;
    }
  }

  missing(remembered) {
    if (remembered) {
      cache.drop(this.thread);
      this.conversation.clear();
      this.events = [];
      this.log.append(placeholder("empty", "This thread is gone", "It was deleted, or its time was over."));
    }
    // A name that nobody has used yet begins a conversation.
    this.unused = this.thread;
    this.totals();
  }

  title() {
    const first = this.events.find((event) => event.type === "run_queued");
    $("title").textContent = cache.titled(first) || this.thread;
  }

  // Runs that have not ended are followed, one after the other.
  async rest(generation) {
    for (let turn; (turn = this.conversation.all.find((one) => !one.ended && one.runId)); ) {
      if (generation !== this.generation || !this.machine.take("attach")) return;
      const before = this.last;
      await this.attach(turn, this.last);
      if (!turn.ended && this.last === before) return;
    }
  }

  async attach(turn, after) {
    const generation = this.generation;
    this.abort = new AbortController();
    this.turn = turn;
    this.active = turn.runId;
    try {
      const lost = (times) => this.machine.take("lost", `try ${times}`);
      const watching = { after, signal: this.abort.signal, lost, resumed: () => this.machine.take("resumed") };
      for await (const event of follow(turn.runId, watching)) {
        if (generation !== this.generation) return;
        this.take(event);
        this.machine.feed(event);
      }
      if (generation !== this.generation) return;
      this.machine.take("ended");
      announce(`The agent has answered: ${turn.answer.slice(0, 400) || "no text"}`);
    } catch (error) {
      if (generation !== this.generation) return;
      this.trouble(turn, error);
    }
    this.active = "";
    this.title();
    this.totals();
    cache.keep(this.thread, this.events);
    this.listed();
  }

  trouble(turn, error) {
    turn.notice("It did not work", explain(error), "bad");
    turn.finish();
    this.machine.take("failed");
    announce(explain(error), true);
  }

  submit() {
    const text = $("input").value.trim();
    const offered = STATES[this.machine.state].send;
    if (!text || offered === "none") return;
    $("input").value = "";
    this.grow();
    if (offered === "steer") this.steer(text);
    else this.send(text);
  }

  async send(text) {
    const { thread, generation } = this;
    this.unused = "";
    history.replaceState(null, "", `#/chat/${encodeURIComponent(thread)}`);
    this.log.querySelectorAll(".placeholder").forEach((node) => node.remove());
    const agent = $("agent").value;
    const turn = this.conversation.begin(agent, text);
    if (!this.events.length) $("title").textContent = plain(text, 80);
    this.machine.take("send");
    announce("The agent is working.");
    this.totals();
    this.log.scrollTop = this.log.scrollHeight;
    try {
      const run = await post(path`/v1/threads/${thread}/runs`, { input: text, on_disconnect: "continue", ...(agent ? { agent } : {}) });
      if (generation !== this.generation) return;
      turn.runId = run.run_id;
      this.conversation.turns.set(run.run_id, turn);
      this.active = run.run_id;
      if (this.machine.state === "stopping") this.stop();
      else this.machine.take("accepted");
    } catch (error) {
      if (generation === this.generation) this.trouble(turn, error);
      return;
    }
    this.listed();
    // The log of a thread counts through all its runs: what was before this run is known.
    await this.attach(turn, 0);
    await this.rest(this.generation);
  }

  async steer(text) {
    const { turn, active } = this;
    try {
      const { number } = await post(path`/v1/runs/${active}/steer`, { text });
      turn.steer(number, text, "sent");
      this.log.scrollTop = this.log.scrollHeight;
      announce("The agent will read it before its next step.");
    } catch (error) {
      if (!$("input").value) $("input").value = text;
      this.grow();
      turn.notice("The message was not taken", error.reason === "RUN_ENDED" ? "The run had ended. Send it as a new message."
        : explain(error));
      announce(explain(error), true);
    }
  }

  // First the generating is stopped, which keeps what was said; asked again, or where that cannot be, the run is cancelled.
  async stop() {
    if (!STATES[this.machine.state].stop) return;
    const again = this.machine.state === "stopping";
    this.machine.take("stop");
    const run = this.active;
    if (!run) return;
    const cancel = () => post(path`/v1/runs/${run}/cancel`, { reason: "stopped in the console" });
    try {
      if (again) return void (await cancel());
      await post(path`/v1/runs/${run}/stop`).catch((error) => {
        if (!NOT_STOPPABLE.has(error.reason)) throw error;
        return cancel();
      });
    } catch (error) {
      if (error.reason === "RUN_ENDED") return;
      this.machine.take("refused");
      announce(explain(error), true);
      this.turn?.notice("It could not be stopped", explain(error));
    }
  }

  grow() {
    const input = $("input");
    input.style.height = "auto";
    input.style.height = `${Math.min(input.scrollHeight + 2, 200)}px`;
  }

  signOut() {
    this.clear();
    cache.forget();
    Object.assign(this, { thread: "", unused: "" });
    $("title").textContent = $("title").title = "";
    for (const id of ["thread", "input"]) $(id).value = "";
    for (const id of ["announce", "alert"]) $(id).textContent = "";
    $("replay-link").href = "#/replay";
    this.machine.take("sign_out");
  }
}

// The threads of the caller, newest first, with the words that this tab knows of them.
export async function threadList(node, current, threads) {
  node.replaceChildren(...threads.map((thread) => {
    const title = plain(thread.metadata?.title, 80) || cache.read(thread.thread_id).title;
    return element("li", {}, element("a", { href: `#/chat/${encodeURIComponent(thread.thread_id)}`,
      "aria-current": thread.thread_id === current ? "true" : null },
      element("b", { dir: "auto" }, title || plain(thread.thread_id, 60)), element("span", {}, title ? plain(thread.thread_id, 40) : "")));
  }));
}
