"""Completions in OpenAI's wire form: whole bodies, and streams as lists of server-sent events, with the faults built in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import orjson

from services.simulator.faults import Faults, count
from services.simulator.refusals import error_body
from services.simulator.replies import CallPiece, Piece, Reply

FINGERPRINT = "bulkhead-simulator"
DONE_EVENT = b"data: [DONE]\n\n"
_KEEPALIVE = b": keep-alive\n\n"
_BROKEN_EVENT = b'data: {"id":"chatcmpl-broken","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":\n\n'
_ERROR_BODY = error_body("The simulator failed on purpose.", type="server_error", code="simulated_failure")


class Ending(StrEnum):
    """How the connection ends after the last event or byte."""

    ORDERLY = "orderly"
    CUT = "cut"
    STALL = "stall"


@dataclass(frozen=True, slots=True)
class Head:
    """What every part of one answer repeats. `created` is the epoch in seconds."""

    id: str
    model: str
    created: int
    prompt_tokens: int
    include_usage: bool = False


@dataclass(frozen=True, slots=True)
class StreamPlan:
    """A stream to send. `tokens[i]` is how many completion tokens the client has once it has `events[i]`.

    `usage_sent` and `finish_reason` say what the client learns from the whole of it.
    """

    events: list[bytes]
    tokens: list[int]
    ending: Ending
    usage_sent: bool
    finish_reason: str | None


@dataclass(frozen=True, slots=True)
class BodyPlan:
    """A whole body to send; of it only the first `send_bytes`, where it ends in another way than orderly."""

    body: bytes
    send_bytes: int
    ending: Ending
    usage_sent: bool
    finish_reason: str | None


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
    """OpenAI's usage object."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
    }


def with_reply_faults(reply: Reply, faults: Faults) -> Reply:
    """The reply after the faults that change what the model says."""
    kept = count(faults, "content_filter")
    return reply if kept is None else Reply(reply.pieces[:kept], "content_filter")


def whole_body(reply: Reply, head: Head, faults: Faults) -> BodyPlan:
    """The body of an answer that is not streamed."""
    if "error_body" in faults or "error_event_after" in faults:
        return BodyPlan(_ERROR_BODY, len(_ERROR_BODY), Ending.ORDERLY, usage_sent=False, finish_reason=None)
    calls = reply.tool_calls()
    message: dict[str, Any] = {"role": "assistant", "content": reply.text() if calls else reply.text() or "", "refusal": None}
    if calls:
        message["tool_calls"] = calls
    finish = None if "missing_finish" in faults else reply.finish_reason
    answer: dict[str, Any] = {
        "id": head.id,
        "object": "chat.completion",
        "created": head.created,
        "model": head.model,
        "system_fingerprint": FINGERPRINT,
        "service_tier": "default",
        "choices": [] if "empty_choices" in faults else [{"index": 0, "message": message, "logprobs": None, "finish_reason": finish}],
    }
    usage_sent = "missing_usage" not in faults
    if usage_sent:
        answer["usage"] = usage(head.prompt_tokens, reply.completion_tokens)
    padding = count(faults, "huge_event")
    if padding:
        answer["padding"] = "x" * padding
    return _body_plan(orjson.dumps(answer), usage_sent, None if "empty_choices" in faults else finish, faults)


def embeddings_body(model: str, vectors: Sequence[str | list[float]], prompt_tokens: int, faults: Faults) -> BodyPlan:
    """The body of an embeddings answer."""
    if "error_body" in faults:
        return BodyPlan(_ERROR_BODY, len(_ERROR_BODY), Ending.ORDERLY, usage_sent=False, finish_reason=None)
    data = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(vectors)]
    answer: dict[str, Any] = {"object": "list", "data": [] if "empty_choices" in faults else data, "model": model}
    usage_sent = "missing_usage" not in faults
    if usage_sent:
        answer["usage"] = {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens}
    return _body_plan(orjson.dumps(answer), usage_sent, None, faults)


def _body_plan(body: bytes, usage_sent: bool, finish_reason: str | None, faults: Faults) -> BodyPlan:
    if "malformed_json" in faults or "end_after" in faults:
        body = body[: len(body) * 2 // 3]
        return BodyPlan(body, len(body), Ending.ORDERLY, usage_sent=False, finish_reason=None)
    if "cut_after" in faults:
        return BodyPlan(body, len(body) // 2, Ending.CUT, usage_sent=False, finish_reason=None)
    if "stall_after" in faults:
        return BodyPlan(body, len(body) // 2, Ending.STALL, usage_sent=False, finish_reason=None)
    return BodyPlan(body, len(body), Ending.ORDERLY, usage_sent, finish_reason)


class _EventWriter:
    """Serialises the events of one stream; what all of them share is written once."""

    def __init__(self, head: Head):
        shared = orjson.dumps(
            {
                "id": head.id,
                "object": "chat.completion.chunk",
                "created": head.created,
                "model": head.model,
                "system_fingerprint": FINGERPRINT,
                "service_tier": "default",
            }
        )[:-1]
        self._usage_null = b',"usage":null' if head.include_usage else b""
        self._head = b"data: " + shared
        self._before = self._head + b',"choices":[{"index":0,"delta":'
        self._after = b',"logprobs":null,"finish_reason":null}]' + self._usage_null + b"}\n\n"

    def role(self) -> bytes:
        return self._before + b'{"role":"assistant","content":"","refusal":null}' + self._after

    def piece(self, piece: Piece) -> bytes:
        if isinstance(piece, str):
            return self._before + b'{"content":' + orjson.dumps(piece) + b"}" + self._after
        return self._before + orjson.dumps({"tool_calls": [_call_delta(piece)]}) + self._after

    def finish(self, reason: str) -> bytes:
        choice = b',"choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":' + orjson.dumps(reason) + b"}]"
        return self._head + choice + self._usage_null + b"}\n\n"

    def without_choices(self, usage_object: Mapping[str, Any] | None) -> bytes:
        return self._head + b',"choices":[]' + (b',"usage":' + orjson.dumps(usage_object) if usage_object else self._usage_null) + b"}\n\n"


def _call_delta(piece: CallPiece) -> dict[str, Any]:
    if piece.id:
        return {"index": piece.index, "id": piece.id, "type": "function", "function": {"name": piece.name, "arguments": ""}}
    return {"index": piece.index, "function": {"arguments": piece.arguments}}


def stream(reply: Reply, head: Head, faults: Faults) -> StreamPlan:
    """The events of a streamed answer, and how it ends."""
    writer = _EventWriter(head)
    pieces = [] if "empty_choices" in faults else reply.pieces
    piece_events = [writer.piece(piece) for piece in pieces]
    if faults and (broken_off := _broken_off(writer, piece_events, faults)):
        return broken_off
    closing: list[bytes] = []
    if "empty_choices" in faults:
        closing.append(writer.without_choices(None))
    elif "missing_finish" not in faults:
        closing.append(writer.finish(reply.finish_reason))
    usage_sent = head.include_usage and "missing_usage" not in faults
    if usage_sent:
        closing.append(writer.without_choices(usage(head.prompt_tokens, len(pieces))))
    if "missing_done" not in faults:
        closing.append(DONE_EVENT)
    opening = [] if "empty_choices" in faults else [writer.role()]
    plan = StreamPlan(
        [*opening, *piece_events, *closing],
        [*(0 for _ in opening), *range(1, len(piece_events) + 1), *(len(piece_events) for _ in closing)],
        Ending.ORDERLY,
        usage_sent,
        None if {"empty_choices", "missing_finish"} & faults.keys() else reply.finish_reason,
    )
    return _with_odd_events(plan, len(opening), faults) if faults else plan


def _broken_off(writer: _EventWriter, piece_events: list[bytes], faults: Faults) -> StreamPlan | None:
    """The stream up to the place where a fault ends it, None where none does. 0 tokens means not even the first event."""
    for name, ending in (
        ("cut_after", Ending.CUT),
        ("stall_after", Ending.STALL),
        ("end_after", Ending.ORDERLY),
        ("error_event_after", Ending.ORDERLY),
    ):
        wanted = count(faults, name)
        if wanted is None:
            continue
        kept = piece_events[:wanted]
        opening = [writer.role()] if wanted else []
        closing = [b"data: " + _ERROR_BODY + b"\n\n"] if name == "error_event_after" else []
        tokens = [*(0 for _ in opening), *range(1, len(kept) + 1), *(len(kept) for _ in closing)]
        plan = StreamPlan([*opening, *kept, *closing], tokens, ending, usage_sent=False, finish_reason=None)
        return _with_odd_events(plan, len(opening), faults)
    return None


def _with_odd_events(plan: StreamPlan, opening: int, faults: Faults) -> StreamPlan:
    """The stream with the faults that add or change single events; `opening` events come before the first token's."""
    events, tokens = list(plan.events), list(plan.tokens)
    padding = count(faults, "huge_event")
    if padding and events:
        position = min(opening, len(events) - 1)
        events[position] = events[position].replace(b"data: {", b'data: {"padding":"' + b"x" * padding + b'",', 1)
    broken = count(faults, "malformed_json")
    if broken is not None:
        position = min(opening + broken, len(events))
        events.insert(position, _BROKEN_EVENT)
        tokens.insert(position, tokens[position - 1] if position else 0)
    repeated = count(faults, "duplicate_chunk")
    if repeated is not None and repeated in tokens:
        position = tokens.index(repeated)
        events.insert(position, events[position])
        tokens.insert(position, tokens[position])
    if "keepalive" in faults:
        events = [_KEEPALIVE + event for event in events]
    if "crlf" in faults:
        events = [event.replace(b"\n", b"\r\n") for event in events]
    return replace(plan, events=events, tokens=tokens)
