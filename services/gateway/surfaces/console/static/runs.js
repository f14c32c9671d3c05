// The caller's runs, newest first, kept up to date while they are looked at; above them what waits for a decision.

import { get, list } from "./api.js";
import { ApprovalCard } from "./approvals.js";
import { ago, button, count, element, entry, explain, lasting, moment, money, plain, some, state } from "./dom.js";

const AGAIN_MS = 2000;
const MOST = 200;
export const STATUS = {
  queued: "Queued", running: "At work", waiting: "Waiting", succeeded: "Finished", failed: "Failed", cancelled: "Cancelled",
};

export function chip(status) {
  return element("span", { class: "chip", "data-status": status }, entry(STATUS, status) ?? plain(status, 20));
}

export class RunsView {
  constructor(node) {
    Object.assign(this, { node, timer: 0, runs: null, cards: new Map(), seen: "" });
    this.body = element("tbody");
    this.told = element("p", { class: "note", role: "status" });
    this.asked = element("section", { class: "asked", hidden: true, "aria-label": "Waiting for you" }, element("h2", {},
      "Waiting for you"));
    this.filters = {
      status: element("select", {}, new Option("any", ""), ...Object.entries(STATUS).map(([value, name]) => new Option(name, value))),
      agent: element("select", {}, new Option("any", "")),
      text: element("input", { type: "search", placeholder: "run or thread", spellcheck: false }),
    };
    for (const one of Object.values(this.filters)) one.addEventListener("input", () => this.draw());
    const names = { status: "Status", agent: "Agent", text: "Contains" };
    this.place = element("div", { class: "scroller runs", tabIndex: 0, role: "region", "aria-label": "Runs" },
      element("table", {}, element("caption", { class: "hidden" }, "Runs, newest first"), element("thead", {}, element("tr", {},
        ...["Run", "Status", "Thread", "Accepted", "Took", "Tokens", "Cost"].map((name, index) => element("th", { scope: "col",
          class: index > 3 ? "number" : null }, name)))), this.body));
    this.empty = element("div");
    node.replaceChildren(
      element("header", { class: "page-head" }, element("h1", { tabIndex: -1 }, "Runs"), this.told), this.asked,
      element("form", { class: "filters", role: "search", "aria-label": "Filter of runs", onsubmit: (event) => event.preventDefault() },
        ...Object.entries(this.filters).map(([name, field]) => element("label", {}, element("span", {}, names[name]), field))), this.place,
          this.empty);
  }

  async open() {
    this.node.querySelector("h1").focus({ preventScroll: true });
    this.leave();
    this.on = true;
    if (!this.runs) this.empty.replaceChildren(state("loading", "Reading the runs", ""));
    await this.refresh();
  }

  leave() {
    clearTimeout(this.timer);
    this.on = false;
  }

  signOut() {
    this.leave();
    Object.assign(this, { runs: null, seen: "" });
    this.cards.clear();
    this.asked.querySelectorAll(".approval").forEach((one) => one.remove());
    this.body.replaceChildren();
    this.filters.agent.replaceChildren(new Option("any", ""));
    this.filters.status.value = this.filters.text.value = this.told.textContent = "";
  }

  async refresh() {
    try {
      const [runs, asked] = await Promise.all([list("/v1/runs", MOST),
        get("/v1/approvals?decidable=true&limit=20").catch(() => ({ data: [] }))]);
      if (!this.on) return;
      this.runs = runs;
      this.ask(asked.data);
      this.draw();
    } catch (error) {
      if (!this.on) return;
      if (!this.runs) this.empty.replaceChildren(state("failed", "The runs could not be read", explain(error), button("Try again",
        { onclick: () => this.open() })));
      else this.told.textContent = `Not up to date: ${explain(error)}`;
    }
    clearTimeout(this.timer);
    if (this.on) this.timer = setTimeout(() => (document.visibilityState === "visible" ? this.refresh()
      : (this.timer = setTimeout(() => this.refresh(), AGAIN_MS))), AGAIN_MS);
  }

  ask(approvals) {
    for (const one of approvals) {
      if (this.cards.has(one.approval_id)) continue;
      const card = new ApprovalCard(one, { decided: () => this.refresh(), next: () => this.node.querySelector("h1") });
      card.node.append(element("p", { class: "note" }, element("a", { href: `#/runs/${encodeURIComponent(one.run_id)}` },
        "The run that asks")));
      this.cards.set(one.approval_id, card);
      this.asked.append(card.node);
    }
    const open = new Set(approvals.map((one) => one.approval_id));
    for (const [id, card] of this.cards) {
      if (open.has(id) || card.node.contains(document.activeElement)) continue;
      card.node.remove();
      this.cards.delete(id);
    }
    this.asked.hidden = this.cards.size === 0;
  }

  draw() {
    if (!this.runs) return;
    const agents = [...new Set(this.runs.map((run) => run.agent))].sort();
    const { status, agent, text } = this.filters;
    if (agents.join() !== [...agent.options].slice(1).map((option) => option.value).join()) {
      const chosen = agent.value;
      agent.replaceChildren(new Option("any", ""), ...agents.map((name) => new Option(plain(name, 60), name, false, name === chosen)));
    }
    const wanted = text.value.trim().toLowerCase();
    const fitting = this.runs.filter((run) => (!status.value || run.status === status.value) && (!agent.value || run.agent === agent.value)
      && (!wanted || `${run.run_id} ${run.thread_id}`.toLowerCase().includes(wanted)));
    const open = this.runs.filter((run) => !run.ended_at).length;
    this.told.textContent = `${some(this.runs.length, "run")}, ${count(open)} not ended`;
    // Drawn anew only where something is different, so that the focus stays where it is.
    const seen = JSON.stringify([wanted, fitting.map((run) => [run.run_id, run.status, run.usage, run.queue_position, run.ended_at ? ""
      : ago(run.created_at)])]);
    this.place.hidden = fitting.length === 0;
    this.empty.replaceChildren(...(fitting.length ? [] : [this.runs.length
      ? state("empty", "No run fits", "Change the filter to see others.")
      : state("empty", "No runs yet", "A message in the chat begins one.", element("a", { class: "button primary", href: "#/chat" },
        "Open the chat"))]));
    if (seen === this.seen) return;
    this.seen = seen;
    const focused = document.activeElement?.closest?.("tr")?.dataset.run;
    this.body.replaceChildren(...fitting.map(line));
    if (focused) [...this.body.children].find((one) => one.dataset.run === focused)?.querySelector("a")?.focus();
  }
}

function line(run) {
  const took = run.ended_at ? Date.parse(run.ended_at) - Date.parse(run.started_at || run.created_at)
    : Date.now() - Date.parse(run.started_at || run.created_at);
  const { usage } = run;
  return element("tr", { "data-run": run.run_id },
    element("th", { scope: "row" }, element("a", { href: `#/runs/${encodeURIComponent(run.run_id)}` }, element("b", { dir: "auto" },
      plain(run.agent, 60)), element("span", { class: "id" }, plain(run.run_id, 48)))),
    element("td", {}, chip(run.status), run.queue_position ? element("span", { class: "note" }, ` position ${run.queue_position}`) : null),
    element("td", { "data-name": "Thread" }, element("a", { href: `#/chat/${encodeURIComponent(run.thread_id)}`, class: "id" },
      plain(run.thread_id, 40))),
    element("td", { "data-name": "Accepted" }, element("time", { dateTime: run.created_at || "", title: moment(run.created_at) },
      ago(run.created_at))),
    element("td", { class: "number", "data-name": "Took" }, lasting(took)),
    element("td", { class: "number", "data-name": "Tokens" }, count(usage.input_tokens + usage.output_tokens)),
    element("td", { class: "number", "data-name": "Cost" }, money(usage.cost_microusd)));
}
