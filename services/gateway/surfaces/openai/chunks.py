"""The events of a run as chat completion chunks."""

from collections.abc import AsyncGenerator, Iterator, Mapping
from typing import Any

import orjson
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from services.common.errors import BulkheadError
from services.gateway.answer import Answer, AppendOnlyText, data_of
from services.gateway.client_tools import Call
from services.gateway.edge.problems import openai_error
from services.gateway.running import usage_of

DONE = b"data: [DONE]\n\n"
FINISH_REASONS = {
    "stop": "stop", "length": "length", "content_filter": "content_filter", "tool_limit": "length", "tool_calls": "tool_calls",
}  # fmt: skip
# Ends whose text is no answer but says why there is none, and so has not the form that was asked for.
REFUSING = frozenset({"rephrase", "handed_off"})
# Shown in server-sent events as a comment, which every client passes over.
WORKING = b": working\n\n"
# Which events prove that the run works, so that the headers may go.
_PROOF = frozenset({"tool_call_started", "message_delta", "message_completed"})


def head(run: pb.Run, model: str, kind: str) -> dict[str, Any]:
    """The fields that every chunk and the whole completion begin with."""
    return {"id": f"chatcmpl-{run.run_id}", "object": kind, "created": run.created_at.seconds, "model": model}


def usage_object(answer: Answer) -> dict[str, Any]:
    """Usage in OpenAI's names."""
    used = usage_of(answer)
    return {
        "prompt_tokens": used["input_tokens"],
        "completion_tokens": used["output_tokens"],
        "total_tokens": used["input_tokens"] + used["output_tokens"],
    }


def extension(run: pb.Run, answer: Answer, ignored: list[str]) -> dict[str, Any]:
    """What we know beyond OpenAI's shape; SDKs pass it through."""
    warnings = list(answer.warnings)
    if ignored:
        names = ", ".join(ignored)
        warnings.append({"code": "parameters_ignored", "capability_lost": names, "user_message": f"Without effect here: {names}."})
    return {"run_id": run.run_id, "thread_id": run.thread_id, "citations": answer.citations, "warnings": warnings}


def error_frame(error: BulkheadError) -> bytes:
    """An error after the headers: no finish_reason and no [DONE], so that nobody takes a part for the whole."""
    return b"data: %s\n\n" % orjson.dumps({"error": openai_error(error)})


def ending(answer: Answer, *, structured: bool) -> tuple[dict[str, Any], str]:
    """The message of an answer, and its finish reason. With `structured` a text is either of the form that was asked for, or a refusal."""
    finish = FINISH_REASONS.get(answer.finish_reason, "stop")
    message: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None, "annotations": []}
    if answer.calls:
        message["content"] = None if structured else answer.text or None
        message["tool_calls"] = [_call(call) for call in answer.calls]
    elif structured and answer.finish_reason in REFUSING:
        message["content"], message["refusal"] = None, answer.text
    elif structured and answer.finish_reason == "stopped":
        finish = "length"
    return message, finish


def _call(call: Call) -> dict[str, Any]:
    return {"id": call.tool_call_id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def completion(run: pb.Run, model: str, answer: Answer, ignored: list[str], *, structured: bool = False) -> dict[str, Any]:
    """A whole chat completion."""
    message, finish = ending(answer, structured=structured)
    return {
        **head(run, model, "chat.completion"),
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": finish}],
        "usage": usage_object(answer),
        "bulkhead": extension(run, answer, ignored),
    }


def _last_deltas(answer: Answer, sent: str, *, structured: bool) -> Iterator[dict[str, Any]]:
    """What is left to send at the end of a run: a text of which nothing was sent, and the calls that the client is to make."""
    message, _ = ending(answer, structured=structured)
    for name in ("content", "refusal"):
        if message[name] and not sent:
            yield {name: message[name]}
    for index, call in enumerate(message.get("tool_calls", ())):
        arguments = call["function"]["arguments"]
        yield {"tool_calls": [{"index": index, **call, "function": {**call["function"], "arguments": ""}}]}
        yield {"tool_calls": [{"index": index, "function": {"arguments": arguments}}]}


async def chunk_frames(
    events: AsyncGenerator[pb.Event, None], run: pb.Run, model: str, *, include_usage: bool, ignored: list[str], structured: bool = False
) -> AsyncGenerator[bytes, None]:
    """The frames of a streamed completion. Raises RunFailed when the run ends without an answer.

    With `structured` the text comes as a whole at the end: one that has not the form that was asked for is asked for again, and what a
    client has seen cannot be unsaid.
    """
    opening = orjson.dumps(head(run, model, "chat.completion.chunk"))[:-1]
    nothing = b',"usage":null' if include_usage else b""

    def chunk(delta: Mapping[str, Any], finish: bytes = b"null", more: bytes = b"") -> bytes:
        body = orjson.dumps(delta)
        return b'data: %s,"choices":[{"index":0,"delta":%s,"logprobs":null,"finish_reason":%s}]%s%s}\n\n' % (
            opening, body, finish, nothing, more,
        )  # fmt: skip

    text = AppendOnlyText()
    answer = Answer(run.run_id, run.thread_id)
    begun = False
    try:
        async for event in events:
            data = data_of(event)
            fresh = ""
            match event.type:
                case "message_delta" | "message_completed" if structured:
                    pass
                case "message_delta":
                    fresh = text.delta(event.seq, str(data.get("message_id", "")), str(data.get("text", "")))
                case "message_completed":
                    fresh = text.completed(event.seq, str(data.get("message_id", "")), str(data.get("text", "")))
                case "attempt_superseded" | "log_gap":
                    text.superseded(int(data.get("from_seq", 0)))
                case _:
                    answer.take(event, data)
            if answer.failure is not None:
                raise answer.failure
            if not begun and (event.type in _PROOF or answer.finish):
                begun = True
                yield chunk({"role": "assistant", "content": None if structured else "", "refusal": None})
            elif event.type == "tool_call_started":
                yield WORKING
            if fresh:
                yield chunk({"content": fresh})
            if answer.finish:
                for delta in _last_deltas(answer, text.sent, structured=structured):
                    yield chunk(delta)
                reason = orjson.dumps(ending(answer, structured=structured)[1])
                yield chunk({}, reason, b',"bulkhead":' + orjson.dumps(extension(run, answer, ignored)))
        if include_usage:
            yield b'data: %s,"choices":[],"usage":%s}\n\n' % (opening, orjson.dumps(usage_object(answer)))
        yield DONE
    finally:
        await events.aclose()
