"""The events of a streamed response, in the order that OpenAI's SDKs count on: each item is opened, filled, and closed."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from services.common.errors import BulkheadError
from services.llm_gateway.chat import CallNumbers, Chunk, arguments_text, text_of
from services.llm_gateway.model_port.responses_reasoning import sealed
from services.llm_gateway.model_port.responses_shape import (
    INCOMPLETE,
    Frame,
    call_item,
    message_item,
    new_id,
    reasoning_item,
    refusal_part,
    text_part,
    thought_of,
)
from services.llm_gateway.results import Finished


@dataclass(slots=True)
class _Part:
    """A part of the open message."""

    refusal: bool
    pieces: list[str] = field(default_factory=list)
    logprobs: list[Any] = field(default_factory=list)

    def whole(self) -> dict[str, Any]:
        """The part as an item holds it."""
        text = "".join(self.pieces)
        return refusal_part(text) if self.refusal else text_part(text, self.logprobs)


@dataclass(slots=True)
class _Message:
    """The open message."""

    id: str
    place: int
    parts: list[_Part] = field(default_factory=list)
    extra: Any = None

    def item(self, status: str) -> dict[str, Any]:
        """As an output item."""
        made = message_item(self.id, status, [part.whole() for part in self.parts])
        return {**made, "extra_content": self.extra} if self.extra else made


@dataclass(slots=True)
class _Reasoning:
    """The open reasoning item."""

    id: str
    place: int
    pieces: list[str] = field(default_factory=list)
    blocks: list[Any] = field(default_factory=list)


@dataclass(slots=True)
class _Call:
    """A function call; it is opened when its name is known, and stays open to the end, as providers may interleave them."""

    id: str = ""
    place: int = -1
    call_id: str = ""
    name: str = ""
    pieces: list[str] = field(default_factory=list)
    extra: Any = None

    def item(self, status: str) -> dict[str, Any]:
        """As an output item."""
        return call_item(self.id, status, self.call_id, self.name, "".join(self.pieces), self.extra)


class ResponseEvents:
    """Turns chunks into events, each method into the bytes to send. Chunks, the first of which open it, then one `end` or `fail`."""

    def __init__(self, frame: Frame, model: str) -> None:
        self._frame = frame
        self._model = model
        self._sequence = 0
        self._output: list[dict[str, Any] | None] = []
        self._message: _Message | None = None
        self._reasoning: _Reasoning | None = None
        self._calls: dict[int, _Call] = {}
        self._numbers = CallNumbers()
        self._usage: Mapping[str, Any] | None = None

    def feed(self, chunks: Iterable[Chunk]) -> bytes:
        """What some chunks of the chat completion add."""
        events: list[bytes] = []
        if not self._sequence:
            response = self._frame.response("in_progress", self._model, [])
            events += [self._event("response.created", response=response), self._event("response.in_progress", response=response)]
        for chunk in chunks:
            if chunk.usage is not None:
                self._usage = chunk.usage
            self._model = text_of(chunk.data.get("model")) or self._model
            for choice in chunk.data.get("choices") or ():
                if choice.get("index", 0) == 0:
                    events += self._choice(choice, chunk)
        return b"".join(events)

    def end(self, finished: Finished) -> bytes:
        """The end of a whole answer."""
        status = "incomplete" if finished.outcome.finish_reason in INCOMPLETE else "completed"
        events = []
        if not self._output and not self._calls:
            events += self._text("", refusal=False)
        events += [*self._close_reasoning(), *self._close_message(status), *self._close_calls(status)]
        output = [item for item in self._output if item is not None]
        outcome = finished.outcome
        response = self._frame.ended(outcome.finish_reason, self._model, output, self._usage, outcome.usage)
        events.append(self._event(f"response.{status}", response=response))
        return b"".join(events)

    def fail(self, error: BulkheadError) -> bytes:
        """The end of an answer that broke off; what was said of it stays incomplete."""
        output = list(self._output)
        if self._message is not None:
            output[self._message.place] = self._message.item("incomplete")
        for call in self._calls.values():
            if call.place >= 0:
                output[call.place] = call.item("incomplete")
        kept = [item for item in output if item is not None]
        return self._event("response.failed", response=self._frame.failed(self._model, kept, error))

    def _event(self, kind: str, **fields: Any) -> bytes:
        body = {"type": kind, "sequence_number": self._sequence, **fields}
        self._sequence += 1
        return b"event: " + kind.encode() + b"\ndata: " + orjson.dumps(body) + b"\n\n"

    def _open(self, item: dict[str, Any]) -> bytes:
        self._output.append(None)
        return self._event("response.output_item.added", output_index=len(self._output) - 1, item=item)

    def _done(self, place: int, item: dict[str, Any]) -> bytes:
        self._output[place] = item
        return self._event("response.output_item.done", output_index=place, item=item)

    def _choice(self, choice: Mapping[str, Any], chunk: Chunk) -> list[bytes]:
        delta = choice.get("delta") or {}
        events: list[bytes] = []
        thought, blocks = thought_of(delta), delta.get("thinking_blocks")
        if thought or (self._frame.seals and blocks):
            events += self._think(thought, blocks if isinstance(blocks, list) else [])
        if chunk.text:
            logprobs = choice.get("logprobs")
            events += self._text(chunk.text, refusal=False, logprobs=logprobs.get("content") if isinstance(logprobs, Mapping) else None)
        if refusal := text_of(delta.get("refusal")):
            events += self._text(refusal, refusal=True)
        if self._message is not None and delta.get("extra_content"):
            self._message.extra = delta["extra_content"]
        for place, call in enumerate(chunk.tool_calls):
            events += self._call(self._numbers.of(call, place), call)
        return events

    def _think(self, thought: str, blocks: list[Any]) -> list[bytes]:
        events: list[bytes] = []
        open_ = self._reasoning
        if open_ is None:
            events += self._close_message("completed")
            open_ = self._reasoning = _Reasoning(new_id("rs"), len(self._output))
            events.append(self._open(reasoning_item(open_.id, "", None)))
        where = {"item_id": open_.id, "output_index": open_.place, "summary_index": 0}
        open_.blocks += blocks
        if thought:
            if not open_.pieces:
                part = {"type": "summary_text", "text": ""}
                events.append(self._event("response.reasoning_summary_part.added", **where, part=part))
            open_.pieces.append(thought)
            events.append(self._event("response.reasoning_summary_text.delta", **where, delta=thought))
        return events

    def _close_reasoning(self) -> list[bytes]:
        done, self._reasoning = self._reasoning, None
        if done is None:
            return []
        events, text = [], "".join(done.pieces)
        if text:
            where = {"item_id": done.id, "output_index": done.place, "summary_index": 0}
            events.append(self._event("response.reasoning_summary_text.done", **where, text=text))
            part = {"type": "summary_text", "text": text}
            events.append(self._event("response.reasoning_summary_part.done", **where, part=part))
        seal = sealed(done.blocks) if self._frame.seals and done.blocks else None
        return [*events, self._done(done.place, reasoning_item(done.id, text, seal))]

    def _text(self, text: str, *, refusal: bool, logprobs: Any = None) -> list[bytes]:
        events = self._close_reasoning()
        message = self._message
        if message is None:
            message = self._message = _Message(new_id("msg"), len(self._output))
            events.append(self._open(message_item(message.id, "in_progress", [])))
        if not message.parts or message.parts[-1].refusal is not refusal:
            events += self._close_part(message)
            message.parts.append(_Part(refusal))
            events.append(self._event("response.content_part.added", **_place(message), part=message.parts[-1].whole()))
        part = message.parts[-1]
        if refusal:
            part.pieces.append(text)
            events.append(self._event("response.refusal.delta", **_place(message), delta=text))
        elif text:
            part.pieces.append(text)
            new = logprobs if isinstance(logprobs, list) else []
            part.logprobs += new
            events.append(self._event("response.output_text.delta", **_place(message), delta=text, logprobs=new))
        return events

    def _close_part(self, message: _Message) -> list[bytes]:
        if not message.parts:
            return []
        whole = message.parts[-1].whole()
        if message.parts[-1].refusal:
            done = self._event("response.refusal.done", **_place(message), refusal=whole["refusal"])
        else:
            done = self._event("response.output_text.done", **_place(message), text=whole["text"], logprobs=whole["logprobs"])
        return [done, self._event("response.content_part.done", **_place(message), part=whole)]

    def _close_message(self, status: str) -> list[bytes]:
        done, self._message = self._message, None
        return [] if done is None else [*self._close_part(done), self._done(done.place, done.item(status))]

    def _call(self, number: int, delta: Mapping[str, Any]) -> list[bytes]:
        function = delta.get("function") or {}
        call = self._calls.setdefault(number, _Call())
        call.call_id = call.call_id or text_of(delta.get("id"))
        call.name = call.name or text_of(function.get("name"))
        call.extra = delta.get("extra_content") or call.extra
        arguments = arguments_text(function.get("arguments"))
        events: list[bytes] = []
        if call.place < 0:
            call.pieces += [arguments] if arguments else []
            if not call.name:
                return []
            return [*self._close_reasoning(), *self._close_message("completed"), *self._open_call(call)]
        if arguments:
            call.pieces.append(arguments)
            events.append(self._arguments(call, arguments))
        return events

    def _open_call(self, call: _Call) -> list[bytes]:
        call.id, call.place = new_id("fc"), len(self._output)
        call.call_id = call.call_id or new_id("call")
        opened = self._open(call_item(call.id, "in_progress", call.call_id, call.name, ""))
        return [opened, self._arguments(call, "".join(call.pieces))] if call.pieces else [opened]

    def _arguments(self, call: _Call, delta: str) -> bytes:
        return self._event("response.function_call_arguments.delta", item_id=call.id, output_index=call.place, delta=delta)

    def _close_calls(self, status: str) -> list[bytes]:
        events: list[bytes] = []
        for index in sorted(self._calls):
            call = self._calls[index]
            if call.place < 0:
                events += self._open_call(call)
            item = call.item(status)
            fields = {"item_id": call.id, "output_index": call.place, "name": call.name, "arguments": item["arguments"]}
            events.append(self._event("response.function_call_arguments.done", **fields))
            events.append(self._done(call.place, item))
        return events


def _place(message: _Message) -> dict[str, Any]:
    return {"item_id": message.id, "output_index": message.place, "content_index": max(len(message.parts) - 1, 0)}
