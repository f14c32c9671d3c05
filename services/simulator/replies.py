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


@dataclass(frozen=True, slots=True)
class Thought:
    """A piece of what the model thinks before it answers."""

    text: str


Piece = str | CallPiece | Thought


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model says. Each piece counts as one completion token; `finish_reason` is OpenAI's.

    The first `reasoning_tokens` pieces are thoughts. `stop_sequence` is the one that ended the text.
    """

    pieces: Sequence[Piece]
    finish_reason: str
    reasoning_tokens: int = 0
    stop_sequence: str | None = None

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

    def thoughts(self) -> str:
        """All that was thought."""
        return "".join(piece.text for piece in self.pieces[: self.reasoning_tokens] if isinstance(piece, Thought))

    def cut(self, max_tokens: int, finish_reason: str, *, always: bool = False) -> "Reply":
        """The first `max_tokens` pieces; the reply as it is where it has no more, but for the reason if `always`."""
        if len(self.pieces) <= max_tokens and not always:
            return self
        return Reply(self.pieces[:max_tokens], finish_reason, min(self.reasoning_tokens, max_tokens))

    def after_thinking(self, reasoning_tokens: int, max_tokens: int | None) -> "Reply":
        """The reply with that many tokens of thought before it, both within `max_tokens`."""
        thoughts = [Thought(_THOUGHTS[index % len(_THOUGHTS)]) for index in range(reasoning_tokens)]
        reply = Reply([*thoughts, *self.pieces], self.finish_reason, reasoning_tokens, self.stop_sequence)
        return reply if max_tokens is None else reply.cut(max_tokens, "length")


_THOUGHTS = tuple(tokens.split(" The request is read, the rules are gone through, and the first that fits decides the answer."))


def text_reply(text: str, *, stop: Sequence[str] = (), max_tokens: int | None = None) -> Reply:
    """A reply of text, ended before the first stop sequence and after `max_tokens`."""
    ended_by = None
    if stop:
        ends = [(end, sequence) for end, sequence in ((text.find(sequence), sequence) for sequence in stop) if end >= 0]
        if ends:
            end, ended_by = min(ends)
            text = text[:end]
    reply = Reply(tokens.split(text), "stop", stop_sequence=ended_by)
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
