"""Proto to domain and back, nothing else."""

import base64
from collections.abc import Iterator, Mapping
from dataclasses import astuple
from typing import Any

from bulkhead.common.v1 import common_pb2
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb
from bulkhead.orchestrator.v1 import orchestrator_pb2_grpc as rpc

from services.common.errors import FieldViolation, InvalidInput, NotFound
from services.common.rpc.context import principal
from services.orchestrator.accepting import Accepting, RunRequest, checked_id
from services.orchestrator.agents import AgentCatalog, AgentDefinition
from services.orchestrator.bulk_cancel import BulkCancel, RunFilter
from services.orchestrator.control.double_texting import DoubleTexting
from services.orchestrator.records import Event, Limits, Place, RunRecord, RunRef
from services.orchestrator.run_listing import Wanted, list_runs
from services.orchestrator.run_store import RunStore
from services.orchestrator.schedules.records import LABEL as SCHEDULE_LABEL
from services.orchestrator.watching import Watching

PAGE_SIZE = 100
MOST_PAGE_SIZE = 1000
MOST_BATCH_BYTES = 1024 * 1024
NOWHERE = Place()
_STATUS = {
    "queued": pb.RUN_STATUS_QUEUED, "running": pb.RUN_STATUS_RUNNING, "succeeded": pb.RUN_STATUS_SUCCEEDED,
    "failed": pb.RUN_STATUS_FAILED, "cancelled": pb.RUN_STATUS_CANCELLED, "waiting": pb.RUN_STATUS_WAITING,
}  # fmt: skip
_STATUS_OF = {status: name for name, status in _STATUS.items()}
_ON_BUSY = {
    pb.ON_BUSY_REJECT: "reject", pb.ON_BUSY_INTERRUPT: "interrupt", pb.ON_BUSY_ROLLBACK: "rollback", pb.ON_BUSY_STEER: "steer",
}  # fmt: skip
_ON_DISCONNECT = {pb.ON_DISCONNECT_CANCEL: "cancel", pb.ON_DISCONNECT_CONTINUE: "continue"}
_USAGE = tuple(field.name for field in common_pb2.Usage.DESCRIPTOR.fields)
_CITATION = tuple(field.name for field in common_pb2.Citation.DESCRIPTOR.fields)


def page(size: int, token: str) -> tuple[int, int]:
    """(size, position below which to begin; 0: from the newest) of a list request. Raises InvalidInput."""
    if not 0 <= size <= MOST_PAGE_SIZE:
        raise InvalidInput.field("page_size", f"must be from 1 to {MOST_PAGE_SIZE}")
    if not token:
        return size or PAGE_SIZE, 0
    try:
        before = int(base64.urlsafe_b64decode(token.encode("ascii")).decode("ascii").removeprefix("before:"))
    except (ValueError, UnicodeError):
        before = 0
    if before <= 0:
        raise InvalidInput.field("page_token", "is not a token of an earlier answer")
    return size or PAGE_SIZE, before


def page_token(before: int) -> str:
    """The opaque form of a position."""
    return base64.urlsafe_b64encode(f"before:{before}".encode()).decode()


def usage_message(usage: dict[str, Any]) -> common_pb2.Usage:
    """Usage as it travels."""
    return common_pb2.Usage(**{name: usage[name] for name in _USAGE if name in usage})


def run_message(record: RunRecord, place: Place = NOWHERE, *, labels: bool = True) -> pb.Run:
    """A run as it travels; `place` where it waits, its caller's `labels` where they are wanted."""
    result = record.result
    message = pb.Run(
        run_id=record.run_id, thread_id=record.spec.thread_id, agent=record.spec.agent, agent_version=record.spec.agent_version,
        status=_STATUS[record.status], cancel_requested=record.cancel_requested, attempt=record.attempt, first_seq=record.first_seq,
        terminal_seq=record.terminal_seq, output_text=result.get("output_text", ""), finish_reason=result.get("finish_reason", ""),
        usage=usage_message((result or record.state).get("usage", {})),
        citations=[common_pb2.Citation(**{k: c[k] for k in _CITATION if k in c}) for c in result.get("citations", ())],
    )  # fmt: skip
    for call in result.get("client_tool_calls", ()):
        _add_call(message.client_tool_calls, call)
    message.queue_position, message.priority = place.position, record.spec.schedule.priority
    message.rolled_back_seq = record.rolled_back
    message.experiment, message.arm = record.spec.experiment, record.spec.arm
    if labels:
        message.metadata.update(record.spec.metadata)
    if place.wait_ms:
        message.expected_wait.FromMilliseconds(place.wait_ms)
    if record.spec.schedule.start_ms:
        message.start_at.FromMilliseconds(record.spec.schedule.start_ms)
    if record.spec.child_of:
        message.parent_run_id = RunRef.decode(record.spec.child_of["ref"]).run_id
    if "error" in result:
        message.error.CopyFrom(pb.RunError(**result["error"]))
    for name in ("created", "started", "ended"):
        if at_ms := getattr(record, f"{name}_ms"):
            getattr(message, f"{name}_at").FromMilliseconds(at_ms)
    return message


def input_message(said: Mapping[str, Any]) -> pb.InputMessage:
    """A message of an input as it travels."""
    message = pb.InputMessage(role=said["role"], text=said["text"], tool_call_id=said.get("tool_call_id", ""))
    for image in said.get("images", ()):
        message.images.add(blob_id=image["blob_id"], detail=image["detail"])
    for call in said.get("tool_calls", ()):
        _add_call(message.tool_calls, call)
    return message


def _add_call(calls: Any, call: Mapping[str, str]) -> None:
    calls.add(tool_call_id=call["tool_call_id"], name=call["name"], arguments_json=call["arguments"].encode())


def _said(message: pb.InputMessage) -> dict[str, Any]:
    """As of turn/said.py; what is not given is not there, so that the same request keeps its digest."""
    said: dict[str, Any] = {"role": message.role, "text": message.text}
    if message.images:
        said["images"] = [{"blob_id": image.blob_id, "detail": image.detail or "auto"} for image in message.images]
    if message.tool_calls:
        said["tool_calls"] = [
            {"tool_call_id": call.tool_call_id, "name": call.name, "arguments": call.arguments_json.decode("utf-8", "replace")}
            for call in message.tool_calls
        ]
    if message.tool_call_id or message.role == "tool":
        said["tool_call_id"] = message.tool_call_id
    return said


def _client_tool(tool: pb.ClientTool) -> dict[str, Any]:
    parameters = tool.parameters_json.decode("utf-8", "replace") or "{}"
    found: dict[str, Any] = {"name": tool.name, "description": tool.description, "parameters": parameters}
    return {**found, "strict": True} if tool.strict else found


def batches(events: list[Event]) -> Iterator[pb.StreamEventsResponse]:
    """Events as they travel together, in messages well below the size limit of gRPC."""
    response, size = pb.StreamEventsResponse(), 0
    for event in events:
        if size and size + len(event.data) > MOST_BATCH_BYTES:
            yield response
            response, size = pb.StreamEventsResponse(), 0
        # In place: a message that is made alone is copied into the batch, which takes most of the time.
        message = response.batch.events.add(
            seq=event.seq, thread_id=event.thread_id, run_id=event.run_id, attempt=event.attempt, type=event.type,
            data_json=event.data, provisional=event.provisional, trace_id=event.trace_id, schema_version=event.schema_version,
        )  # fmt: skip
        occurred, ms = message.occurred_at, event.at_ms
        occurred.seconds, occurred.nanos = ms // 1000, ms % 1000 * 1_000_000
        size += len(event.data)
    if events:
        yield response


def agent_message(agent: AgentDefinition) -> pb.Agent:
    """An agent as it travels."""
    return pb.Agent(name=agent.name, version=agent.version, description=agent.description, model=agent.model, tools=agent.tools)


def _limits(asked: pb.RunLimits) -> Limits:
    """The limits of a request. Raises InvalidInput for one of 0: a run that may do nothing is meant by nobody."""
    deadline_s = asked.deadline.ToTimedelta().total_seconds()
    limits = Limits(deadline_s, asked.max_steps, asked.max_tool_calls, asked.max_cost_microusd, asked.max_total_tokens)
    names = ("deadline", "max_steps", "max_tool_calls", "max_cost_microusd", "max_total_tokens")
    nothing = [name for name, limit in zip(names, astuple(limits), strict=True) if not limit and asked.HasField(name)]
    if nothing:
        violations = [FieldViolation(f"limits.{name}", "must be positive") for name in nothing]
        raise InvalidInput("the request is not valid", violations=violations)
    return limits


class RunServicer(rpc.RunServiceServicer):
    """Runs and their events."""

    def __init__(
        self, accepting: Accepting, watching: Watching, store: RunStore, bulk_cancel: BulkCancel, double_texting: DoubleTexting
    ) -> None:
        self._accepting, self._watching, self._store, self._bulk_cancel = accepting, watching, store, bulk_cancel
        self._double_texting = double_texting

    async def CreateRun(self, request, context):
        """Accepts a run durably."""
        caller = principal()
        caller.require("runs:write")
        limits = _limits(request.limits)
        record, created, number = await self._double_texting.create_run(
            caller,
            RunRequest(
                thread_id=request.thread_id,
                agent=request.agent,
                input=tuple(map(_said, request.input)),
                limits=limits,
                run_id=request.run_id,
                idempotency_key=request.idempotency_key,
                metadata=dict(request.metadata),
                append_only=request.append_only_output,
                reset_memory=request.reset_memory,
                temperature=request.temperature if request.HasField("temperature") else None,
                max_tokens=request.max_tokens if request.HasField("max_tokens") else None,
                on_disconnect=_ON_DISCONNECT.get(request.on_disconnect, ""),
                priority=request.priority,
                on_busy=_ON_BUSY.get(request.on_busy, ""),
                client_tools=tuple(map(_client_tool, request.client_tools)),
                tool_choice=request.tool_choice_json.decode("utf-8", "replace"),
                response_format=request.response_format_json.decode("utf-8", "replace"),
                start_ms=max(1, request.start_at.ToMilliseconds()) if request.HasField("start_at") else 0,
            ),
        )
        run = run_message(record, await self._accepting.place(caller, record))
        return pb.CreateRunResponse(run=run, created=created, steer_number=number)

    async def GetRun(self, request, context):
        """One run."""
        caller = principal()
        caller.require("runs:read")
        ref = await self._watching.locate(caller, checked_id("run_id", request.run_id))
        record = await self._watching.record(ref)
        return pb.GetRunResponse(run=run_message(record, await self._accepting.place(caller, record)))

    async def ListRuns(self, request, context):
        """Runs of a thread, or of the caller, newest first."""
        caller = principal()
        caller.require("runs:read")
        size, before = page(request.page_size, request.page_token)
        thread_id = checked_id("thread_id", request.thread_id) if request.thread_id else ""
        if thread_id and await self._store.thread(caller.tenant, caller.user, thread_id) is None:
            raise NotFound("there is no such thread", reason="THREAD_NOT_FOUND")
        if not all(status in _STATUS_OF for status in request.statuses):
            raise InvalidInput.field("statuses", "must be statuses of a run")
        wanted = Wanted(frozenset(_STATUS_OF[status] for status in request.statuses), request.agent)
        found, rest = await list_runs(self._store, caller, thread_id, wanted, size, before)
        return pb.ListRunsResponse(runs=[run_message(run, labels=False) for run in found], next_page_token=page_token(rest) if rest else "")

    async def WaitRun(self, request, context):
        """Waits for the end of a run."""
        caller = principal()
        caller.require("runs:read")
        return pb.WaitRunResponse(run=run_message(await self._watching.wait(caller, checked_id("run_id", request.run_id))))

    async def CancelRuns(self, request, context):
        """Asks for the end of many runs."""
        caller = principal()
        caller.require("runs:write")
        asked = request.filter
        labels = dict(asked.metadata)
        if asked.schedule_id:
            labels[SCHEDULE_LABEL] = checked_id("filter.schedule_id", asked.schedule_id)
        statuses = frozenset(_STATUS_OF.get(status, "") for status in asked.statuses)
        wanted = RunFilter(asked.thread_id, asked.agent, statuses, labels)
        progress = await self._bulk_cancel.cancel(caller, wanted, request.reason, request.idempotency_key, request.page_size)
        return pb.CancelRunsResponse(matched_count=progress.matched, requested_count=progress.asked, done=progress.done)

    async def StreamEvents(self, request, context):
        """Follows a thread or a run."""
        caller = principal()
        caller.require("runs:read")
        if request.after_seq < 0:
            raise InvalidInput.field("after_seq", "must not be negative")
        of_run = request.WhichOneof("subject") == "run_id"
        if of_run:
            ref = await self._watching.locate(caller, checked_id("run_id", request.run_id))
        else:
            ref = RunRef(caller.tenant, checked_id("thread_id", request.thread_id), "-")
            if await self._store.thread(caller.tenant, caller.user, ref.thread_id) is None:
                raise NotFound("there is no such thread", reason="THREAD_NOT_FOUND")
        events = self._watching.events(
            ref, of_run=of_run, after_seq=request.after_seq, types=frozenset(request.types), replay_only=request.replay_only
        )
        try:
            async for batch in events:
                if isinstance(batch, int):
                    yield pb.StreamEventsResponse(heartbeat=pb.Heartbeat(last_seq=batch))
                    continue
                for response in batches(batch):
                    yield response
        finally:
            await events.aclose()


class AgentServicer(rpc.AgentServiceServicer):
    """Agents as they are configured."""

    def __init__(self, agents: AgentCatalog) -> None:
        self._agents = agents

    async def ListAgents(self, request, context):
        """The current version of each agent, in the order of the configuration."""
        principal()
        size, position = page(request.page_size, request.page_token)
        agents = list(self._agents.agents.current.values())
        shown = agents[position : position + size]
        token = page_token(position + size) if len(agents) > position + size else ""
        return pb.ListAgentsResponse(agents=[agent_message(a) for a in shown], next_page_token=token)

    async def GetAgent(self, request, context):
        """One agent."""
        principal()
        if not request.name:
            raise InvalidInput.field("name", "is required")
        return pb.GetAgentResponse(agent=agent_message(self._agents.agents.get(request.name)))
