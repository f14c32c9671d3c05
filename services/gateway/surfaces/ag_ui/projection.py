"""The log of one run as AG-UI events: the same log gives the same events, the same messages and the same state, whenever it is read."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from bulkhead.orchestrator.v1.orchestrator_pb2 import Event

from services.gateway.answer import data_of
from services.gateway.client_tools import CLIENT_TOOLS, Call, calls_of
from services.gateway.following import TERMINAL
from services.gateway.surfaces.ag_ui.conversation import Conversation, changes
from services.gateway.surfaces.ag_ui.exact import arguments_of, output_of
from services.gateway.surfaces.ag_ui.interrupts import shown

PROTOCOL = "1.0"
AgEvent = dict[str, Any]
# What the state of a run has. A client sends it back with its next request; what else it may have is none of ours.
STATE_KEYS = frozenset({"plan", "citations", "warnings"})
# Told by other events, or of no use to a client.
_SILENT = frozenset({"run_started", "message_completed", "step_completed", "tool_call_retried"})
# What a tool gives beside text, as one kind of event for whoever draws it.
_CONTENT = frozenset({"image", "table", "code_block", "chart", "audio", "file"})


class Projection:
    """One run, event by event. `name` is the runId that the client knows it by; `base` are the messages before the run's own."""

    def __init__(self, run_id: str, thread_id: str, name: str, base: list[dict[str, Any]]) -> None:
        self.run_id, self.thread_id, self.name = run_id, thread_id, name
        self.base = base
        self.said = Conversation()
        self.state: dict[str, Any] = {"plan": None, "citations": [], "warnings": []}
        # What is asked of people and not answered, by id; and all that was ever asked, with the answer once there is one.
        self.open: dict[str, Mapping[str, Any]] = {}
        self.asked: dict[str, Mapping[str, Any]] = {}
        self.raised_seq: dict[str, int] = {}
        self.seq, self.at_ms = 0, 0
        self.usage_since = 0
        self._usage: list[tuple[int, dict[str, Any]]] = []
        self._speaking = ""
        self._step = 0
        self._steps: dict[str, int] = {}
        self._children: dict[str, tuple[str, str]] = {}
        self._calls: set[str] = set()
        self._activities: dict[str, dict[str, Any]] = {}
        self._contents: list[AgEvent] = []
        # Text that may be taken back: (seq, log's message id, pieces before); and how messages of the log are called here.
        self._provisional: list[tuple[int, str, int]] = []
        self._names: dict[str, str] = {}
        self._mark = 0

    def take(self, event: Event) -> list[AgEvent]:
        """What one event of the log is here. Of `log_gap` nothing: the log has to be read anew."""
        found = list(self._of(event, data_of(event)))
        self.seq, self.at_ms = event.seq, event.occurred_at.ToMilliseconds()
        return found

    def _of(self, event: Event, data: Mapping[str, Any]) -> Iterator[AgEvent]:
        match event.type:
            case "message_delta":
                yield from self._delta(event.seq, str(data.get("message_id", "")), str(data.get("text", "")))
            case "message_completed":
                yield from self._completed(str(data.get("message_id", "")), str(data.get("text", "")))
            case "tool_call_started":
                yield from self._announce(str(data["call_id"]), str(data["tool"]), arguments_of(event))
            case "tool_call_completed" | "tool_call_failed":
                yield from self._announce(str(data["call_id"]), str(data.get("tool", "")), "{}")
                yield from self._result(str(data["call_id"]), output_of(event, data))
            case "tool_call_progress":
                yield from self._progress(data)
            case "step_started":
                yield from self._step_started(int(data.get("step", 0)), str(data.get("name") or ""))
            case "step_completed":
                yield from self._step_completed(int(data.get("step", 0)), str(data.get("name") or ""))
            case "plan_updated":
                yield from self._change(plan=dict(data))
            case "citation":
                yield from self._change(citations=[*self.state["citations"], dict(data)])
            case "warning":
                yield from self._change(warnings=[*self.state["warnings"], dict(data)])
                yield custom("warning", data)
            case "usage":
                self._usage.append((event.seq, _tokens(data)))
            case "steer_applied":
                yield from self._heard(f"{self.run_id}/steer/{data.get('number', event.seq)}", str(data.get("text", "")))
            case "child_run_started":
                yield from self._child_started(data)
            case "child_run_finished":
                yield from self._child_finished(data)
            case "interrupt_raised" if data.get("kind") == CLIENT_TOOLS:
                yield from self._client_calls(calls_of({"client_tool_calls": data.get("calls")}))
            case "interrupt_raised":
                yield from self._raised(event, data)
            case "interrupt_updated" | "interrupt_resolved":
                self._answered(event.type, data)
                yield custom(event.type, data)
            case "attempt_superseded":
                yield from self._superseded(event.seq, int(data.get("from_seq", 0)))
            case "log_gap":
                self._mark = event.seq
            case "run_queued":
                if data.get("queue_position"):
                    yield custom("run_queued", {"queue_position": data["queue_position"]})
            case kind if kind in _CONTENT:
                self._contents.append(custom("content", {"type": kind, **data}))
                yield self._contents[-1]
            case kind if kind in TERMINAL:
                yield from self._ended(kind, data)
            case kind if kind not in _SILENT:
                yield custom(kind, data)

    # --- text ---

    def _name(self, message_id: str) -> str:
        """What a message of the log is called here: apart from those of other runs, and from one of this name that was taken back."""
        known = self._names.get(message_id)
        if known is None:
            own = message_id if message_id.startswith(f"{self.run_id}/") else f"{self.run_id}/{message_id or self._step}"
            known = self._names[message_id] = f"{own}~{self._mark}" if self._mark else own
        return known

    def _delta(self, seq: int, message_id: str, text: str) -> Iterator[AgEvent]:
        if not text:
            return
        name = self._name(message_id)
        if name != self._speaking:
            yield from self._stop_speaking()
            self.said.start(name, "assistant")
            self._speaking = name
            yield {"type": "TEXT_MESSAGE_START", "messageId": name, "role": "assistant"}
        self._provisional.append((seq, message_id, self.said.say(name, text)))
        yield {"type": "TEXT_MESSAGE_CONTENT", "messageId": name, "delta": text}

    def _completed(self, message_id: str, text: str) -> Iterator[AgEvent]:
        name = self._name(message_id)
        shown = self.said.text(name)
        self._provisional = [entry for entry in self._provisional if entry[1] != message_id]
        if text.startswith(shown):
            if len(text) > len(shown):
                yield from self._delta(self.seq, message_id, text[len(shown) :])
                self._provisional.pop()
            yield from self._stop_speaking()
            return
        # Not what was shown: somebody has taken a part of it away.
        yield from self._stop_speaking()
        self.said.replace(name, text)
        yield self.messages_snapshot()

    def _stop_speaking(self) -> Iterator[AgEvent]:
        if self._speaking:
            yield {"type": "TEXT_MESSAGE_END", "messageId": self._speaking}
            self._speaking = ""

    def _superseded(self, seq: int, from_seq: int) -> Iterator[AgEvent]:
        """Takes text back: the messages as they stand replace those that a client has."""
        self._mark = seq
        taken_back = False
        while self._provisional and self._provisional[-1][0] >= from_seq:
            _, message_id, pieces = self._provisional.pop()
            name, taken_back = self._names[message_id], True
            if not self.said.cut(name, pieces):
                # Said again it is another message: a name is not used twice within a run.
                del self._names[message_id]
                if name == self._speaking:
                    yield from self._stop_speaking()
        if taken_back:
            yield self.messages_snapshot()

    def _heard(self, message_id: str, text: str) -> Iterator[AgEvent]:
        """What the user said while the run was at work."""
        if not text:
            return
        yield from self._stop_speaking()
        self.said.start(message_id, "user")
        self.said.say(message_id, text)
        yield {"type": "TEXT_MESSAGE_START", "messageId": message_id, "role": "user"}
        yield {"type": "TEXT_MESSAGE_CONTENT", "messageId": message_id, "delta": text}
        yield {"type": "TEXT_MESSAGE_END", "messageId": message_id}

    # --- tools ---

    def call_id(self, call_id: str) -> str:
        """A call as it is named here: calls of two runs of a thread may be named alike in the log."""
        return f"{self.run_id}/{call_id}"

    def _announce(self, call_id: str, tool: str, arguments: str) -> Iterator[AgEvent]:
        """A call, once: one that waits for its approval is told of before it starts."""
        yield from self._begin(self.call_id(call_id), tool, arguments)

    def _client_calls(self, calls: Iterable[Call]) -> Iterator[AgEvent]:
        """Calls that the application makes. Their ids are those that its results have to name."""
        for call in calls:
            yield from self._begin(call.tool_call_id, call.name, call.arguments)

    def _begin(self, name: str, tool: str, arguments: str) -> Iterator[AgEvent]:
        if name in self._calls:
            return
        yield from self._stop_speaking()
        self._calls.add(name)
        parent = self._name(f"{self.run_id}/{self._step}")
        self.said.call(name, tool, arguments, parent)
        yield {"type": "TOOL_CALL_START", "toolCallId": name, "toolCallName": tool, "parentMessageId": parent}
        yield {"type": "TOOL_CALL_ARGS", "toolCallId": name, "delta": arguments}
        yield {"type": "TOOL_CALL_END", "toolCallId": name}

    def _result(self, call_id: str, content: str) -> Iterator[AgEvent]:
        name = self.call_id(call_id)
        message_id = f"{name}/result"
        self.said.result(message_id, name, content)
        yield {"type": "TOOL_CALL_RESULT", "messageId": message_id, "toolCallId": name, "content": content, "role": "tool"}

    def _progress(self, data: Mapping[str, Any]) -> Iterator[AgEvent]:
        name = self.call_id(str(data.get("call_id", "")))
        content = {**data, "toolCallId": name}
        before = self._activities.get(name)
        self._activities[name] = content
        if before is None:
            yield _activity("ACTIVITY_SNAPSHOT", name, content=content)
        elif patch := list(changes(before, content)):
            yield _activity("ACTIVITY_DELTA", name, patch=patch)

    # --- steps, the plan, other agents ---

    def _step_started(self, step: int, name: str) -> Iterator[AgEvent]:
        # Each owner of the run announces the step that it is at.
        self._step = step
        label = name or f"step {step}"
        if label not in self._steps:
            yield from self._stop_speaking()
            self._steps[label] = step
            yield {"type": "STEP_STARTED", "stepName": label}

    def _step_completed(self, step: int, name: str) -> Iterator[AgEvent]:
        yield from self._stop_speaking()
        for label in [label for label, number in self._steps.items() if label == name or (not name and number == step)]:
            del self._steps[label]
            yield {"type": "STEP_FINISHED", "stepName": label}

    def _change(self, **what: Any) -> Iterator[AgEvent]:
        after = {**self.state, **what}
        delta = list(changes(self.state, after))
        self.state = after
        if delta:
            yield {"type": "STATE_DELTA", "delta": delta}

    def _child_started(self, data: Mapping[str, Any]) -> Iterator[AgEvent]:
        child = str(data["run_id"])
        if child not in self._children:
            self._children[child] = (str(data.get("agent", "")), self.call_id(str(data.get("call_id", ""))))
            yield self._child(child)

    def _child(self, child: str) -> AgEvent:
        agent, call_id = self._children[child]
        return {"type": "SUBAGENT_STARTED", "subagentRunId": child, "name": agent, "parentToolCallId": call_id}

    def _child_finished(self, data: Mapping[str, Any]) -> Iterator[AgEvent]:
        child, status = str(data.get("run_id", "")), str(data.get("status", ""))
        if self._children.pop(child, None) is None:
            return
        if status == "succeeded":
            yield {"type": "SUBAGENT_FINISHED", "subagentRunId": child, "outcome": {"type": "success"}}
        else:
            yield {"type": "SUBAGENT_ERROR", "subagentRunId": child, "message": f"The run of this agent has {status or 'ended'}."}

    # --- what people are asked ---

    def _raised(self, event: Event, data: Mapping[str, Any]) -> Iterator[AgEvent]:
        interrupt_id = str(data["interrupt_id"])
        self.open[interrupt_id] = self.asked[interrupt_id] = data
        self.raised_seq[interrupt_id] = event.seq
        yield from self._announce(str(data.get("call_id", "")), str(data.get("tool", "")), arguments_of(event))

    def _answered(self, kind: str, data: Mapping[str, Any]) -> None:
        interrupt_id = str(data.get("interrupt_id", ""))
        known = {**self.asked.get(interrupt_id, {}), **data}
        self.asked[interrupt_id] = known
        if kind == "interrupt_resolved":
            self.open.pop(interrupt_id, None)
        elif interrupt_id in self.open:
            self.open[interrupt_id] = known

    # --- the beginning and the end ---

    def started(self) -> AgEvent:
        """RUN_STARTED."""
        return {"type": "RUN_STARTED", "threadId": self.thread_id, "runId": self.name, "protocolVersion": PROTOCOL}

    def messages_snapshot(self) -> AgEvent:
        """MESSAGES_SNAPSHOT: what was before, and what the run has said."""
        return {"type": "MESSAGES_SNAPSHOT", "messages": [*self.base, *self.said.wire()]}

    def state_snapshot(self) -> AgEvent:
        """STATE_SNAPSHOT."""
        return {"type": "STATE_SNAPSHOT", "snapshot": self.state}

    def prelude(self) -> list[AgEvent]:
        """All that a client needs which comes in here: as it stands, and what is begun and goes on."""
        return [self.started(), *self.standing()]

    def standing(self) -> list[AgEvent]:
        """As `prelude`, within a run that is begun."""
        found = [self.messages_snapshot(), self.state_snapshot()]
        found += [_activity("ACTIVITY_SNAPSHOT", name, content=content) for name, content in self._activities.items()]
        found += self._contents
        found += [self._child(child) for child in self._children]
        found += [{"type": "STEP_STARTED", "stepName": label} for label in self._steps]
        if self._speaking:
            found.append({"type": "TEXT_MESSAGE_START", "messageId": self._speaking, "role": "assistant"})
        return found

    def closing(self, of_children: Mapping[str, Any]) -> Iterator[AgEvent]:
        """Ends what is begun. `of_children` is what the ends of other agents' runs say."""
        yield from self._stop_speaking()
        yield from ({"subagentRunId": child, **of_children} for child in reversed(self._children))
        yield from ({"type": "STEP_FINISHED", "stepName": label} for label in reversed(self._steps))

    def become(self, other: "Projection") -> list[AgEvent]:
        """Goes over to what the log tells by now, after a part of it was lost: from here on `other` takes its events."""
        found = [] if other._speaking == self._speaking else list(self._stop_speaking())
        lost = {"type": "SUBAGENT_ERROR", "message": "The state store lost the beginning of this."}
        found += [{**lost, "subagentRunId": child} for child in self._children if child not in other._children]
        found += [{"type": "STEP_FINISHED", "stepName": label} for label in reversed(self._steps)]
        begun = {("SUBAGENT_STARTED", child) for child in self._children} | {("TEXT_MESSAGE_START", self._speaking)}
        standing = other.standing()
        return found + [one for one in standing if (one["type"], one.get("subagentRunId") or one.get("messageId")) not in begun]

    def paused(self) -> list[AgEvent]:
        """The run waits for people: it is closed here, and its answers open another."""
        suspended = {"type": "SUBAGENT_FINISHED", "outcome": {"type": "suspended"}}
        found = [*self.closing(suspended), self.state_snapshot(), self.messages_snapshot()]
        outcome = {"type": "interrupt", "interrupts": [shown(one, self.call_id(str(one.get("call_id", "")))) for one in self.open.values()]}
        return [*found, self._finished(outcome)]

    def _ended(self, kind: str, data: Mapping[str, Any]) -> Iterator[AgEvent]:
        yield from self._stop_speaking()
        text = str(data.get("output_text", ""))
        if kind == "run_finished" and text and not self.said.says_something():
            yield from self._completed(f"{self.run_id}/output", text)
        if kind == "run_finished":
            yield from self._client_calls(calls_of(data))
            yield from self.closing({"type": "SUBAGENT_FINISHED", "outcome": {"type": "success"}})
            result = {"text": text, "finishReason": data.get("finish_reason") or "stop", "citations": data.get("citations") or []}
            yield {**self._finished({"type": "success"}), "result": result}
            return
        yield from self.closing({"type": "SUBAGENT_ERROR", "message": "The run that asked this agent has ended."})
        if kind == "run_cancelled":
            yield self._finished({"type": "cancelled"})
            return
        error = data.get("error") or {}
        yield {
            "type": "RUN_ERROR", "message": str(error.get("message") or "the run failed"), "code": str(error.get("reason") or "RUN_FAILED"),
            "metadata": {"bulkhead": {"retryable": bool(error.get("retryable"))}}, **self._used(),
        }  # fmt: skip

    def _finished(self, outcome: Mapping[str, Any]) -> AgEvent:
        return {"type": "RUN_FINISHED", "threadId": self.thread_id, "runId": self.name, "outcome": outcome, **self._used()}

    def _used(self) -> dict[str, Any]:
        """Tokens of the model calls since the run was last taken up, by provider and model."""
        totals: dict[tuple[str, str], dict[str, Any]] = {}
        for seq, entry in self._usage:
            if seq > self.usage_since:
                kept = totals.setdefault((entry.get("provider", ""), entry.get("model", "")), {})
                for name, value in entry.items():
                    kept[name] = kept.get(name, 0) + value if isinstance(value, int) else value
        return {"usage": list(totals.values())} if totals else {}


def custom(kind: str, data: Mapping[str, Any]) -> AgEvent:
    """An event of the log that the protocol has no event for."""
    return {"type": "CUSTOM", "name": f"bulkhead.{kind}", "value": data}


def _activity(kind: str, call: str, **what: Any) -> AgEvent:
    return {"type": kind, "messageId": f"{call}/progress", "activityType": "bulkhead.tool_call_progress", **what}


def _tokens(data: Mapping[str, Any]) -> dict[str, Any]:
    known = {name: str(data[name]) for name in ("provider", "model") if data.get(name)}
    counts = {"inputTokens": data.get("input_tokens"), "outputTokens": data.get("output_tokens")}
    known |= {name: int(count) for name, count in counts.items() if count is not None}
    return {**known, "totalTokens": known.get("inputTokens", 0) + known.get("outputTokens", 0)}
