"""Messages in Anthropic's wire form.

The events of a stream come in the order of https://docs.anthropic.com/en/docs/build-with-claude/streaming: message_start, ping, then for
each block content_block_start, its deltas and content_block_stop, at last message_delta with the stop reason and message_stop.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from services.simulator.faults import Faults, count
from services.simulator.plans import BodyPlan, Head, Script, StreamPlan, argument_range, assemble, body_plan, error_plan, is_error_body
from services.simulator.refusals import Failure, Refused
from services.simulator.replies import CallPiece, Piece, Reply, Thought
from services.simulator.signatures import signature_of

Header = tuple[bytes, bytes]

_TYPE_BY_STATUS: Mapping[int, str] = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_MESSAGE_BY_FAILURE: Mapping[Failure, str] = {
    Failure.RATE_LIMIT: "This request would exceed the rate limit for your organization. Please try again later.",
    Failure.QUOTA: "Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing.",
    Failure.CONTEXT: "prompt is too long: 200001 tokens > 200000 maximum",
    Failure.POLICY: "Output blocked by content filtering policy",
    Failure.BAD_KEY: "invalid x-api-key",
}
_STOP_REASONS: Mapping[str, str] = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}
_PING = b'event: ping\ndata: {"type":"ping"}\n\n'
_BROKEN_EVENT = b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":\n\n'
_UNKNOWN_EVENT = b'event: simulator_odd\ndata: {"type":"simulator_odd","told":"an event of a kind that no client knows"}\n\n'


def error_json(kind: str, message: str, answer_id: str) -> bytes:
    """Anthropic's error object."""
    return orjson.dumps({"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id(answer_id)})


def request_id(answer_id: str) -> str:
    """The id that Anthropic gives the request, made from that of the answer."""
    return "req_" + answer_id.removeprefix("msg_")


def refusal(refused: Refused, answer_id: str) -> tuple[int, bytes, tuple[Header, ...]]:
    """Status, body and headers of an error, in Anthropic's form."""
    # A lack of credit is a 400 there.
    status = 400 if refused.kind is Failure.QUOTA else refused.status
    kind = _TYPE_BY_STATUS.get(status, "api_error" if status >= 500 else "invalid_request_error")
    message = _MESSAGE_BY_FAILURE.get(refused.kind, refused.message)
    return status, error_json(kind, message, answer_id), ()


def usage(head: Head, completion_tokens: int, reasoning_tokens: int, faults: Faults) -> dict[str, Any]:
    """Anthropic's usage object: `input_tokens` are those that were neither read from the cache nor written to it."""
    if "usage_zero" in faults:
        return {"input_tokens": 0, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0, "output_tokens": 0}
    told: dict[str, Any] = {
        "input_tokens": head.prompt_tokens - head.cached_tokens - head.cache_write_tokens,
        "cache_creation_input_tokens": head.cache_write_tokens,
        "cache_read_input_tokens": head.cached_tokens,
        "cache_creation": {"ephemeral_5m_input_tokens": head.cache_write_tokens, "ephemeral_1h_input_tokens": 0},
        "output_tokens": completion_tokens,
        "service_tier": "standard",
    }
    if reasoning_tokens:
        told["output_tokens_details"] = {"thinking_tokens": reasoning_tokens}
    return told


def _stop(reply: Reply) -> dict[str, Any]:
    if reply.stop_sequence is not None and reply.finish_reason == "stop":
        return {"stop_reason": "stop_sequence", "stop_sequence": reply.stop_sequence}
    stop: dict[str, Any] = {"stop_reason": _STOP_REASONS.get(reply.finish_reason, "end_turn"), "stop_sequence": None}
    if stop["stop_reason"] == "refusal":
        stop["stop_details"] = {"type": "refusal", "category": None, "explanation": None}
    return stop


def whole_body(replies: Sequence[Reply], head: Head, faults: Faults) -> BodyPlan:
    """The body of an answer that is not streamed."""
    if is_error_body(faults):
        return error_plan(error_json("api_error", "The simulator failed on purpose.", head.id))
    (reply,) = replies
    stop = _stop(reply)
    if "missing_finish" in faults:
        stop["stop_reason"] = None
    answer: dict[str, Any] = {
        "id": head.id,
        "type": "message",
        "role": "assistant",
        "model": head.model,
        "content": [] if "empty_choices" in faults else _blocks(reply, head),
        **stop,
    }
    usage_sent = "missing_usage" not in faults
    if usage_sent:
        answer["usage"] = usage(head, reply.completion_tokens, reply.reasoning_tokens, faults)
    padding = count(faults, "huge_event")
    if padding:
        answer["padding"] = "x" * padding
    return body_plan(orjson.dumps(answer), usage_sent, stop["stop_reason"], faults)


def _blocks(reply: Reply, head: Head) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    if reply.reasoning_tokens:
        thinking = reply.thoughts()
        blocks.append({"type": "thinking", "thinking": thinking if head.show_thinking else "", "signature": signature_of(thinking)})
    text = reply.text()
    if text:
        blocks.append({"type": "text", "text": text})
    for call in reply.tool_calls():
        blocks.append(
            {"type": "tool_use", "id": call["id"], "name": call["function"]["name"], "input": _input(call["function"]["arguments"], reply)}
        )
    return blocks


def _input(arguments: str, reply: Reply) -> Any:
    """The arguments as an object; an empty one where max_tokens cut them, the text of what there is where a fault did."""
    try:
        return orjson.loads(arguments)
    except orjson.JSONDecodeError:
        return {} if reply.finish_reason == "length" else arguments


def _event(name: bytes, data: bytes) -> bytes:
    return b"event: " + name + b"\ndata: " + data + b"\n\n"


class _BlockWriter:
    """Writes the pieces of a reply as blocks: what belongs to the start or the end of one goes with the piece it is next to."""

    def __init__(self, head: Head, thinking: str):
        self._head = head
        self._thinking = thinking
        self._index = -1
        self._open: str | int | None = None

    def piece(self, piece: Piece) -> bytes:
        if isinstance(piece, str):
            begin = self._begin("text", b'{"type":"text","text":""}')
            return begin + self._delta(b'{"type":"text_delta","text":' + orjson.dumps(piece) + b"}")
        if isinstance(piece, Thought):
            begin = self._begin("thinking", b'{"type":"thinking","thinking":"","signature":""}')
            if not self._head.show_thinking:
                return begin
            return begin + self._delta(b'{"type":"thinking_delta","thinking":' + orjson.dumps(piece.text) + b"}")
        if piece.id:
            block = orjson.dumps({"type": "tool_use", "id": piece.id, "name": piece.name, "input": {}})
            # The first delta of the arguments is empty, as Anthropic's is.
            return self._begin(piece.index, block) + self._delta(b'{"type":"input_json_delta","partial_json":""}')
        return self._delta(b'{"type":"input_json_delta","partial_json":' + orjson.dumps(piece.arguments) + b"}")

    def end(self) -> bytes:
        """The end of the open block."""
        if self._open is None:
            return b""
        signed = b""
        if self._open == "thinking":
            signature = orjson.dumps(signature_of(self._thinking))
            signed = self._delta(b'{"type":"signature_delta","signature":' + signature + b"}")
        self._open = None
        return signed + _event(b"content_block_stop", b'{"type":"content_block_stop","index":%d}' % self._index)

    def _begin(self, kind: str | int, block: bytes) -> bytes:
        if kind == self._open:
            return b""
        ended = self.end()
        self._open = kind
        self._index += 1
        start = b'{"type":"content_block_start","index":%d,"content_block":' % self._index + block + b"}"
        return ended + _event(b"content_block_start", start)

    def _delta(self, delta: bytes) -> bytes:
        return _event(b"content_block_delta", b'{"type":"content_block_delta","index":%d,"delta":' % self._index + delta + b"}")


def stream(replies: Sequence[Reply], head: Head, faults: Faults) -> StreamPlan:
    """The events of a streamed answer, and how it ends."""
    (reply,) = replies
    pieces: Sequence[Piece] = () if "empty_choices" in faults else reply.pieces
    usage_sent = "missing_usage" not in faults
    message: dict[str, Any] = {
        "id": head.id,
        "type": "message",
        "role": "assistant",
        "model": head.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
    }
    if usage_sent:
        message["usage"] = usage(head, min(len(pieces), 1), 0, faults)
    start = _event(b"message_start", orjson.dumps({"type": "message_start", "message": message}))
    writer = _BlockWriter(head, reply.thoughts())
    events, tokens, is_arguments = _written(writer, pieces)
    closing = [end] if (end := writer.end()) else []
    stop = _stop(reply)
    told = usage(head, len(pieces), reply.reasoning_tokens, faults) if usage_sent else None
    if told:
        # Only the message itself tells these.
        told = {name: value for name, value in told.items() if name not in ("service_tier", "cache_creation")}
    if "usage_in_extra_chunk" in faults:
        closing += [_message_delta(stop, None), _message_delta({}, told)]
    elif "missing_finish" not in faults:
        closing.append(_message_delta(stop, told))
    if "missing_done" not in faults:
        closing.append(b'event: message_stop\ndata: {"type":"message_stop"}\n\n')
    script = Script(
        opening=[start + _PING],
        pieces=events,
        tokens=tokens,
        closing=closing,
        total_tokens=len(pieces),
        usage_sent=usage_sent and ("missing_finish" not in faults or "usage_in_extra_chunk" in faults),
        finish_reason=None if "missing_finish" in faults else stop["stop_reason"],
        arguments=argument_range(events, is_arguments) if "cut_in_arguments" in faults else None,
        error_event=_event(b"error", error_json("overloaded_error", "Overloaded", head.id)),
        broken_event=_BROKEN_EVENT,
        unknown_event=_UNKNOWN_EVENT,
        role_event=_PING,
    )
    return assemble(script, faults)


def _written(writer: _BlockWriter, pieces: Sequence[Piece]) -> tuple[list[bytes], list[int], list[bool]]:
    """Events for each piece, the tokens made so far, and whether they hold arguments; thinking that is not shown may make none."""
    events: list[bytes] = []
    tokens: list[int] = []
    is_arguments: list[bool] = []
    for made, piece in enumerate(pieces, 1):
        event = writer.piece(piece)
        if event:
            events.append(event)
            tokens.append(made)
            is_arguments.append(isinstance(piece, CallPiece) and not piece.id)
    return events, tokens, is_arguments


def _message_delta(stop: Mapping[str, Any], told: Mapping[str, Any] | None) -> bytes:
    data: dict[str, Any] = {"type": "message_delta", "delta": stop}
    if told:
        data["usage"] = told
    return _event(b"message_delta", orjson.dumps(data))
