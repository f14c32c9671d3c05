"""RunAgentInput, checked: what a client sends of a conversation, and what of it a run is given."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from services.gateway.client_tools import client_tools
from services.gateway.inputs import Said as Told
from services.gateway.refusals import InvalidBody, unsupported
from services.gateway.surfaces.ag_ui.asking import new, whole
from services.gateway.surfaces.ag_ui.interrupts import Answer
from services.gateway.surfaces.ag_ui.messages import MOST_TOLD, Said, read_messages
from services.gateway.surfaces.ag_ui.projection import STATE_KEYS
from services.gateway.surfaces.native.models import ID_PATTERN

MOST_CONTEXT = 100
MOST_ANSWERS = 100
OURS = "bulkhead"
_KNOWN = frozenset({
    "threadId", "runId", "protocolVersion", "parentRunId", "state", "messages", "tools", "context", "forwardedProps", "resume",
})  # fmt: skip
ON_BUSY = {
    "enqueue": pb.ON_BUSY_ENQUEUE, "reject": pb.ON_BUSY_REJECT, "interrupt": pb.ON_BUSY_INTERRUPT, "rollback": pb.ON_BUSY_ROLLBACK,
}  # fmt: skip


class RunInput:
    """A checked request. `warnings` are (code, what, text) of what is taken and has no effect. Raises InvalidBody for the first mistake."""

    def __init__(self, body: Any, headers: Mapping[str, str]) -> None:
        if not isinstance(body, dict):
            raise InvalidBody("the body must be a JSON object")
        self.thread_id = _id(body, "threadId")
        self.run_id = _id(body, "runId")
        self.warnings: list[tuple[str, str, str]] = []
        _protocol(body.get("protocolVersion"))
        self.parent_run_id = _id(body, "parentRunId") if body.get("parentRunId") is not None else ""
        _state(body.get("state"))
        self.tools = client_tools(_plain_tools(body.get("tools")), wrong=InvalidBody)
        self.context = _context(body.get("context"))
        self.messages: list[Said] = read_messages(body.get("messages"))
        self.answers = _answers(body.get("resume"))
        self.on_busy, leaving = self._forwarded(body.get("forwardedProps"))
        leaving = headers.get("x-bulkhead-on-disconnect") or leaving or "continue"
        if leaving not in ("continue", "cancel"):
            raise InvalidBody.field("x-bulkhead-on-disconnect", "must be continue or cancel")
        self.cancel_on_disconnect = leaving == "cancel"
        for name in sorted(str(name)[:64] for name in body if name not in _KNOWN):
            self._warn("parameters_ignored", name, f"Without effect here: {name}.")
        if self.messages and self.messages[-1].role == "user":
            for part in self.messages[-1].left_out:
                self._leave_out(part)

    def _warn(self, code: str, what: str, text: str) -> None:
        if (code, what, text) not in self.warnings:
            self.warnings.append((code, what, text))

    def _leave_out(self, part: str) -> None:
        self._warn("content_parts_skipped", part, f"Some parts of type {part} are not read; the text of their message is.")

    def _forwarded(self, value: Any) -> tuple[int, str]:
        """(what becomes of a run on a busy thread, what becomes of it when its client leaves) as forwardedProps say."""
        if not isinstance(value, dict):
            if value is not None:
                self._warn("parameters_ignored", "forwardedProps", "Without effect here: forwardedProps.")
            return 0, ""
        for name in sorted(str(name)[:64] for name in value if name != OURS):
            self._warn("parameters_ignored", f"forwardedProps.{name}", f"Without effect here: forwardedProps.{name}.")
        ours, where = value.get(OURS), f"forwardedProps.{OURS}"
        if ours is None:
            return 0, ""
        if not isinstance(ours, dict):
            raise InvalidBody.field(where, "must be an object")
        for name in ours:
            if name not in ("onBusy", "onDisconnect"):
                raise InvalidBody.field(f"{where}.{str(name)[:64]}", "is not supported; onBusy and onDisconnect are")
        busy, leaving = ours.get("onBusy"), ours.get("onDisconnect")
        if busy is not None and (not isinstance(busy, str) or busy not in ON_BUSY):
            raise InvalidBody.field(f"{where}.onBusy", f"must be one of {', '.join(ON_BUSY)}")
        if leaving is not None and leaving not in ("continue", "cancel"):
            raise InvalidBody.field(f"{where}.onDisconnect", "must be continue or cancel")
        return ON_BUSY.get(busy, 0) if busy else 0, str(leaving or "")

    def before(self, run_id: str) -> list[dict[str, Any]]:
        """The conversation that came before a run, as the client sent it: without what the run itself said, and what only clients keep."""
        own, question = f"{run_id}/", f"{run_id}/input/"
        kept = [said for said in self.messages if said.role not in ("activity", "reasoning")]
        return [said.wire for said in kept if not said.id.startswith(own) or said.id.startswith(question)]

    def told(self, *, fresh: bool) -> list[Told]:
        """What a run is given. On a thread that is there only what comes last is new: what the user says, and what the calls gave that the
        application was asked to make. A `fresh` one is given all that was said.

        Instructions and context are the run's own, and go with it each time. Raises InvalidBody.
        """
        told = [*self._instructions(), *(whole(self.messages, self._leave_out) if fresh else new(self.messages))]
        if len(told) > MOST_TOLD:
            raise InvalidBody.field("messages", f"a new thread begins with at most {MOST_TOLD} messages, instructions and context included")
        return told

    def create_run(self, agent: str, told: Sequence[pb.InputMessage], key: str) -> pb.CreateRunRequest:
        """The run that answers it, which is given what was `told`."""
        return pb.CreateRunRequest(
            thread_id=self.thread_id,
            run_id=self.run_id,
            agent=agent,
            input=told,
            idempotency_key=key,
            on_disconnect=pb.ON_DISCONNECT_CANCEL if self.cancel_on_disconnect else pb.ON_DISCONNECT_CONTINUE,
            client_tools=self.tools,
        )

    def _instructions(self) -> Iterator[Told]:
        for at, said in enumerate(self.messages):
            if said.role in ("system", "developer") and said.text:
                yield Told("system", said.text, f"messages[{at}]")
        if self.context:
            text = "Context that the application gives:\n" + "\n".join(f"- {about}: {value}" for about, value in self.context)
            yield Told("system", text, "context")

    def check_nothing_new(self, run_id: str) -> None:
        """Raises InvalidBody where a user's message comes behind what a run has said that is to be resumed: it would be lost."""
        last = max((at for at, said in enumerate(self.messages) if said.id.startswith(f"{run_id}/")), default=None)
        for at, said in enumerate(self.messages):
            if last is not None and at > last and said.role == "user":
                raise InvalidBody.field(f"messages[{at}]", "a run that is resumed takes no further message; send it when the run has ended")


def _id(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str):
        raise InvalidBody.field(name, "must be a string" if value is not None else "is required")
    if not re.fullmatch(ID_PATTERN, value) or set(value) == {"."}:
        raise InvalidBody.field(name, f"must match {ID_PATTERN}, and must not consist of dots only")
    return value


def _protocol(value: Any) -> None:
    if value is not None and (not isinstance(value, str) or not re.fullmatch(r"[01](\.\d{1,6}){1,2}", value)):
        raise InvalidBody.field("protocolVersion", "must be a version of the protocol that is known here, as 1.0")


def _state(value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, dict):
        raise InvalidBody.field("state", "must be an object")
    for name in value:
        if name not in STATE_KEYS:
            # It would be gone with the first snapshot, and no agent would have seen it.
            raise unsupported(f"state.{str(name)[:64]}", "is not supported; the state is what the run says of itself", InvalidBody)


def _plain_tools(value: Any) -> Any:
    """Tools without what only front ends make something of."""
    if not isinstance(value, list):
        return value
    return [{name: one for name, one in tool.items() if name != "metadata"} if isinstance(tool, dict) else tool for tool in value]


def _context(value: Any) -> list[tuple[str, str]]:
    if value is None:
        return []
    if not isinstance(value, list) or len(value) > MOST_CONTEXT:
        raise InvalidBody.field("context", f"must be a list of at most {MOST_CONTEXT}")
    found = []
    for at, entry in enumerate(value):
        if not isinstance(entry, dict):
            raise InvalidBody.field(f"context[{at}]", "must be an object")
        for name in ("description", "value"):
            if not isinstance(entry.get(name), str):
                raise InvalidBody.field(f"context[{at}].{name}", "must be a string")
        found.append((entry["description"], entry["value"]))
    return found


def _answers(value: Any) -> list[Answer]:
    if value is None:
        return []
    if not isinstance(value, list) or len(value) > MOST_ANSWERS:
        raise InvalidBody.field("resume", f"must be a list of at most {MOST_ANSWERS}")
    found: dict[str, Answer] = {}
    for at, entry in enumerate(value):
        where = f"resume[{at}]"
        if not isinstance(entry, dict):
            raise InvalidBody.field(where, "must be an object")
        interrupt_id, status, payload = entry.get("interruptId"), entry.get("status"), entry.get("payload")
        if not isinstance(interrupt_id, str) or not interrupt_id:
            raise InvalidBody.field(f"{where}.interruptId", "must be a string")
        if interrupt_id in found:
            raise InvalidBody.field(f"{where}.interruptId", "is answered twice")
        if status not in ("resolved", "cancelled"):
            raise InvalidBody.field(f"{where}.status", "must be resolved or cancelled")
        if status == "resolved" and not isinstance(payload, dict):
            raise InvalidBody.field(f"{where}.payload", "must be an object that fits the interrupt's responseSchema")
        if status == "cancelled" and payload is not None:
            raise InvalidBody.field(f"{where}.payload", "goes with the status resolved")
        found[interrupt_id] = Answer(where, interrupt_id, payload if status == "resolved" else None)
    return list(found.values())
