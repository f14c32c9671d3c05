"""Protos as the native API's JSON objects."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any
from urllib.parse import quote, urlencode

import orjson
from bulkhead.common.v1 import common_pb2
from bulkhead.memory.v1 import memory_pb2
from bulkhead.orchestrator.v1 import orchestrator_pb2
from bulkhead.tools.v1 import tools_pb2
from google.protobuf.timestamp_pb2 import Timestamp
from starlette.requests import Request
from starlette.responses import Response

RUN_STATUS = {
    orchestrator_pb2.RUN_STATUS_QUEUED: "queued",
    orchestrator_pb2.RUN_STATUS_WAITING: "waiting",
    orchestrator_pb2.RUN_STATUS_RUNNING: "running",
    orchestrator_pb2.RUN_STATUS_SUCCEEDED: "succeeded",
    orchestrator_pb2.RUN_STATUS_FAILED: "failed",
    orchestrator_pb2.RUN_STATUS_CANCELLED: "cancelled",
}
RUN_STATUSES = {name: status for status, name in RUN_STATUS.items()}


def reply(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON answer."""
    return Response(orjson.dumps(content), status, dict(headers or {}), "application/json")


def location(collection: str, id_: str) -> dict[str, str]:
    """The Location header of a thing in a collection."""
    return {"location": f"{collection}/{quote(id_, safe=':')}"}


def run_headers(run: orchestrator_pb2.Run) -> dict[str, str]:
    """Headers of every answer that started a run."""
    return {**location("/v1/runs", run.run_id), "x-bulkhead-run-id": run.run_id, "x-bulkhead-thread-id": run.thread_id}


def page(request: Request, items: Iterable[Any], token: str) -> Response:
    """One page of a list; `next_after` and the Link header lead to the next."""
    headers = {}
    if token:
        kept = [(k, v) for k, v in request.query_params.multi_items() if k != "after"]
        headers["link"] = f'<{request.url.path}?{urlencode([*kept, ("after", token)])}>; rel="next"'
    return reply({"data": list(items), "next_after": token or None}, headers=headers)


def rfc3339(moment: Timestamp) -> str:
    """A timestamp in UTC with microseconds, for example 2026-01-31T12:00:00.000001Z."""
    return f"{_to_the_second(moment.seconds)}.{moment.nanos // 1000:06d}Z"


@lru_cache(maxsize=64)
def _to_the_second(seconds: int) -> str:
    # Asked for each event that is passed on, and those come by the hundred in a second.
    return datetime.fromtimestamp(seconds, UTC).isoformat()[:19]


def moment(message: Any, name: str) -> str | None:
    """A field of a message that is a timestamp, None where it is not set."""
    return rfc3339(getattr(message, name)) if message.HasField(name) else None


def thread(message: orchestrator_pb2.Thread) -> dict[str, Any]:
    """A thread."""
    return {
        "thread_id": message.thread_id,
        "created_at": moment(message, "created_at"),
        "last_seq": message.last_seq,
        "metadata": dict(message.metadata),
        "parent_thread_id": message.parent_thread_id or None,
        "forked_at_seq": message.forked_at_seq,
        "expires_at": moment(message, "expires_at"),
        "oldest_seq": message.oldest_seq or 1,
    }


def usage(message: common_pb2.Usage) -> dict[str, Any]:
    """What a run consumed."""
    return {
        "input_tokens": message.input_tokens,
        "output_tokens": message.output_tokens,
        "cached_input_tokens": message.cached_input_tokens,
        "reasoning_tokens": message.reasoning_tokens,
        "cost_microusd": message.cost_microusd,
        "estimated": message.estimated,
        "model_calls": message.model_calls,
        "tool_calls": message.tool_calls,
    }


def citation(message: common_pb2.Citation) -> dict[str, Any]:
    """A source."""
    return {
        "citation_id": message.citation_id,
        "document_id": message.document_id,
        "document_version": message.document_version,
        "title": message.title,
        "heading": message.heading,
        "char_start": message.char_start,
        "char_end": message.char_end,
        "content_hash": message.content_hash,
    }


def warning(message: common_pb2.Warning) -> dict[str, Any]:
    """A degradation."""
    return {
        "code": message.code,
        "capability_lost": message.capability_lost,
        "fallback": message.fallback,
        "user_message": message.user_message,
    }


def run(message: orchestrator_pb2.Run) -> dict[str, Any]:
    """A run."""
    error = message.error
    return {
        "run_id": message.run_id,
        "thread_id": message.thread_id,
        "agent": message.agent,
        "agent_version": message.agent_version,
        "status": RUN_STATUS.get(message.status, "queued"),
        "cancel_requested": message.cancel_requested,
        "created_at": moment(message, "created_at"),
        "started_at": moment(message, "started_at"),
        "ended_at": moment(message, "ended_at"),
        "output_text": message.output_text,
        "finish_reason": message.finish_reason or None,
        "error": {"reason": error.reason, "message": error.message, "retryable": error.retryable} if message.HasField("error") else None,
        "usage": usage(message.usage),
        "citations": [citation(c) for c in message.citations],
        "attempt": message.attempt,
        "first_seq": message.first_seq,
        "terminal_seq": message.terminal_seq,
        "queue_position": message.queue_position or None,
        "expected_wait_ms": message.expected_wait.ToMilliseconds() if message.HasField("expected_wait") else None,
        "start_at": moment(message, "start_at"),
        "priority": message.priority,
        "rolled_back_seq": message.rolled_back_seq or None,
        "parent_run_id": message.parent_run_id or None,
        "experiment": message.experiment or None,
        "arm": message.arm or None,
        "client_tool_calls": [client_tool_call(call) for call in message.client_tool_calls] or None,
        "metadata": dict(message.metadata),
    }


def listed_run(message: orchestrator_pb2.Run) -> dict[str, Any]:
    """A run of a list, in which labels are not told."""
    return {**run(message), "metadata": None}


def client_tool_call(message: orchestrator_pb2.ClientToolCall) -> dict[str, Any]:
    """A call that the client of a run is asked to make."""
    arguments = message.arguments_json.decode("utf-8", "replace")
    return {"tool_call_id": message.tool_call_id, "name": message.name, "arguments": arguments}


def agent(message: orchestrator_pb2.Agent) -> dict[str, Any]:
    """An agent."""
    return {
        "name": message.name,
        "version": message.version,
        "description": message.description,
        "model": message.model,
        "tools": list(message.tools),
    }


def tool(message: tools_pb2.Tool) -> dict[str, Any]:
    """A tool, with its schemas."""
    hints = message.annotations
    return {
        "name": message.name,
        "version": message.version,
        "description": message.description,
        "input_schema": orjson.loads(message.input_schema_json or b"{}"),
        "output_schema": orjson.loads(message.output_schema_json) if message.output_schema_json else None,
        "annotations": {
            "read_only": hints.read_only, "destructive": hints.destructive, "idempotent": hints.idempotent, "open_world": hints.open_world,
        },
        "required_scopes": list(message.required_scopes),
        "timeout_ms": message.timeout.ToMilliseconds(),
    }  # fmt: skip


def document(message: memory_pb2.Document) -> dict[str, Any]:
    """A document."""
    return {
        "document_id": message.document_id,
        "version": message.version,
        "title": message.title,
        "content_type": message.content_type,
        "chunk_count": message.chunk_count,
        "size_bytes": message.size_bytes,
        "content_hash": message.content_hash,
        "created_at": moment(message, "created_at"),
    }


def passage(message: memory_pb2.Passage) -> dict[str, Any]:
    """A passage of a document."""
    return {
        "text": message.text,
        "citation": citation(message.citation),
        "score": message.score,
        "dense_rank": message.dense_rank or None,
        "keyword_rank": message.keyword_rank or None,
    }


def memory(message: memory_pb2.Memory) -> dict[str, Any]:
    """A long-term memory."""
    return {
        "memory_id": message.memory_id,
        "text": message.text,
        "importance": message.importance,
        "kind": message.kind,
        "session_id": message.session_id or None,
        "created_at": moment(message, "created_at"),
        "expires_at": moment(message, "expires_at"),
        "score": message.score,
    }


def envelope(event: orchestrator_pb2.Event) -> bytes:
    """An event as one line of JSON. Its data is passed on as the log holds it, so nothing is parsed for each watcher."""
    data = event.data_json or b"{}"
    if b"\n" in data or b"\r" in data:  # between tokens only: inside of JSON strings they are escaped
        data = data.replace(b"\r", b" ").replace(b"\n", b" ")
    return (
        b'{"seq":%d,"ts":"%s","thread_id":%s,"run_id":%s,"attempt":%d,"type":%s,"data":%s,"provisional":%s,"trace_id":%s,"schema_version":%d}'
        % (
            event.seq, rfc3339(event.occurred_at).encode("ascii"), orjson.dumps(event.thread_id),
            orjson.dumps(event.run_id) if event.run_id else b"null", event.attempt, orjson.dumps(event.type), data,
            b"true" if event.provisional else b"false", orjson.dumps(event.trace_id) if event.trace_id else b"null", event.schema_version,
        )
    )  # fmt: skip


def frame(event: orchestrator_pb2.Event) -> bytes:
    """An event as a server-sent event whose id is its number in the thread."""
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (event.seq, event.type.encode("utf-8"), envelope(event))
