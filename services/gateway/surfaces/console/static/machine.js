// The states of a conversation on this page, as a table. Nothing else decides what the composer offers.
//
// What feeds it is `agent_status`; where a run tells none, as one of an older version, what its other events say of it (`implied`).

export const STATES = {
  signed_out: { label: "signed out", busy: false, send: "none", stop: false },
  idle: { label: "idle", busy: false, send: "send", stop: false },
  sending: { label: "sending", busy: true, send: "none", stop: true },
  queued: { label: "queued", busy: true, send: "steer", stop: true },
  working: { label: "working", busy: true, send: "steer", stop: true },
  thinking: { label: "thinking", busy: true, send: "steer", stop: true },
  searching: { label: "searching", busy: true, send: "steer", stop: true },
  calling_tool: { label: "calling a tool", busy: true, send: "steer", stop: true },
  writing: { label: "writing", busy: true, send: "steer", stop: true },
  waiting_approval: { label: "waiting for approval", busy: true, send: "steer", stop: true },
  waiting: { label: "waiting", busy: true, send: "steer", stop: true },
  stopping: { label: "stopping", busy: true, send: "none", stop: true },
  reconnecting: { label: "reconnecting", busy: true, send: "none", stop: true },
  trouble: { label: "trouble", busy: false, send: "send", stop: false },
};

// Values of `agent_status` that have a state of their own; any other is `working`.
export const STATUSES = ["queued", "thinking", "searching", "calling_tool", "writing", "waiting_approval", "waiting"];
const AT_WORK = [...STATUSES, "working"];

const statuses = Object.fromEntries(AT_WORK.map((name) => [name, name]));
const ends = { ended: "idle", failed: "trouble", sign_out: "signed_out" };
const atWork = { ...statuses, ...ends, stop: "stopping", lost: "reconnecting" };

export const TRANSITIONS = {
  signed_out: { sign_in: "idle", failed: "trouble" },
  idle: { send: "sending", attach: "working", failed: "trouble", sign_in: "idle", sign_out: "signed_out" },
  trouble: { send: "sending", attach: "working", failed: "trouble", sign_in: "idle", mended: "idle", sign_out: "signed_out" },
  sending: { ...atWork, accepted: "queued" },
  ...Object.fromEntries(AT_WORK.map((name) => [name, atWork])),
  // Whatever a run says on its way to its end, it has been told to stop.
  stopping: { ...ends, refused: "working" },
  reconnecting: { ...atWork, resumed: "working", lost: "reconnecting" },
};

export class Machine {
  constructor(changed = () => {}) {
    this.state = "signed_out";
    this.changed = changed;
    this.told = false;
    // What the run told last.
    this.status = "working";
  }

  // True where the table has the input for this state; else nothing happens.
  take(input, detail = "") {
    let next = TRANSITIONS[this.state][input];
    if (next === undefined) return false;
    // Whoever comes back to a run hears of its status only when that changes.
    if (input === "resumed" && this.told) next = this.status;
    const before = this.state;
    this.state = next;
    this.changed(next, before, detail);
    return true;
  }

  // One event of a run. Once a run tells its status itself, its other events are no longer asked.
  feed(event) {
    if (event.type === "run_started" || event.type === "run_queued") this.told = false;
    if (event.type === "agent_status") {
      this.told = true;
      const status = event.data?.status;
      this.status = STATUSES.includes(status) ? status : "working";
      return this.take(this.status, event.data?.detail || "");
    }
    const { input, detail } = implied(event);
    // An answered question is told before whoever goes on with it says what it does.
    if (!input || (this.told && STATES[input] && event.type !== "interrupt_resolved")) return false;
    return this.take(input, detail);
  }
}

// What an event says of the agent, where it says something.
export function implied({ type, data = {} }) {
  switch (type) {
    case "run_queued": return { input: "queued", detail: data.queue_position ? `position ${data.queue_position}` : "" };
    case "run_started": case "step_started": case "tool_call_completed": case "tool_call_failed": case "interrupt_resolved":
      return { input: "thinking" };
    case "memory_recalled": return { input: "searching" };
    case "tool_call_started": return { input: "calling_tool", detail: data.tool || "" };
    case "child_run_started": return { input: "calling_tool", detail: data.agent || "" };
    case "message_delta": return { input: "writing" };
    case "interrupt_raised": return { input: data.kind === "client_tools" ? "" : "waiting_approval" };
    case "run_finished": case "run_cancelled": case "run_failed": return { input: "ended" };
  }
  return { input: "" };
}
