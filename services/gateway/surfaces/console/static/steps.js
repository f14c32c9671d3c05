// What a run does between its words: calls of tools, its plan, and runs of other agents.

import { element, entry, icon, json, lasting, plain } from "./dom.js";

function brief(value) {
  if (value === undefined || value === null) return "";
  if (typeof value === "object") value = value.result ?? value.value ?? value.message ?? value;
  const single = typeof value === "object" && value !== null && Object.keys(value).length === 1;
  return plain(typeof value === "string" ? value : single ? json(Object.values(value)[0]) : JSON.stringify(value), 120).replace(/\s+/g,
    " ");
}

const row = (name, value) => [element("dt", {}, name), element("dd", {}, typeof value === "object" && value instanceof Node ? value
  : plain(value))];
const block = (name, value) => row(name, element("pre", { tabIndex: 0, role: "region", "aria-label": name }, json(value).slice(0, 40_000)));

export class ToolCard {
  constructor({ tool, version, arguments: given }) {
    this.time = element("time");
    this.brief = element("span", { class: "brief" }, brief(given));
    this.more = element("dl", {}, ...row("version", version || "—"), ...block("arguments", given ?? {}));
    this.word = element("span", { class: "hidden" }, "at work");
    this.node = element("details", { class: "tool" },
      element("summary", {}, icon("tool"), element("b", {}, plain(tool, 80)), this.brief, this.word, this.time), this.more);
  }

  progress({ message, fraction, text }) {
    if (this.node.dataset.outcome) return;
    this.time.textContent = plain(message || text, 60) || (fraction >= 0 ? `${Math.round(fraction * 100)} %` : "");
  }

  end(outcome, { duration_ms: took, output, error, note }) {
    this.node.dataset.outcome = outcome;
    this.word.textContent = outcome;
    this.time.textContent = took === undefined ? "" : lasting(took);
    const result = outcome === "done" && !(error && output === undefined) ? output : error;
    this.more.append(...block(outcome === "done" ? "result" : "error", result ?? ""), ...(note ? row("note", note) : []));
    this.brief.append(`  →  ${brief(result)}`);
  }

  // The run ended first.
  abandon() {
    if (this.node.dataset.outcome) return;
    this.node.dataset.outcome = "failed";
    this.word.textContent = "not finished";
  }
}

const STEP = { pending: "to do", in_progress: "at work", done: "done", skipped: "left out", failed: "failed" };

export class PlanBox {
  constructor() {
    this.list = element("ol", {});
    this.node = element("section", { class: "plan", "aria-label": "Plan" }, element("h3", {}, "Plan"), this.list);
  }

  show(steps) {
    this.list.replaceChildren(...steps.map(({ title, status }) =>
      element("li", { "data-status": Object.hasOwn(STEP, status) ? status : "pending" },
        element("span", { dir: "auto" }, plain(title)), element("i", {}, entry(STEP, status) ?? plain(status, 20)))));
  }
}

export function childLine({ run_id: run, agent }) {
  return element("p", { class: "trace child", "data-run": run }, "Asked ", element("bdi", {}, plain(agent, 60)), " — ",
    element("a", { href: `#/runs/${encodeURIComponent(run)}` }, "its run"), " ", element("i", {}, "at work"));
}
