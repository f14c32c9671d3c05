// What the caller may use and has used, and who waits in the queue. Keys are never shown: the API does not tell them.

import { get, list } from "./api.js";
import { button, count, element, explain, lasting, moment, money, plain, some, state } from "./dom.js";

const AGAIN_MS = 3000;
const words = (name) => plain(name, 60).replace(/_/g, " ");

// A meter with its words; without a limit there is nothing to fill.
function meter(name, used, limit, told, note = "") {
  const share = limit > 0 ? Math.min(1, used / limit) : 0;
  const tone = limit === null ? "" : share >= 1 ? "bad" : share >= 0.8 ? "warn" : "";
  const bar = element("span", { class: "meter-fill" });
  bar.style.width = `${share * 100}%`;
  const given = { role: "meter", "aria-label": name, "aria-valuemin": "0", "aria-valuemax": String(limit),
    "aria-valuenow": String(Math.min(used, limit)), "aria-valuetext": told };
  return element("li", { class: `meter ${tone}` }, element("span", { class: "meter-name" }, name), element("b", {}, told),
    limit === null ? null : element("span", { class: "meter-bar", ...given }, bar), note ? element("span", { class: "note" }, note) : null);
}

const allowance = (name, { used, limit }) => meter(name, used, limit, limit === null ? `${count(used)}, no limit`
  : `${count(used)} of ${count(limit)}`);

function budget({ scope, scope_id: id, period, limit_microusd: limit, spent_microusd: spent, reserved_microusd: held, resets_at: resets }) {
  const notes = [held ? `${money(held)} held for runs at work` : "", resets ? `renewed ${moment(resets)}` : period ? "" : "never renewed"];
  return meter(`${words(scope)} ${plain(id, 60)}${period ? `, ${words(period)}` : ""}`, spent + held, limit,
    `${money(spent)} of ${money(limit)}`, notes.filter(Boolean).join(", "));
}

function rate({ scope, scope_id: id, kind, limit, remaining, reset_after_ms: reset }) {
  return meter(`${words(kind)}, ${words(scope)} ${plain(id, 60)}`, limit - remaining, limit, `${count(remaining)} of ${count(limit)} left`,
    reset ? `full again in ${lasting(reset)}` : "");
}

function card(title, rows, empty) {
  return element("section", { class: "card" }, element("h2", {}, title), rows.length ? element("ul", { class: "meters" }, ...rows)
    : element("p", { class: "note" }, empty));
}

export class UsageView {
  constructor(node) {
    Object.assign(this, { node, timer: 0, on: false, seen: "" });
    this.tier = element("span", { class: "chip" });
    this.told = element("p", { class: "note", role: "status" });
    this.place = element("div", { class: "cards" });
    this.queue = element("section", { class: "card wide" });
    this.made = element("section", { class: "card wide" });
    node.replaceChildren(element("header", { class: "page-head" }, element("h1", { tabIndex: -1 }, "Usage and queue"), this.tier,
      this.told), this.place, this.queue, this.made);
  }

  async open() {
    this.node.querySelector("h1").focus({ preventScroll: true });
    this.leave();
    this.on = true;
    if (!this.seen) this.place.replaceChildren(state("loading", "Reading what is used", ""));
    await this.refresh();
    this.catalogue();
  }

  leave() {
    clearTimeout(this.timer);
    this.on = false;
  }

  signOut() {
    this.leave();
    this.seen = this.tier.textContent = this.told.textContent = "";
    for (const part of [this.place, this.queue, this.made]) part.replaceChildren();
  }

  async refresh() {
    try {
      const [quota, runs] = await Promise.all([get("/v1/quota"), list("/v1/runs", 200)]);
      if (!this.on) return;
      this.told.textContent = "";
      const waiting = runs.filter((run) => run.status === "queued").sort((a,
        b) => (a.queue_position ?? Infinity) - (b.queue_position ?? Infinity));
      const seen = JSON.stringify([quota, waiting]);
      if (seen !== this.seen) {
        this.seen = seen;
        this.draw(quota, waiting);
      }
    } catch (error) {
      if (!this.on) return;
      if (this.seen) this.told.textContent = `Not up to date: ${explain(error)}`;
      else this.place.replaceChildren(state("failed", "What is used could not be read", explain(error), button("Try again",
        { onclick: () => this.open() })));
    }
    clearTimeout(this.timer);
    if (this.on) this.timer = setTimeout(() => this.refresh(), AGAIN_MS);
  }

  draw(quota, waiting) {
    this.tier.textContent = `${plain(quota.tier, 40)} tier`;
    const runs = [allowance("At work", quota.concurrent_runs), allowance("Waiting for a slot", quota.queued_runs),
      allowance("Starting later", quota.delayed_runs)];
    this.place.replaceChildren(
      card("Runs", runs, ""), card("Money", quota.budgets.map(budget), "No budget limits what you spend."),
      card("Model calls and tokens", quota.rate_limits.map(rate), "No rate limits your model calls."));
    if (quota.task_time_ms) this.place.firstChild.append(element("p", { class: "note" },
      `One run works at most ${lasting(quota.task_time_ms)}.`));
    this.queue.replaceChildren(element("h2", {}, "Queue"), waiting.length
      ? element("div", { class: "scroller", tabIndex: 0, role: "region", "aria-label": "Queue" }, element("table", {}, element("caption",
        { class: "hidden" }, "Runs that wait"),
        element("thead", {}, element("tr", {}, ...["Position", "Run", "Thread", "Expected wait"].map((name) => element("th",
          { scope: "col" }, name)))),
        element("tbody", {}, ...waiting.map((run) => element("tr", {},
          element("td", {}, run.queue_position ? `#${run.queue_position}` : run.start_at ? `starts ${moment(run.start_at)}`
            : "behind its thread"),
          element("th", { scope: "row" }, element("a", { href: `#/runs/${encodeURIComponent(run.run_id)}` }, plain(run.agent, 40))),
          element("td", { class: "id" }, plain(run.thread_id, 40)), element("td", {}, run.expected_wait_ms === null ? "—"
            : lasting(run.expected_wait_ms)))))))
      : element("p", { class: "note" }, "Nothing waits."));
  }

  // What there is to work with: agents with their models, and tools.
  async catalogue() {
    try {
      const [agents, tools] = await Promise.all([list("/v1/agents"), list("/v1/tools")]);
      this.made.replaceChildren(element("h2", {}, "Agents and tools"),
        element("ul", { class: "catalogue" }, ...agents.map((agent) => element("li", {}, element("b", { dir: "auto" }, plain(agent.name,
          60)), element("i", {}, plain(agent.model, 60)),
          element("p", {}, plain(agent.description, 300)), agent.tools?.length ? element("p", { class: "note" },
            agent.tools.map((tool) => plain(tool, 60)).join(", ")) : null))),
        element("details", {}, element("summary", {}, some(tools.length, "tool")), element("ul", { class: "catalogue" },
          ...tools.map((tool) =>
          element("li", {}, element("b", {}, plain(tool.name, 80)), element("i", {}, plain(tool.version, 20)), element("p", {},
            plain(tool.description, 300)))))));
    } catch (error) {
      this.made.replaceChildren(element("h2", {}, "Agents and tools"), element("p", { class: "note" }, explain(error)));
    }
  }
}
