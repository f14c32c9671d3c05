"""The log of a run as a response and its events: the same log makes the same events under the same numbers, whoever reads it."""

from collections.abc import Iterator, Mapping
from typing import Any

import orjson
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from services.gateway.answer import Answer, data_of
from services.gateway.following import TERMINAL
from services.gateway.running import usage_of
from services.gateway.surfaces.openai.chunks import REFUSING, extension
from services.gateway.surfaces.responses import ids
from services.gateway.surfaces.responses.asked import asked_of, told_of
from services.gateway.surfaces.responses.output import Output, Told

# Numbers are made of those of the log, so that they hold where events of it are lost, and none depends on what was sent before. Before
# the last one, no event of the log becomes more than eight.
NUMBERS_AN_EVENT = 16
_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter", "tool_limit": "max_messages"}
_EVENT_OF = {"completed": "response.completed", "failed": "response.failed"}
_FAILURES = {400: "invalid_prompt", 429: "rate_limit_exceeded"}


class Projection:
    """One response. What its request said that the log does not tell is read from the labels of the run, or is `said` where that is at
    hand."""

    def __init__(self, run: pb.Run, said: Mapping[str, Any] | None = None) -> None:
        self.run = run
        # What there is of it in the log is told by `take`.
        self.status = "queued"
        self.number = -1
        self.input: list[Mapping[str, Any]] = []
        self.answer = Answer(run.run_id, run.thread_id)
        known = asked_of(run)
        self._said = {**known, **(said or {})}
        # Another request that goes on with the run may have named more.
        self._ignored = [*known["ignored"], *(name for name in self._said.pop("ignored") if name not in known["ignored"])]
        # Whether the answer is to be JSON: of one that has not the form, and is asked for again, nothing may be seen.
        self._structured = self._said["text"]["format"]["type"] != "text"
        self._output = Output(run.run_id)
        self._ended_at: int | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing comes any more."""
        return bool(self.answer.finish)

    @property
    def waits(self) -> bool:
        """Whether nothing goes on before somebody decides."""
        return self._output.waits

    @property
    def items(self) -> list[dict[str, Any]]:
        """The output as it stands."""
        return self._output.items

    def take(self, event: pb.Event) -> list[dict[str, Any]]:
        """The events that an event of the log is, each with its `sequence_number`."""
        data = data_of(event)
        self.answer.take(event, data)
        first = max(0, event.seq - self.run.first_seq) * NUMBERS_AN_EVENT
        found = []
        for number, (kind, fields) in enumerate(self._told(event, data), first):
            self.number = number
            found.append({"type": kind, "sequence_number": number, **fields})
        return found

    def _told(self, event: pb.Event, data: Mapping[str, Any]) -> Iterator[Told]:
        output = self._output
        match event.type:
            case "run_queued":
                self.input = list(data.get("input") or [])
                self._queued(data)
                yield "response.created", {"response": self.response()}
                if "queue_position" in data or "start_at_ms" in data:
                    yield "response.queued", {"response": self.response()}
            case "run_started" if self.status == "queued":
                self.status = "in_progress"
                yield "response.in_progress", {"response": self.response()}
            case "message_delta" | "message_completed" if self._structured:
                pass
            case "message_delta":
                yield from output.delta(event.seq, str(data.get("message_id", "")), str(data.get("text", "")))
            case "message_completed":
                yield from output.completed(event.seq, str(data.get("message_id", "")), str(data.get("text", "")))
            case "attempt_superseded" | "log_gap":
                output.superseded(int(data.get("from_seq", 0)))
            case "citation":
                yield from output.cited(data)
            case "tool_call_started":
                yield from output.call_started(data)
            case "tool_call_completed" | "tool_call_failed":
                yield from output.call_ended(data, failed=event.type == "tool_call_failed")
            case "interrupt_raised":
                yield from output.raised(data)
            case "interrupt_resolved":
                output.resolved(data)
            case kind if kind in TERMINAL:
                if self.answer.finish == "finished":
                    yield from self._last(event.seq)
                yield from output.ended(whole=self.answer.finish == "finished")
                self._end(event)
                yield _EVENT_OF.get(self.status, "response.incomplete"), {"response": self.response()}

    def _queued(self, data: Mapping[str, Any]) -> None:
        """What the acceptance of a run tells of its request."""
        self._said |= told_of(data)
        self._structured = self._said["text"]["format"]["type"] != "text"
        if self._said["instructions"] is not None:
            self._said["instructions"] = str(self.input[0].get("text", "")) if self.input else None

    def _last(self, seq: int) -> Iterator[Told]:
        """What the end of a run says: its answer, why there is none, and what the client is to call."""
        answer = self.answer
        if self._structured and answer.finish_reason in REFUSING:
            yield from self._output.refused(answer.text)
        elif not (self._structured and answer.calls):
            yield from self._output.answered(seq, answer.text)
        yield from self._output.called(answer.calls)

    def _end(self, event: pb.Event) -> None:
        self._ended_at = event.occurred_at.seconds
        match self.answer.finish:
            case "finished":
                self.status = "incomplete" if self.answer.finish_reason in _INCOMPLETE else "completed"
            case finish:
                self.status = finish

    def response(self) -> dict[str, Any]:
        """The response as it stands."""
        run, failure = self.run, self.answer.failure
        incomplete = _INCOMPLETE.get(self.answer.finish_reason) if self.status == "incomplete" else None
        error = None
        if failure is not None and self.status == "failed":
            error = {"code": _FAILURES.get(failure.http_status, "server_error"), "message": failure.message}
        return {
            "id": ids.response_id(run.run_id),
            "object": "response",
            "created_at": run.created_at.seconds,
            "completed_at": self._ended_at if self.status == "completed" else None,
            "status": self.status,
            "error": error,
            "incomplete_details": {"reason": incomplete} if incomplete else None,
            "model": run.agent,
            "output": self._output.items,
            "conversation": {"id": ids.conversation_id(run.thread_id)},
            **self._said,
            "parallel_tool_calls": True,
            "reasoning": None,
            "service_tier": "priority" if run.priority > 0 else "flex" if run.priority < 0 else "default",
            "top_p": None,
            "truncation": "disabled",
            "usage": self._usage(),
            "bulkhead": {
                **extension(run, self.answer, self._ignored), "approvals": list(self._output.asked),
                "reason": failure.reason if failure is not None else None,
            },
        }  # fmt: skip

    def _usage(self) -> dict[str, Any] | None:
        if not self.answer.usage:
            return None
        used = usage_of(self.answer)
        return {
            "input_tokens": used["input_tokens"],
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": used["output_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": used["input_tokens"] + used["output_tokens"],
        }


def frame(event: Mapping[str, Any]) -> bytes:
    """An event as a server-sent one. OpenAI's streams have no ids: `sequence_number` is the cursor."""
    return b"event: %s\ndata: %s\n\n" % (event["type"].encode("ascii"), orjson.dumps(event))
