"""The events of a run as chat completion chunks."""

from collections.abc import AsyncGenerator, Mapping
from typing import Any

import orjson
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from services.common.errors import BulkheadError
from services.gateway.answer import Answer, AppendOnlyText, data_of
from services.gateway.edge.problems import openai_error
from services.gateway.running import usage_of

DONE = b"data: [DONE]\n\n"
FINISH_REASONS = {"stop": "stop", "length": "length", "content_filter": "content_filter", "tool_limit": "length"}
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


def completion(run: pb.Run, model: str, answer: Answer, ignored: list[str]) -> dict[str, Any]:
    """A whole chat completion."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": answer.text, "refusal": None, "annotations": []},
        "logprobs": None,
        "finish_reason": FINISH_REASONS.get(answer.finish_reason, "stop"),
    }
    return {
        **head(run, model, "chat.completion"),
        "choices": [choice],
        "usage": usage_object(answer),
        "bulkhead": extension(run, answer, ignored),
    }


async def chunk_frames(
    events: AsyncGenerator[pb.Event, None], run: pb.Run, model: str, *, include_usage: bool, ignored: list[str]
) -> AsyncGenerator[bytes, None]:
    """The frames of a streamed completion. Raises RunFailed when the run ends without an answer."""
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
                yield chunk({"role": "assistant", "content": "", "refusal": None})
            elif event.type == "tool_call_started":
                yield WORKING
            if fresh:
                yield chunk({"content": fresh})
            if answer.finish:
                if not text.sent and answer.text:
                    yield chunk({"content": answer.text})
                reason = orjson.dumps(FINISH_REASONS.get(answer.finish_reason, "stop"))
                yield chunk({}, reason, b',"bulkhead":' + orjson.dumps(extension(run, answer, ignored)))
        if include_usage:
            yield b'data: %s,"choices":[],"usage":%s}\n\n' % (opening, orjson.dumps(usage_object(answer)))
        yield DONE
    finally:
        await events.aclose()
