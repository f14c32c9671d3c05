"""The bodies of the messages about the end of a run."""

from datetime import UTC, datetime
from typing import Any

import orjson

from services.orchestrator.records import RunRecord, RunRef
from services.orchestrator.webhooks.records import EVENT_TYPES, HANDED_OFF, Message, message_id_of

# The specification asks for small bodies; whoever wants the whole of a long answer asks for the run.
MOST_BODY_BYTES = 64 * 1024
_SHRINK = 0.95


def messages_of(ref: RunRef, record: RunRecord) -> list[Message]:
    """All messages about a run that has ended: its end and, where that is so, that a person is to take over."""
    found = [message_of(ref, record)]
    if (handoff := record.result.get("handoff")) is not None:
        data = {
            "run_id": ref.run_id, "thread_id": ref.thread_id, "agent": record.spec.agent, "agent_version": record.spec.agent_version,
            "handoff": handoff, "metadata": dict(record.spec.metadata),
        }  # fmt: skip
        payload = {"type": HANDED_OFF, "timestamp": _timestamp(record), "data": data}
        found.append(Message(message_id_of(ref, HANDED_OFF), HANDED_OFF, ref.run_id, orjson.dumps(payload), _user(record)))
    return found


def message_of(ref: RunRef, record: RunRecord) -> Message:
    """The message about a run that has ended: the same bytes whoever makes it."""
    event_type = EVENT_TYPES[record.status]
    result = record.result
    text = result.get("output_text", "")
    data: dict[str, Any] = {
        "run_id": ref.run_id, "thread_id": ref.thread_id, "agent": record.spec.agent, "agent_version": record.spec.agent_version,
        "status": record.status, "output_text": text, "output_truncated": False, "finish_reason": result.get("finish_reason", ""),
        "usage": result.get("usage", {}), "error": result.get("error"), "metadata": dict(record.spec.metadata),
    }  # fmt: skip
    payload = {"type": event_type, "timestamp": _timestamp(record), "data": data}
    return Message(message_id_of(ref), event_type, ref.run_id, _body(payload, text), _user(record))


def _user(record: RunRecord) -> str:
    return str(record.spec.principal.get("user", ""))


def _timestamp(record: RunRecord) -> str:
    return datetime.fromtimestamp(record.ended_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _body(payload: dict[str, Any], text: str) -> bytes:
    """JSON of less than MOST_BODY_BYTES; the text is cut where it must be, and said to be."""
    body = orjson.dumps(payload)
    while len(body) >= MOST_BODY_BYTES and text:
        # Escaping makes some texts longer than others, so the share that has to go is asked of the result.
        text = text[: min(int(len(text) * _SHRINK * MOST_BODY_BYTES / len(body)), len(text) - 1)]
        payload["data"] |= {"output_text": text, "output_truncated": True}
        body = orjson.dumps(payload)
    return body
