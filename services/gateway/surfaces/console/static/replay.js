// A thread as it was at any moment: its log again, in its own time, under a slider.

import { get, list, path } from "./api.js";
import { button, count, drawing, element, entry, explain, lasting, moment, plain, state } from "./dom.js";
import { Machine, STATES } from "./machine.js";
import { offsets, Player } from "./player.js";
import { Conversation } from "./turn.js";

const SPEEDS = [0.5, 1, 2, 4, 8, 16];
const SHORT_MS = 2000;
const RULER = 1000;
const RECENT = 6;
const TONE = { warning: "warning", run_failed: "warning", attempt_superseded: "attempt", log_gap: "attempt", interrupt_raised: "steer",
  tool_call_started: "memory" };

export class ReplayView {
  constructor(node) {
    Object.assign(this, { node, wanted: "", thread: "", events: [], player: new Player([]), shown: 0, frame: 0 });
    this.name = element("input", { id: "replay-thread", spellcheck: false, autocomplete: "off", maxLength: 128 });
    this.names = element("datalist", { id: "replay-threads" });
    this.name.setAttribute("list", "replay-threads");
    this.play = button("Play", { kind: "primary", symbol: "play", id: "replay-play", onclick: () => this.toggle() });
    this.slider = element("input", { type: "range", id: "replay-slider", "aria-label": "Moment of the replay", max: 0, value: 0, step: 1,
      oninput: () => this.scrub() });
    this.speed = element("select", { id: "replay-speed" }, ...SPEEDS.map((speed) => new Option(`${speed}×`, speed, speed === 1,
      speed === 1)));
    this.speed.addEventListener("change", () => (this.player.speed = Number(this.speed.value)));
    this.short = element("input", { type: "checkbox", id: "replay-short", onchange: () => this.lay() });
    this.clock = element("output", { class: "clock" });
    this.chip = element("span", { class: "chip" });
    this.ruler = drawing("svg", { class: "ruler", viewBox: `0 0 ${RULER} 16`, preserveAspectRatio: "none", "aria-hidden": "true" });
    this.recent = element("ol", { class: "recent", "aria-label": "Last events" });
    this.log = element("div", { class: "log-like", role: "region", "aria-label": "The conversation at this moment", tabIndex: 0 });
    this.conversation = new Conversation(this.log, { live: false });
    this.place = element("div", { class: "player", hidden: true },
      element("div", { class: "controls" }, this.play,
        button("One event back", { kind: "ghost", symbol: "back", quiet: true, onclick: () => this.step(false) }),
        button("One event on", { kind: "ghost", symbol: "forward", quiet: true, onclick: () => this.step(true) }),
        element("label", {}, element("span", {}, "Speed"), this.speed), element("label", { class: "check" }, this.short, element("span",
          {}, "Shorten pauses to 2 s")), this.clock, this.chip),
      element("div", { class: "scale" }, this.slider, this.ruler), this.recent, this.log);
    this.empty = element("div");
    node.replaceChildren(
      element("header", { class: "page-head" }, element("h1", { tabIndex: -1 }, "Replay")),
      element("form", { class: "filters", onsubmit: (event) => (event.preventDefault(), this.name.value
        && (location.hash = `#/replay/${encodeURIComponent(this.name.value.trim())}`)) },
        element("label", {}, element("span", {}, "Thread"), this.name), this.names, element("button", { type: "submit", class: "button" },
          "Open")),
      this.place, this.empty);
  }

  async open(thread) {
    this.node.querySelector("h1").focus({ preventScroll: true });
    list("/v1/threads", 50).then((threads) => this.names.replaceChildren(...threads.map((one) => new Option(plain(one.thread_id),
      one.thread_id))), () => {});
    if (!thread) {
      if (!this.thread) this.empty.replaceChildren(state("empty", "Choose a thread",
        "Its log is played again in its own time: every word, call and warning, as it was."));
      return;
    }
    this.name.value = this.wanted = thread;
    this.stop();
    this.place.hidden = true;
    this.empty.replaceChildren(state("loading", "Reading the log", ""));
    try {
      const { events } = await get(path`/replay/${thread}`);
      // Another thread was asked for meanwhile; its log may have come first.
      if (this.wanted !== thread) return;
      this.thread = thread;
      this.events = events;
      this.empty.replaceChildren(...(events.length ? [] : [state("empty", "Nothing to replay",
        "Nobody has said anything in this thread.")]));
      this.place.hidden = events.length === 0;
      this.lay();
    } catch (error) {
      if (this.wanted !== thread) return;
      const words = error.status === 404 ? "There is no such thread" : "The log could not be read";
      this.empty.replaceChildren(state("failed", words, explain(error), button("Try again", { onclick: () => this.open(thread) })));
    }
  }

  leave() {
    this.stop();
  }

  signOut() {
    this.stop();
    Object.assign(this, { wanted: "", thread: "", events: [], shown: 0 });
    this.conversation.clear();
    this.names.replaceChildren();
    this.place.hidden = true;
    this.name.value = "";
  }

  // Times anew, with or without long pauses; the moment stays at the same event.
  lay() {
    const times = offsets(this.events, this.short.checked ? SHORT_MS : Infinity);
    const kept = this.shown;
    this.stop();
    this.player = Object.assign(new Player(times), { speed: Number(this.speed.value) });
    this.player.seek(kept > 0 && kept <= times.length ? times[kept - 1] : this.player.duration);
    this.slider.max = String(Math.max(1, Math.round(this.player.duration)));
    const span = this.player.duration || 1;
    this.ruler.replaceChildren(...this.events.map((event, index) => [entry(TONE, event.type),
      times[index]]).filter(([tone]) => tone).slice(0, 500)
      .map(([tone, at]) => drawing("rect", { class: `mark ${tone}`, x: Math.min(RULER - 3, (at / span) * RULER), y: 2, width: 3,
        height: 12, rx: 1 })));
    this.rebuild();
  }

  rebuild() {
    this.conversation.clear();
    this.machine = new Machine();
    this.machine.take("sign_in");
    this.shown = 0;
    this.draw();
  }

  draw() {
    const wanted = this.player.count();
    if (wanted < this.shown) return this.rebuild();
    for (; this.shown < wanted; this.shown += 1) {
      const event = this.events[this.shown];
      if (event.type === "run_queued") this.machine.take("attach");
      this.conversation.take(event);
      this.machine.feed(event);
    }
    const last = this.events[this.shown - 1];
    this.slider.value = String(Math.round(this.player.at));
    this.slider.setAttribute("aria-valuetext",
      `${lasting(this.player.at)} of ${lasting(this.player.duration)}, ${STATES[this.machine.state].label}`);
    this.clock.textContent = `${lasting(this.player.at)} / ${lasting(this.player.duration)}`;
    this.clock.title = last ? moment(last.ts) : "";
    this.chip.textContent = STATES[this.machine.state].label;
    this.chip.dataset.status = STATES[this.machine.state].busy ? "running" : "queued";
    this.recent.replaceChildren(...this.events.slice(Math.max(0, this.shown - RECENT), this.shown).map((event) =>
      element("li", {}, element("span", { class: "seq" }, String(event.seq)), plain(event.type, 60))),
    element("li", { class: "note" }, `${count(this.shown)} of ${count(this.events.length)} events`));
    this.log.scrollTop = this.log.scrollHeight;
    return undefined;
  }

  scrub() {
    this.stop();
    this.player.seek(Number(this.slider.value) >= Number(this.slider.max) ? this.player.duration : Number(this.slider.value));
    cancelAnimationFrame(this.frame);
    this.frame = requestAnimationFrame(() => this.draw());
  }

  step(forward) {
    this.stop();
    this.player.step(forward);
    this.draw();
  }

  toggle() {
    if (this.player.playing) return this.stop();
    if (this.player.at >= this.player.duration) this.player.seek(0);
    this.player.playing = true;
    this.label("Pause", "pause");
    let before = performance.now();
    const turn = (now) => {
      const going = this.player.tick(Math.max(0, now - before));
      before = now;
      this.draw();
      if (going) this.frame = requestAnimationFrame(turn);
      else this.stop();
    };
    this.frame = requestAnimationFrame(turn);
    return undefined;
  }

  stop() {
    cancelAnimationFrame(this.frame);
    this.player.playing = false;
    this.label("Play", "play");
  }

  label(words, symbol) {
    this.play.querySelector("span").textContent = words;
    this.play.querySelector("use").setAttribute("href", `/console/icons.svg#${symbol}`);
  }
}
