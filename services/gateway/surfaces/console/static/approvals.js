// What a run asks of a person, as buttons: approve, reject, edit the arguments; of a call of unknown outcome, what became of it.

import { post, whole } from "./api.js";
import { $, announce, button, element, entry, explain, icon, json, moment, plain } from "./dom.js";

const OUTCOME = {
  approved: "Approved", rejected: "Rejected", expired: "Nobody decided in time", cancelled: "The run ended first", answered: "Answered",
};
const UNKNOWN = [["done", "It was done"], ["failed", "It was not done"], ["retry", "Try it again"], ["cancel_run", "End the run"]];

let cards = 0;

// The approval of `interrupt_raised`, and one of GET /v1/approvals, in the same words.
function read(data) {
  return {
    id: data.interrupt_id ?? data.approval_id, unknown: data.kind === "outcome_unknown", tool: plain(data.tool, 80),
      reason: plain(data.reason, 400),
    given: data.arguments, digest: data.arguments_digest, fourEyes: data.four_eyes,
    expires: data.expires_at_ms ? new Date(data.expires_at_ms).toISOString() : data.expires_at,
  };
}

export class ApprovalCard {
  // `next` is what has the focus when whoever had it here has decided.
  constructor(data, { live = true, decided = () => {}, next = () => $("input") } = {}) {
    Object.assign(this, read(data), { decided, next, open: true, pressed: null });
    this.number = cards += 1;
    const title = this.unknown ? `What became of ${this.tool}?` : `May ${this.tool} be called?`;
    const words = this.unknown
      ? "Nobody knows whether this call took effect, and it may not simply be made again."
      : this.fourEyes ? "Two people have to approve the same arguments." : "The run waits until somebody decides.";
    this.shown = element("pre", { tabIndex: 0, role: "region", "aria-label": "Arguments" }, json(this.given));
    this.area = element("div", { class: "editing", hidden: true });
    this.buttons = element("div", { class: "actions" });
    this.told = element("p", { class: "told", role: "status" });
    this.node = element("section", { class: "approval", "data-state": "open", "aria-labelledby": `approval-${this.number}` },
      element("h3", { id: `approval-${this.number}` }, icon("hand"), title), element("p", {}, this.reason ? `${words} Why: ${this.reason}`
        : words),
      this.shown, this.area, this.buttons, this.told,
      this.expires ? element("p", { class: "note" }, `Until ${moment(this.expires)}`) : null);
    if (live) this.offer();
  }

  offer() {
    if (this.unknown) {
      this.buttons.replaceChildren(...UNKNOWN.map(([verb, label]) => button(label, { kind: verb === "cancel_run" ? "danger" : "",
        onclick: () => this.answer(verb) })));
      return;
    }
    this.buttons.replaceChildren(
      button("Approve", { kind: "primary", symbol: "check", onclick: () => this.decide({ verb: "approve" }) }),
      button("Edit arguments", { symbol: "pen", onclick: () => this.edit() }),
      button("Reject", { kind: "danger", symbol: "cross", onclick: () => this.reject() }));
  }

  form(label, value, field, ...actions) {
    const id = `approval-field-${this.number}`;
    field.id = id;
    field.value = value;
    this.area.replaceChildren(element("label", { htmlFor: id }, label), field,
      element("div", { class: "actions" }, ...actions, button("Back", { kind: "ghost", onclick: () => this.back() })));
    this.area.hidden = false;
    this.buttons.hidden = true;
    field.focus();
  }

  back() {
    this.area.hidden = true;
    this.buttons.hidden = false;
    this.told.textContent = "";
    this.buttons.querySelector("button")?.focus();
  }

  edit() {
    const field = element("textarea", { rows: Math.min(14, json(this.given).split("\n").length + 1), spellcheck: false, class: "mono" });
    this.form("Arguments, as JSON", json(this.given), field, button("Approve with these", {
      kind: "primary",
      onclick: () => {
        let changed;
        try {
          changed = JSON.parse(field.value);
        } catch (error) {
          this.tell(`This is not JSON: ${error.message}`);
          return field.focus();
        }
        if (typeof changed !== "object" || changed === null || Array.isArray(changed)) return this.tell("Arguments are an object: { … }");
        return this.decide({ verb: "edit", arguments: changed });
      },
    }));
  }

  reject() {
    const field = element("input", { type: "text", maxLength: 500 });
    this.form("Why? The model reads this.", "", field, button("Reject the call", { kind: "danger",
      onclick: () => this.decide({ verb: "reject", reason: field.value }) }));
  }

  answer(verb) {
    if (verb !== "done") return this.decide({ verb });
    const field = element("textarea", { rows: 3, spellcheck: false, class: "mono" });
    return this.form("Its result, as JSON", "{}", field, button("Go on with this", {
      kind: "primary",
      onclick: () => {
        try {
          this.decide({ verb, result: JSON.parse(field.value) });
        } catch (error) {
          this.tell(`This is not JSON: ${error.message}`);
        }
      },
    }));
  }

  tell(text) {
    this.told.textContent = text;
  }

  async decide(decision) {
    const all = this.node.querySelectorAll("button");
    // A button that is disabled loses the focus.
    this.pressed = this.node.contains(document.activeElement) ? document.activeElement : null;
    all.forEach((one) => (one.disabled = true));
    this.tell("sending");
    try {
      const digest = this.digest && decision.verb !== "edit" ? { arguments_digest: this.digest } : {};
      await post(`/v1/approvals/${whole(this.id)}/decision`, { ...decision, ...digest });
      this.tell("");
      this.close({ approve: "Approved", edit: "Approved with other arguments", reject: "Rejected" }[decision.verb] || "Answered");
      this.decided();
    } catch (error) {
      all.forEach((one) => (one.disabled = false));
      if (document.activeElement === document.body) this.pressed?.focus();
      this.pressed = null;
      const first = error.body?.decided_by ? ` by ${plain(error.body.decided_by, 60)}: ${plain(error.body.verb, 20)}` : "";
      this.tell(`${explain(error)}${first}`);
      announce(explain(error), true);
      if (error.reason === "ALREADY_DECIDED") this.close(`Decided${first}`);
    }
  }

  update(data) {
    if (data.arguments !== undefined) {
      this.given = data.arguments;
      this.digest = data.arguments_digest;
      this.shown.textContent = json(data.arguments);
    }
    this.tell(data.delegated_to ? `Passed on to ${plain(data.delegated_to, 80)}`
      : `${plain(data.by, 60)}: ${plain(data.verb, 20)}. It is still open.`);
  }

  resolve(data) {
    if (data.arguments !== undefined && data.arguments !== null) this.shown.textContent = json(data.arguments);
    const by = data.by ? ` by ${plain(data.by, 60)}` : "";
    const why = data.reason ? `: ${plain(data.reason, 300)}` : "";
    this.open = true;
    this.close(`${entry(OUTCOME, data.outcome) || plain(data.outcome, 40) || "Decided"}${by}${why}`, data.outcome);
  }

  close(words = "The run ended first", outcome = "") {
    if (!this.open) return;
    this.open = false;
    const focused = this.node.contains(document.activeElement) || (this.pressed && document.activeElement === document.body);
    this.pressed = null;
    this.node.dataset.state = outcome || "closed";
    this.area.hidden = true;
    this.buttons.replaceChildren();
    this.tell(words);
    if (focused) this.next()?.focus();
  }
}
