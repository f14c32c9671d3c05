"""generateContent in Gemini's wire form: a stream is a list of whole answers, each with what is new and with the usage so far."""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from services.simulator.faults import Faults, count
from services.simulator.plans import BodyPlan, Head, Script, StreamPlan, argument_range, assemble, body_plan, error_plan, is_error_body
from services.simulator.refusals import Failure, Refused
from services.simulator.replies import CallPiece, Piece, Reply, Thought
from services.simulator.signatures import signature_of

Header = tuple[bytes, bytes]

_STATUS_NAMES: Mapping[int, str] = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ABORTED",
    412: "FAILED_PRECONDITION",
    413: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
_MESSAGE_BY_FAILURE: Mapping[Failure, str] = {
    Failure.RATE_LIMIT: "You exceeded your current quota, please check your plan and billing details.",
    Failure.QUOTA: "You exceeded your current quota, please check your plan and billing details.",
    Failure.CONTEXT: "The input token count exceeds the maximum number of tokens allowed (128000).",
    Failure.BAD_KEY: "API key not valid. Please pass a valid API key.",
}
_QUOTA_IDS: Mapping[Failure, str] = {
    Failure.RATE_LIMIT: "GenerateRequestsPerMinutePerProjectPerModel",
    Failure.QUOTA: "GenerateRequestsPerDayPerProjectPerModel-FreeTier",
}
_FINISH_REASONS: Mapping[str, str] = {"stop": "STOP", "length": "MAX_TOKENS", "tool_calls": "STOP", "content_filter": "SAFETY"}
_RPC = "type.googleapis.com/google.rpc."
_BROKEN_EVENT = b'data: {"candidates":[{"content":{"parts":[{"text":\r\n\r\n'
_UNKNOWN_EVENT = b'event: simulator.odd\r\ndata: {"simulatorOdd":"an event of a kind that no client knows"}\r\n\r\n'


def refusal(refused: Refused, answer_id: str) -> tuple[int, bytes, tuple[Header, ...]]:
    """Status, body and headers of an error, in Google's form."""
    # A wrong key is a bad argument there.
    status = 400 if refused.kind is Failure.BAD_KEY else refused.status
    details: list[dict[str, Any]] = []
    if refused.kind is Failure.BAD_KEY:
        domain = {"domain": "googleapis.com", "metadata": {"service": "generativelanguage.googleapis.com"}}
        details.append({"@type": _RPC + "ErrorInfo", "reason": "API_KEY_INVALID", **domain})
    if refused.kind in _QUOTA_IDS:
        violation = {"quotaMetric": "generativelanguage.googleapis.com/generate_requests", "quotaId": _QUOTA_IDS[refused.kind]}
        details.append({"@type": _RPC + "QuotaFailure", "violations": [violation]})
    if refused.retry_after_s is not None:
        details.append({"@type": _RPC + "RetryInfo", "retryDelay": f"{refused.retry_after_s:g}s"})
    return status, _error(status, _MESSAGE_BY_FAILURE.get(refused.kind, refused.message), details), ()


def _error(status: int, message: str, details: Sequence[Mapping[str, Any]] = ()) -> bytes:
    told: dict[str, Any] = {"code": status, "message": message, "status": _STATUS_NAMES.get(status, "UNKNOWN")}
    if details:
        told["details"] = details
    return orjson.dumps({"error": told})


def simulated_failure() -> bytes:
    """The error that faults put inside a 200."""
    return _error(500, "The simulator failed on purpose.")


def usage(head: Head, completion_tokens: int, reasoning_tokens: int, faults: Faults) -> dict[str, Any]:
    """Gemini's usage object; the candidates' tokens do not hold the thoughts'."""
    if "usage_zero" in faults:
        return {"promptTokenCount": 0, "candidatesTokenCount": 0, "totalTokenCount": 0}
    told: dict[str, Any] = {
        "promptTokenCount": head.prompt_tokens,
        "totalTokenCount": head.prompt_tokens + completion_tokens,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": head.prompt_tokens}],
    }
    if completion_tokens - reasoning_tokens:
        told["candidatesTokenCount"] = completion_tokens - reasoning_tokens
    if reasoning_tokens:
        told["thoughtsTokenCount"] = reasoning_tokens
    if head.cached_tokens:
        told["cachedContentTokenCount"] = head.cached_tokens
    return told


def _finish(reply: Reply) -> str:
    if reply.finish_reason == "tool_calls" and any(_arguments(call) is None for call in reply.tool_calls()):
        return "MALFORMED_FUNCTION_CALL"
    return _FINISH_REASONS.get(reply.finish_reason, "STOP")


def _arguments(call: Mapping[str, Any]) -> dict[str, Any] | None:
    """The arguments as an object, None where they break off: such a call is not sent."""
    try:
        parsed = orjson.loads(call["function"]["arguments"])
    except orjson.JSONDecodeError:
        return None
    return parsed if isinstance(parsed, dict) else None


def _call_part(call: Mapping[str, Any], signature: str | None) -> dict[str, Any] | None:
    arguments = _arguments(call)
    if arguments is None:
        return None
    part: dict[str, Any] = {"functionCall": {"id": call["id"], "name": call["function"]["name"], "args": arguments}}
    if signature:
        part["thoughtSignature"] = signature
    return part


def _blocked(head: Head) -> dict[str, Any]:
    """The answer to a prompt against the policy: the prompt was read, and is billed."""
    return {
        "promptFeedback": {"blockReason": "PROHIBITED_CONTENT"},
        "usageMetadata": {"promptTokenCount": head.prompt_tokens, "totalTokenCount": head.prompt_tokens},
        "modelVersion": head.model,
        "responseId": head.id,
    }


def whole_body(replies: Sequence[Reply], head: Head, faults: Faults) -> BodyPlan:
    """The body of an answer that is not streamed, with a candidate for each reply."""
    if is_error_body(faults):
        return error_plan(simulated_failure())
    if "content_policy" in faults:
        return body_plan(orjson.dumps(_blocked(head)), True, None, faults)
    finish = None if "missing_finish" in faults or "empty_choices" in faults else _finish(replies[0])
    answer: dict[str, Any] = {}
    if "empty_choices" not in faults:
        answer["candidates"] = [_candidate(reply, index, head, finish is not None) for index, reply in enumerate(replies)]
    usage_sent = "missing_usage" not in faults
    if usage_sent:
        completion_tokens = sum(reply.completion_tokens for reply in replies)
        answer["usageMetadata"] = usage(head, completion_tokens, sum(reply.reasoning_tokens for reply in replies), faults)
    answer["modelVersion"] = head.model
    answer["responseId"] = head.id
    padding = count(faults, "huge_event")
    if padding:
        answer["padding"] = "x" * padding
    return body_plan(orjson.dumps(answer), usage_sent, finish, faults)


def _candidate(reply: Reply, index: int, head: Head, finished: bool) -> dict[str, Any]:
    parts: list[dict[str, Any]] = []
    signature = signature_of(reply.thoughts()) if reply.reasoning_tokens else None
    if reply.reasoning_tokens and head.show_thinking:
        parts.append({"text": reply.thoughts(), "thought": True})
    text = reply.text()
    if text:
        parts.append({"text": text})
    for call in reply.tool_calls():
        part = _call_part(call, signature)
        if part:
            parts.append(part)
            signature = None
    if signature and parts:
        parts[-1]["thoughtSignature"] = signature
    candidate: dict[str, Any] = {"content": {"parts": parts, "role": "model"} if parts else {"role": "model"}, "index": index}
    if finished:
        candidate["finishReason"] = _finish(reply)
    return candidate


class _ChunkWriter:
    """Serialises the chunks of one stream; `told` writes the usage so far, unless only the end tells it."""

    def __init__(self, head: Head, faults: Faults):
        self._head = head
        self._faults = faults
        self._silent = bool({"missing_usage", "usage_in_extra_chunk", "usage_with_finish"} & faults.keys())
        self._rest = b',"modelVersion":' + orjson.dumps(head.model) + b',"responseId":' + orjson.dumps(head.id) + b"}\r\n\r\n"

    def part(self, part: Mapping[str, Any], index: int, made: int, reasoning: int) -> bytes:
        told = b"" if self._silent else self._usage(made, reasoning)
        content = b'{"content":{"parts":[' + orjson.dumps(part) + b'],"role":"model"},"index":%d}' % index
        return b'data: {"candidates":[' + content + b"]" + told + self._rest

    def finish(self, reason: str, index: int, signature: str | None, usage_json: bytes) -> bytes:
        part: dict[str, Any] = {"text": ""}
        if signature:
            part["thoughtSignature"] = signature
        content = b'{"content":{"parts":[' + orjson.dumps(part) + b'],"role":"model"},"finishReason":' + orjson.dumps(reason)
        return b'data: {"candidates":[' + content + b',"index":%d}]' % index + usage_json + self._rest

    def only_usage(self, usage_json: bytes) -> bytes:
        return b"data: {" + usage_json[1:] + (self._rest if usage_json else self._rest[1:])

    def without_content(self) -> bytes:
        return b'data: {"candidates":[{"content":{"role":"model"},"index":0}]' + self._rest

    def _usage(self, made: int, reasoning: int) -> bytes:
        return b',"usageMetadata":' + orjson.dumps(usage(self._head, made, reasoning, self._faults))


def stream(replies: Sequence[Reply], head: Head, faults: Faults) -> StreamPlan:
    """The events of a streamed answer, and how it ends."""
    error_event = b"data: " + _error(503, "The model is overloaded. Please try again later.") + b"\r\n\r\n"
    writer = _ChunkWriter(head, faults)
    events: list[bytes] = []
    tokens: list[int] = []
    is_arguments: list[bool] = []
    closing: list[bytes] = []
    made, finish, usage_sent = 0, None, "missing_usage" not in faults
    if "content_policy" in faults:
        closing.append(b"data: " + orjson.dumps(_blocked(head)) + b"\r\n\r\n")
    else:
        if "empty_choices" not in faults:
            made = _pieces(writer, replies, head, events, tokens, is_arguments)
        reasoning = min(sum(reply.reasoning_tokens for reply in replies), made)
        told = b',"usageMetadata":' + orjson.dumps(usage(head, made, reasoning, faults)) if usage_sent else b""
        extra = "usage_in_extra_chunk" in faults
        if "missing_finish" not in faults and "empty_choices" not in faults:
            finish = _finish(replies[0])
            closing.extend(_finishes(writer, replies, b"" if extra else told))
        if extra or "empty_choices" in faults:
            closing.append(writer.only_usage(told))
    script = Script(
        opening=[],
        pieces=events,
        tokens=tokens,
        closing=closing,
        total_tokens=made,
        usage_sent=usage_sent and bool(closing),
        finish_reason=finish,
        arguments=argument_range(events, is_arguments) if "cut_in_arguments" in faults else None,
        error_event=error_event,
        broken_event=_BROKEN_EVENT,
        unknown_event=_UNKNOWN_EVENT,
        role_event=writer.without_content(),
    )
    return assemble(script, faults)


def _finishes(writer: _ChunkWriter, replies: Sequence[Reply], told: bytes) -> list[bytes]:
    finishes = []
    for index, reply in enumerate(replies):
        # A call carries the signature itself.
        signature = signature_of(reply.thoughts()) if reply.reasoning_tokens and reply.finish_reason != "tool_calls" else None
        finishes.append(writer.finish(_finish(reply), index, signature, told if index == len(replies) - 1 else b""))
    return finishes


def _pieces(
    writer: _ChunkWriter, replies: Sequence[Reply], head: Head, events: list[bytes], tokens: list[int], is_arguments: list[bool]
) -> int:
    """Write the chunks of all candidates, one after the other; returns the tokens made. A call is one chunk, once it is whole."""
    made = reasoning = 0
    for index, reply in enumerate(replies):
        signature = signature_of(reply.thoughts()) if reply.reasoning_tokens else None
        calls = dict(enumerate(reply.tool_calls()))
        for position, piece in enumerate(reply.pieces):
            made += 1
            reasoning += isinstance(piece, Thought)
            part = _part(piece, reply.pieces, position, calls, head, signature)
            if part is not None:
                events.append(writer.part(part, index, made, reasoning))
                tokens.append(made)
                is_arguments.append(isinstance(piece, CallPiece))
                if "functionCall" in part:
                    signature = None
    return made


def _part(
    piece: Piece, pieces: Sequence[Piece], position: int, calls: Mapping[int, Mapping[str, Any]], head: Head, signature: str | None
) -> dict[str, Any] | None:
    """The part that a piece completes, None where it completes none."""
    if isinstance(piece, str):
        return {"text": piece}
    if isinstance(piece, Thought):
        return {"text": piece.text, "thought": True} if head.show_thinking else None
    after = pieces[position + 1] if position + 1 < len(pieces) else None
    if isinstance(after, CallPiece) and after.index == piece.index:
        return None
    return _call_part(calls[piece.index], signature)
