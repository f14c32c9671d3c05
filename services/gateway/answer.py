"""The answer of a run, put together from its events."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
from bulkhead.orchestrator.v1.orchestrator_pb2 import Event

from services.gateway.client_tools import Call, calls_of
from services.gateway.refusals import RunFailed, run_failed

# Between two messages of one run, for example before and after a tool call.
MESSAGE_BREAK = "\n\n"


class AppendOnlyText:
    """Text for clients that cannot take anything back, from deltas that a later attempt may supersede.

    When an owner of a run dies, the next one writes its text again. What is the same as before is passed over in
    silence; where it differs, the new text follows after a break, because what a client has seen cannot be unsaid.
    """

    def __init__(self) -> None:
        self._sent = ""
        self._base = 0  # characters of _sent that belong to texts given up on
        self._text = ""  # the text as the log now tells it
        self._message = ""
        self._message_start = 0
        # What it was before each delta: (seq, length of _text, _message, _message_start).
        self._before: list[tuple[int, int, str, int]] = []

    def delta(self, seq: int, message_id: str, text: str) -> str:
        """What to send for a delta: all of it, a part, or nothing."""
        if not text:
            return ""
        self._before.append((seq, len(self._text), self._message, self._message_start))
        if message_id != self._message:
            if self._text:
                text = MESSAGE_BREAK + text
            self._message, self._message_start = message_id, len(self._text) + (len(MESSAGE_BREAK) if self._text else 0)
        start = self._base + len(self._text)
        self._text += text
        known = self._sent[start : start + len(text)]
        if text.startswith(known):
            fresh = text[len(known) :]
        else:
            self._base = len(self._sent) + len(MESSAGE_BREAK)
            fresh = MESSAGE_BREAK + self._text
        self._sent += fresh
        return fresh

    def completed(self, seq: int, message_id: str, text: str) -> str:
        """What to send for the whole text of a message: only what its deltas did not bring."""
        if message_id != self._message:
            return self.delta(seq, message_id, text)
        current = self._text[self._message_start :]
        return self.delta(seq, message_id, text[len(current) :]) if text.startswith(current) else ""

    def superseded(self, from_seq: int) -> None:
        """Forgets the text that came with events from number `from_seq` on."""
        while self._before and self._before[-1][0] >= from_seq:
            _, length, self._message, self._message_start = self._before.pop()
            self._text = self._text[:length]

    @property
    def sent(self) -> str:
        """All that was sent."""
        return self._sent


@dataclass
class Answer:
    """What a run has said so far. `finish` is set by its terminal event: finished, failed or cancelled; `calls` are what its client is
    asked to call."""

    run_id: str
    thread_id: str
    text: str = ""
    finish: str = ""
    finish_reason: str = ""
    usage: Mapping[str, Any] = field(default_factory=dict)
    citations: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[dict[str, Any]] = field(default_factory=list)
    failure: RunFailed | None = None
    calls: list[Call] = field(default_factory=list)

    def take(self, event: Event, data: Mapping[str, Any]) -> None:
        """Takes note of an event that says something about the whole."""
        match event.type:
            case "citation":
                self.citations.append(dict(data))
            case "warning":
                self.warnings.append(dict(data))
            case "run_finished":
                self.finish = "finished"
                self.text = str(data.get("output_text", ""))
                self.finish_reason = str(data.get("finish_reason") or "stop")
                self.usage = data.get("usage") or {}
                self.citations = list(data.get("citations") or self.citations)
                self.calls = calls_of(data)
            case "run_cancelled":
                self.finish = "cancelled"
                self.text = str(data.get("output_text", ""))
                self.usage = data.get("usage") or {}
                self.failure = self._failed("RUN_CANCELLED", "the run was cancelled", False)
            case "run_failed":
                self.finish = "failed"
                error = data.get("error") or {}
                self.usage = data.get("usage") or {}
                self.failure = self._failed(str(error.get("reason", "")), str(error.get("message", "")), bool(error.get("retryable")))

    def _failed(self, reason: str, message: str, retryable: bool) -> RunFailed:
        return run_failed(reason, message, retryable, run_id=self.run_id, thread_id=self.thread_id)


# The events that an Answer needs when its text is not streamed.
SUMMARY_TYPES = ("warning", "citation", "run_finished", "run_failed", "run_cancelled")


def data_of(event: Event) -> Mapping[str, Any]:
    """The data of an event; an empty object where it has none."""
    return orjson.loads(event.data_json) if event.data_json else {}
