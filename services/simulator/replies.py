"""A reply as a list of pieces, one token each, so that a stream and a whole body can never disagree."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from services.simulator import tokens
from services.simulator.refusals import Refused
from services.simulator.tool_fit import PlannedCall


@dataclass(frozen=True, slots=True)
class CallPiece:
    """A piece of a tool call: its start (with `id` and `name`, no arguments) or some of its arguments."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


Piece = str | CallPiece


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model says. Each piece counts as one completion token; `finish_reason` is OpenAI's."""

    pieces: Sequence[Piece]
    finish_reason: str

    @property
    def completion_tokens(self) -> int:
        """What the reply is billed for."""
        return len(self.pieces)

    def text(self) -> str | None:
        """The whole text, None where the reply only calls tools."""
        texts = [piece for piece in self.pieces if isinstance(piece, str)]
        return "".join(texts) if texts else None

    def tool_calls(self) -> list[dict[str, Any]]:
        """The tool calls in the form of a message."""
        calls: dict[int, dict[str, Any]] = {}
        for piece in self.pieces:
            if isinstance(piece, CallPiece):
                call = calls.setdefault(
                    piece.index, {"id": piece.id, "type": "function", "function": {"name": piece.name, "arguments": ""}}
                )
                call["function"]["arguments"] += piece.arguments
        return list(calls.values())

    def cut(self, max_tokens: int, finish_reason: str) -> "Reply":
        """The first `max_tokens` pieces; the whole reply where it has no more."""
        if len(self.pieces) <= max_tokens:
            return self
        return Reply(self.pieces[:max_tokens], finish_reason)


def text_reply(text: str, *, stop: Sequence[str] = (), max_tokens: int | None = None) -> Reply:
    """A reply of text, ended before the first stop sequence and after `max_tokens`."""
    if stop:
        ends = [end for end in (text.find(sequence) for sequence in stop) if end >= 0]
        text = text[: min(ends)] if ends else text
    reply = Reply(tokens.split(text), "stop")
    return reply if max_tokens is None else reply.cut(max_tokens, "length")


def call_reply(
    calls: Sequence[PlannedCall], ids: Sequence[str], *, text: str = "", max_tokens: int | None = None, malformed: bool = False
) -> Reply:
    """A reply that calls tools, after some text if given. `malformed` cuts each call's arguments in the middle of the JSON."""
    pieces: list[Piece] = list(tokens.split(text))
    for index, (call, call_id) in enumerate(zip(calls, ids, strict=True)):
        try:
            arguments = orjson.dumps(call.arguments).decode()
        except orjson.JSONEncodeError as error:
            raise Refused(f"The schema of the tool '{call.tool}' asks for a value that JSON cannot hold: {error}.", param="tools") from None
        if malformed:
            arguments = arguments[: max(len(arguments) // 2, 1)]
        pieces.append(CallPiece(index, call_id, call.tool))
        pieces.extend(CallPiece(index, arguments=part) for part in tokens.split(arguments))
    reply = Reply(pieces, "tool_calls")
    return reply if max_tokens is None else reply.cut(max_tokens, "length")
