"""The event stream of the Messages API as chunks in OpenAI's shape."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from services.llm_gateway.chat import MALFORMED_ALLOWED, Chunk, malformed, text_of
from services.llm_gateway.failures import Failure, UpstreamFault
from services.llm_gateway.messages_shape import CALL_EXTRAS, JSON_TOOL, OWN_FIELDS, ending_of, openai_usage
from services.llm_gateway.sse import SseParser


@dataclass(slots=True)
class _Open:
    """A content block that has begun. `call` is the number of its tool call, -1 for other blocks."""

    kind: str
    block: dict[str, Any]
    call: int = -1
    pieces: list[str] = field(default_factory=list)


class MessagesReader:
    """Turns the bytes of one stream into chunks. Pure but for the clock that dates them.

    Blocks without a like in OpenAI's shape come whole when they end, in the delta's `provider_specific_fields.content_block`; citations
    as they come, in `.citation`; a text block that follows another one is announced by `.new_block`.
    """

    def __init__(self, failure: Callable[[Mapping[str, Any]], Failure]) -> None:
        """`failure` classifies the error object of an error event."""
        self._failure = failure
        self._parser = SseParser()
        self._open: dict[int, _Open] = {}
        self._head: dict[str, Any] = {"id": "", "object": "chat.completion.chunk", "created": int(time.time()), "model": ""}
        self._usage: dict[str, Any] = {}
        self._stopped = False
        self._calls = 0
        self._last_kind = ""
        self._gap = False
        self.done = False
        self.malformed_events = 0

    @property
    def finished(self) -> bool:
        """Whether a stop_reason has come and no tool call is half said."""
        return self._stopped and not any(block.call >= 0 for block in self._open.values())

    def feed(self, read: bytes) -> list[Chunk]:
        """The chunks that end within `read`. Raises UpstreamFault for an error event and for what is no such stream."""
        return self._chunks(self._parser.feed(read))

    def end(self) -> list[Chunk]:
        """What the end of the stream completes. A last event that is none was cut off, which `finished` tells."""
        return self._chunks(self._parser.end(), closing=True)

    def _chunks(self, events: list[bytes], *, closing: bool = False) -> list[Chunk]:
        found: list[Chunk] = []
        try:
            self._read(events, found, closing)
        except UpstreamFault as fault:
            fault.sent = found
            raise
        return found

    def _read(self, events: list[bytes], found: list[Chunk], closing: bool) -> None:
        for raw in events:
            if self.done:
                break
            try:
                event = orjson.loads(raw)
            except orjson.JSONDecodeError:
                if not closing:
                    self._spoilt("an event is not JSON")
                continue
            if not isinstance(event, dict):
                self._spoilt("an event is no object")
                continue
            try:
                made = self._event(event)
            except (KeyError, TypeError, AttributeError, orjson.JSONDecodeError):
                self._spoilt("an event is of the wrong shape")
                continue
            if made and self._gap:
                made[0].after_gap, self._gap = True, False
            found += made

    def _spoilt(self, message: str) -> None:
        self.malformed_events += 1
        self._gap = True
        # A tool call without one of its pieces would be another call.
        if self.malformed_events > MALFORMED_ALLOWED or any(block.call >= 0 for block in self._open.values()):
            raise malformed(message)

    def _event(self, event: dict[str, Any]) -> list[Chunk]:
        match event.get("type"):
            case "content_block_delta":
                return self._delta(self._open[event["index"]], event["delta"])
            case "content_block_start":
                return self._start(event["index"], event["content_block"])
            case "content_block_stop":
                return self._stop(self._open.pop(event["index"]))
            case "message_start":
                return self._begin(event["message"])
            case "message_delta":
                return self._end(event)
            case "message_stop":
                self.done = True
            case "error":
                error = event.get("error")
                raise UpstreamFault(self._failure(error if isinstance(error, Mapping) else {}))
            case None if isinstance(event.get("error"), Mapping):
                raise UpstreamFault(self._failure(event["error"]))
        # Pings, and events that the API may add.
        return []

    def _begin(self, message: dict[str, Any]) -> list[Chunk]:
        self._head |= {"id": text_of(message.get("id")), "model": text_of(message.get("model"))}
        usage = message.get("usage")
        self._usage = dict(usage) if isinstance(usage, Mapping) else {}
        delta: dict[str, Any] = {"role": "assistant", "content": ""}
        counted = openai_usage(usage)
        own = {"prompt_usage": counted} if counted else {}
        own |= {key: message[key] for key in ("container", "diagnostics") if message.get(key) is not None}
        return [self._chunk(delta | {OWN_FIELDS: own} if own else delta)]

    def _start(self, index: int, block: dict[str, Any]) -> list[Chunk]:
        kind = block["type"]
        made = self._open[index] = _Open(kind, block)
        before, self._last_kind = self._last_kind, kind
        if kind == "text":
            text = text_of(block.get("text"))
            news = [self._chunk({OWN_FIELDS: {"new_block": "text"}}, opaque=True)] if before == "text" else []
            return [*news, *([self._text(text)] if text else [])]
        if kind == "tool_use" and block["name"] != JSON_TOOL:
            made.call, self._calls = self._calls, self._calls + 1
            function = {"name": text_of(block["name"]), "arguments": ""}
            extras = {key: block[key] for key in CALL_EXTRAS & block.keys() if block[key] is not None}
            return [self._tool({"index": made.call, "id": text_of(block["id"]), "type": "function", "function": function, **extras})]
        if kind == "thinking" and (thought := text_of(block.get("thinking"))):
            made.pieces.append(thought)
            return [self._chunk({"reasoning_content": thought}, opaque=True)]
        return []

    def _delta(self, block: _Open, delta: dict[str, Any]) -> list[Chunk]:
        kind = delta["type"]
        if kind == "text_delta":
            text = _string(delta["text"])
            return [self._text(text)] if text else []
        if kind == "input_json_delta":
            piece = _string(delta["partial_json"])
            if not piece:
                return []
            block.pieces.append(piece)
            if block.call >= 0:
                return [self._tool({"index": block.call, "function": {"arguments": piece}})]
            return [self._text(piece)] if block.block.get("name") == JSON_TOOL else []
        if kind == "thinking_delta":
            thought = _string(delta["thinking"])
            block.pieces.append(thought)
            return [self._chunk({"reasoning_content": thought}, opaque=True)] if thought else []
        if kind == "signature_delta":
            block.block["signature"] = delta["signature"]
            return []
        if kind == "citations_delta":
            return [self._chunk({OWN_FIELDS: {"citation": delta["citation"]}}, opaque=True)]
        return [self._chunk({OWN_FIELDS: {"delta": delta}}, opaque=True)]

    def _stop(self, block: _Open) -> list[Chunk]:
        if block.kind == "text":
            return []
        if block.kind == "tool_use":
            if block.pieces:
                return []
            # Some servers send the whole input at the start; clients of OpenAI's API parse the arguments in any case.
            arguments = orjson.dumps(block.block.get("input") or {}).decode()
            if block.call < 0:
                return [self._text(arguments)]
            return [self._tool({"index": block.call, "function": {"arguments": arguments}})]
        whole = block.block
        if block.kind == "thinking":
            whole = {"type": "thinking", "thinking": "".join(block.pieces), "signature": text_of(whole.get("signature"))}
        elif block.pieces:
            whole = {**whole, "input": orjson.loads("".join(block.pieces))}
        if block.kind in ("thinking", "redacted_thinking"):
            return [self._chunk({"thinking_blocks": [whole]}, opaque=True)]
        return [self._chunk({OWN_FIELDS: {"content_block": whole}}, opaque=True)]

    def _end(self, event: dict[str, Any]) -> list[Chunk]:
        usage, delta = event.get("usage"), event["delta"]
        if isinstance(usage, Mapping):
            self._usage |= {key: value for key, value in usage.items() if value is not None}
        if not isinstance(delta.get("stop_reason"), str):
            return []
        if any(block.call >= 0 for block in self._open.values()):
            raise malformed("the message stopped within a tool call")
        self._stopped = True
        finish, more, own = ending_of(delta)
        if finish == "tool_calls" and not self._calls:
            finish = "stop"
        chunk = self._chunk({OWN_FIELDS: own} if own else {}, finish=finish, more=more)
        counted = openai_usage(self._usage)
        if counted is None:
            return [chunk]
        data = {**self._head, "choices": [], "usage": counted}
        return [chunk, Chunk(orjson.dumps(data), data, usage=counted)]

    def _text(self, text: str) -> Chunk:
        return self._chunk({"content": text}, text=text)

    def _tool(self, call: dict[str, Any]) -> Chunk:
        return self._chunk({"tool_calls": [call]}, calls=[call])

    def _chunk(
        self,
        delta: dict[str, Any],
        *,
        text: str = "",
        calls: list[dict[str, Any]] | None = None,
        opaque: bool = False,
        finish: str = "",
        more: Mapping[str, Any] | None = None,
    ) -> Chunk:
        choice = {"index": 0, "delta": delta, "finish_reason": finish or None, **(more or {})}
        data = {**self._head, "choices": [choice]}
        meaningful = bool(text or calls or opaque or finish)
        return Chunk(orjson.dumps(data), data, text, calls or [], finish, None, meaningful, opaque)


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("a delta holds no text")
    return value
