"""Completions and embeddings in OpenAI's wire form."""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from services.simulator.faults import Faults, count
from services.simulator.plans import (
    BodyPlan,
    Head,
    Script,
    StreamPlan,
    argument_range,
    assemble,
    body_plan,
    error_plan,
    is_error_body,
)
from services.simulator.refusals import Refused, error_body
from services.simulator.replies import CallPiece, Piece, Reply, Thought

FINGERPRINT = "bulkhead-simulator"
DONE_EVENT = b"data: [DONE]\n\n"
_BROKEN_EVENT = b'data: {"id":"chatcmpl-broken","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":\n\n'
_UNKNOWN_EVENT = b'event: simulator.odd\ndata: {"object":"simulator.odd","told":"an event of a kind that no client knows"}\n\n'
_ERROR_BODY = error_body("The simulator failed on purpose.", type="server_error", code="simulated_failure")

Header = tuple[bytes, bytes]


def refusal(refused: Refused, answer_id: str) -> tuple[int, bytes, tuple[Header, ...]]:
    """Status, body and headers of an error, in OpenAI's form."""
    return refused.status, refused.body(), ()


def simulated_failure() -> bytes:
    """The error that faults put inside a 200."""
    return _ERROR_BODY


def usage(head: Head, completion_tokens: int, reasoning_tokens: int, faults: Faults) -> dict[str, Any]:
    """OpenAI's usage object."""
    if "usage_zero" in faults:
        return {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    details: dict[str, int] = {"cached_tokens": head.cached_tokens, "audio_tokens": 0}
    if head.cache_write_tokens:
        details["cache_creation_tokens"] = head.cache_write_tokens
    return {
        "prompt_tokens": head.prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": head.prompt_tokens + completion_tokens,
        "prompt_tokens_details": details,
        "completion_tokens_details": {"reasoning_tokens": reasoning_tokens, "audio_tokens": 0},
    }


def whole_body(replies: Sequence[Reply], head: Head, faults: Faults) -> BodyPlan:
    """The body of an answer that is not streamed, with a choice for each reply."""
    if is_error_body(faults):
        return error_plan(_ERROR_BODY)
    finish = None if "missing_finish" in faults or "empty_choices" in faults else replies[0].finish_reason
    answer: dict[str, Any] = {
        "id": head.id,
        "object": "chat.completion",
        "created": head.created,
        "model": head.model,
        "system_fingerprint": FINGERPRINT,
        "service_tier": "default",
        "choices": []
        if "empty_choices" in faults
        else [
            {"index": index, "message": _message(reply, head), "logprobs": None, "finish_reason": finish and reply.finish_reason}
            for index, reply in enumerate(replies)
        ],
    }
    usage_sent = "missing_usage" not in faults
    if usage_sent:
        completion_tokens, reasoning_tokens = totals(replies)
        answer["usage"] = usage(head, completion_tokens, reasoning_tokens, faults)
    padding = count(faults, "huge_event")
    if padding:
        answer["padding"] = "x" * padding
    return body_plan(orjson.dumps(answer), usage_sent, finish, faults)


def totals(replies: Sequence[Reply]) -> tuple[int, int]:
    """Completion tokens of all replies, and how many of them are reasoning."""
    return sum(reply.completion_tokens for reply in replies), sum(reply.reasoning_tokens for reply in replies)


def _message(reply: Reply, head: Head) -> dict[str, Any]:
    calls = reply.tool_calls()
    message: dict[str, Any] = {"role": "assistant", "content": reply.text() if calls else reply.text() or "", "refusal": None}
    if calls:
        message["tool_calls"] = calls
    if head.show_thinking and reply.reasoning_tokens:
        message["reasoning_content"] = reply.thoughts()
    return message


def embeddings_body(model: str, vectors: Sequence[str | list[float]], prompt_tokens: int, faults: Faults) -> BodyPlan:
    """The body of an embeddings answer."""
    if "error_body" in faults:
        return error_plan(_ERROR_BODY)
    data = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(vectors)]
    answer: dict[str, Any] = {"object": "list", "data": [] if "empty_choices" in faults else data, "model": model}
    usage_sent = "missing_usage" not in faults
    if usage_sent:
        told = 0 if "usage_zero" in faults else prompt_tokens
        answer["usage"] = {"prompt_tokens": told, "total_tokens": told}
    return body_plan(orjson.dumps(answer), usage_sent, None, faults)


class _EventWriter:
    """Serialises the events of one stream; what all of them share is written once."""

    def __init__(self, head: Head, include_usage: bool):
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
        self._show_thinking = head.show_thinking
        self._usage_null = b',"usage":null' if include_usage else b""
        self._head = b"data: " + shared
        self._after = b',"logprobs":null,"finish_reason":null}]' + self._usage_null + b"}\n\n"
        self._before = self._before_index(0)

    def _before_index(self, index: int) -> bytes:
        return self._head + b',"choices":[{"index":%d,"delta":' % index

    def role(self, index: int = 0) -> bytes:
        before = self._before if index == 0 else self._before_index(index)
        return before + b'{"role":"assistant","content":"","refusal":null}' + self._after

    def piece(self, piece: Piece, index: int = 0) -> bytes:
        before = self._before if index == 0 else self._before_index(index)
        if isinstance(piece, str):
            return before + b'{"content":' + orjson.dumps(piece) + b"}" + self._after
        if isinstance(piece, Thought):
            return before + b'{"reasoning_content":' + orjson.dumps(piece.text) + b"}" + self._after if self._show_thinking else b""
        return before + orjson.dumps({"tool_calls": [_call_delta(piece)]}) + self._after

    def pieces(self, pieces: Sequence[Piece]) -> list[bytes]:
        """The events of a single choice; text, which is nearly all, is written in place."""
        before, after, dumps = self._before + b'{"content":', b"}" + self._after, orjson.dumps
        return [before + dumps(piece) + after if isinstance(piece, str) else self.piece(piece) for piece in pieces]

    def finish(self, reason: str, index: int, usage_object: Mapping[str, Any] | None) -> bytes:
        choice = b',"choices":[{"index":%d,"delta":{},"logprobs":null,"finish_reason":' % index + orjson.dumps(reason) + b"}]"
        told = b',"usage":' + orjson.dumps(usage_object) if usage_object else self._usage_null
        return self._head + choice + told + b"}\n\n"

    def without_choices(self, usage_object: Mapping[str, Any] | None) -> bytes:
        return self._head + b',"choices":[]' + (b',"usage":' + orjson.dumps(usage_object) if usage_object else self._usage_null) + b"}\n\n"


def _call_delta(piece: CallPiece) -> dict[str, Any]:
    if piece.id:
        return {"index": piece.index, "id": piece.id, "type": "function", "function": {"name": piece.name, "arguments": ""}}
    return {"index": piece.index, "function": {"arguments": piece.arguments}}


def stream(replies: Sequence[Reply], head: Head, faults: Faults) -> StreamPlan:
    """The events of a streamed answer, and how it ends."""
    include_usage = head.include_usage or "usage_with_finish" in faults or "usage_in_extra_chunk" in faults
    writer = _EventWriter(head, include_usage)
    empty = "empty_choices" in faults
    events, tokens = ([], []) if empty else _pieces(writer, replies)
    usage_sent = include_usage and "missing_usage" not in faults
    told = None
    if usage_sent:
        completion_tokens, reasoning_tokens = (0, 0) if empty else totals(replies)
        told = usage(head, completion_tokens, reasoning_tokens, faults)
    with_finish = told if "usage_with_finish" in faults else None
    closing: list[bytes] = []
    if empty:
        closing.append(writer.without_choices(None))
    elif "missing_finish" not in faults:
        closing.extend(writer.finish(reply.finish_reason, index, with_finish) for index, reply in enumerate(replies))
    if told and not with_finish:
        closing.append(writer.without_choices(told))
    if "missing_done" not in faults:
        closing.append(DONE_EVENT)
    script = Script(
        opening=[] if empty else [writer.role(index) for index in range(len(replies))],
        pieces=events,
        tokens=tokens,
        closing=closing,
        total_tokens=0 if empty else totals(replies)[0],
        usage_sent=usage_sent,
        finish_reason=None if {"empty_choices", "missing_finish"} & faults.keys() else replies[0].finish_reason,
        arguments=argument_range(events, [b'"arguments":' in event and b'"name":' not in event for event in events])
        if "cut_in_arguments" in faults
        else None,
        error_event=b"data: " + _ERROR_BODY + b"\n\n",
        broken_event=_BROKEN_EVENT,
        unknown_event=_UNKNOWN_EVENT,
        role_event=writer.role(),
    )
    return assemble(script, faults)


def _pieces(writer: _EventWriter, replies: Sequence[Reply]) -> tuple[list[bytes], list[int]]:
    """The events with the tokens made by then; those of several choices take turns, and hidden thoughts make none."""
    if len(replies) == 1 and not replies[0].reasoning_tokens:
        pieces = replies[0].pieces
        return writer.pieces(pieces), list(range(1, len(pieces) + 1))
    events: list[bytes] = []
    tokens: list[int] = []
    made = 0
    for position in range(max(len(reply.pieces) for reply in replies)):
        for index, reply in enumerate(replies):
            if position < len(reply.pieces):
                made += 1
                event = writer.piece(reply.pieces[position], index)
                if event:
                    events.append(event)
                    tokens.append(made)
    return events, tokens
