"""The services behind the gateway, small and in memory, for its tests: real gRPC servers over the real protos.

`FakeLog` is the durable side and may be shared by several `FakeOrchestrator` servers, as replicas share a store. What an
agent does is a script of fake_scripts.py.
"""

import asyncio
import itertools
import time
import uuid
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import orjson
from bulkhead.orchestrator.v1 import approvals_pb2_grpc
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb
from bulkhead.orchestrator.v1 import orchestrator_pb2_grpc as rpc

from services.common import testing
from services.common.accounts import Accounts
from services.common.errors import Conflict, NotFound, Overloaded
from services.common.identity import Principal
from services.common.rpc import context as call_context
from services.common.rpc.context import principal
from services.common.rpc.server import Service
from services.common.settings import ServiceSettings
from services.common.valkey import connect
from services.gateway import fake_stores
from services.gateway.app import build
from services.gateway.fake_admin import FakeRecords, FakeThreadChanges, budget_adders, record_adders
from services.gateway.fake_control import FakeApprovals, FakeControl, FakeDesk
from services.gateway.fake_control import page as _page
from services.gateway.fake_scripts import SCRIPTS, FakeRun, Script
from services.gateway.settings import Settings

TERMINAL = {
    "run_finished": pb.RUN_STATUS_SUCCEEDED,
    "run_failed": pb.RUN_STATUS_FAILED,
    "run_cancelled": pb.RUN_STATUS_CANCELLED,
}


# A thread whose mention is an internal error of the orchestrator.
EXPLODES = "t-explodes"


class FakeLog:
    """Threads, runs and events of every tenant."""

    def __init__(self) -> None:
        self.threads: dict[tuple[str, str], pb.Thread] = {}
        self.events: dict[tuple[str, str], list[pb.Event]] = defaultdict(list)
        self.runs: dict[tuple[str, str], FakeRun] = {}
        self.by_key: dict[tuple[str, str], pb.CreateRunRequest] = {}
        self.tombstones: set[tuple[str, str]] = set()
        self.seen: list[tuple[str, call_context.CallContext]] = []
        self.desk = FakeDesk()
        self.records = FakeRecords()
        self.grown = asyncio.Event()
        self.tasks: set[asyncio.Task] = set()

    def thread(self, thread_id: str) -> pb.Thread:
        """Raises NotFound for a thread that is not the caller's."""
        if thread_id == EXPLODES:
            raise ZeroDivisionError("the secret of the house")
        found = self.threads.get((principal().tenant, thread_id))
        if found is None:
            raise NotFound("no such thread")
        return found

    def run(self, run_id: str) -> FakeRun:
        """Raises NotFound for a run that is not the caller's."""
        found = self.runs.get((principal().tenant, run_id))
        if found is None:
            raise NotFound("no such run")
        return found

    def at_work(self, thread_id: str) -> pb.Run | None:
        """The caller's run that is at work in a thread."""
        mine = (fake.run for (tenant, _), fake in self.runs.items() if tenant == principal().tenant)
        return next((run for run in mine if run.thread_id == thread_id and run.status not in TERMINAL.values()), None)

    def newest(self) -> FakeRun:
        """The run that was started last."""
        return next(reversed(self.runs.values()))

    def make_thread(self, tenant: str, thread_id: str, metadata: Any = None) -> pb.Thread:
        """The thread, made when it is not there."""
        key = (tenant, thread_id)
        if key not in self.threads:
            self.threads[key] = pb.Thread(thread_id=thread_id, metadata=metadata or {})
            self.threads[key].created_at.GetCurrentTime()
        return self.threads[key]

    def append(self, tenant: str, thread_id: str, run_id: str, kind: str, data: dict[str, Any], provisional: bool = False) -> pb.Event:
        """Appends one event to a thread's log."""
        thread = self.threads[(tenant, thread_id)]
        thread.last_seq += 1
        event = pb.Event(
            seq=thread.last_seq, thread_id=thread_id, run_id=run_id, attempt=1, type=kind, data_json=orjson.dumps(data),
            provisional=provisional, schema_version=1,
        )  # fmt: skip
        event.occurred_at.GetCurrentTime()
        self.events[(tenant, thread_id)].append(event)
        self.wake()
        return event

    def wake(self) -> None:
        """Wakes all who wait for the log to grow or for a run to change."""
        self.grown.set()
        self.grown = asyncio.Event()

    def start(self, tenant: str, run: FakeRun, script: Script) -> None:
        """Works on a run in the background, as an owner would."""

        async def work() -> None:
            ids = (tenant, run.run.thread_id, run.run.run_id)
            said = [{"role": message.role, "text": message.text} for message in run.request.input]
            first = self.append(*ids, "run_queued", {"agent": run.run.agent, "agent_version": "1", "input": said})
            run.run.first_seq = first.seq
            run.run.status = pb.RUN_STATUS_RUNNING
            self.append(*ids, "run_started", {})
            async for kind, data, provisional in script(run):
                event = self.append(*ids, kind, data, provisional)
                if kind in TERMINAL:
                    run.run.status, run.run.terminal_seq = TERMINAL[kind], event.seq
                    run.run.output_text = data.get("output_text", "")
                    run.run.ended_at.GetCurrentTime()
                    self.wake()
                await asyncio.sleep(0)

        task = asyncio.create_task(work())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)


class FakeOrchestrator(FakeControl, FakeThreadChanges, rpc.AgentServiceServicer):
    """One replica. `cut_after` breaks each stream after that many events, as a replica that dies would."""

    def __init__(self, log: FakeLog, *, cut_after: int = 0) -> None:
        self.log = log
        self.cut_after = cut_after
        self.open_streams = 0

    def _saw(self, method: str) -> Principal:
        context = call_context.current()
        assert context is not None
        self.log.seen.append((method, context))
        return principal()

    async def CreateThread(self, request, context):
        """As the real one."""
        who = self._saw("CreateThread")
        thread = self.log.make_thread(who.tenant, request.thread_id or f"thread_{uuid.uuid4().hex}", request.metadata)
        if request.HasField("ttl"):
            thread.expires_at.FromNanoseconds(thread.created_at.ToNanoseconds() + request.ttl.ToNanoseconds())
        return pb.CreateThreadResponse(thread=thread)

    async def GetThread(self, request, context):
        """As the real one."""
        self._saw("GetThread")
        return pb.GetThreadResponse(thread=self.log.thread(request.thread_id))

    async def ListThreads(self, request, context):
        """As the real one; a page token is the number of entries to leave out."""
        who = self._saw("ListThreads")
        mine = [thread for (tenant, _), thread in self.log.threads.items() if tenant == who.tenant]
        some, token = _page(list(reversed(mine)), request)
        return pb.ListThreadsResponse(threads=some, next_page_token=token)

    async def CreateRun(self, request, context):
        """As the real one."""
        who = self._saw("CreateRun")
        if request.agent and request.agent not in SCRIPTS:
            raise NotFound("no such agent", reason="AGENT_NOT_FOUND")
        if request.on_busy == pb.ON_BUSY_STEER and (head := self.log.at_work(request.thread_id)):
            return pb.CreateRunResponse(run=head, steer_number=self.log.desk.number(head.run_id))
        key = (who.tenant, request.idempotency_key)
        if request.idempotency_key and key in self.log.by_key:
            earlier = self.log.by_key[key]
            if earlier.input != request.input:
                raise Conflict("the key was used with another body")
            return pb.CreateRunResponse(run=self.log.run(earlier.run_id).run, created=False)
        thread = self.log.make_thread(who.tenant, request.thread_id or f"thread_{uuid.uuid4().hex}")
        run = pb.Run(
            run_id=request.run_id or f"run_{uuid.uuid4().hex}", thread_id=thread.thread_id, agent=request.agent or "assistant",
            agent_version="1", status=pb.RUN_STATUS_QUEUED, attempt=1, first_seq=thread.last_seq + 1,
        )  # fmt: skip
        run.created_at.GetCurrentTime()
        kept = pb.CreateRunRequest()
        kept.CopyFrom(request)
        kept.run_id = run.run_id
        fake = FakeRun(kept, run)
        self.log.runs[(who.tenant, run.run_id)] = fake
        if request.idempotency_key:
            self.log.by_key[key] = kept
        if (who.tenant, run.run_id) in self.log.tombstones:
            fake.cancelled.set()
        self.log.start(who.tenant, fake, SCRIPTS[run.agent])
        return pb.CreateRunResponse(run=run, created=True)

    async def GetRun(self, request, context):
        """As the real one."""
        self._saw("GetRun")
        return pb.GetRunResponse(run=self.log.run(request.run_id).run)

    async def ListRuns(self, request, context):
        """As the real one; a page token is the number of entries to leave out."""
        who = self._saw("ListRuns")
        if request.thread_id:
            self.log.thread(request.thread_id)
        mine = [r.run for (tenant, _), r in self.log.runs.items() if tenant == who.tenant]
        some, token = _page([r for r in reversed(mine) if request.thread_id in ("", r.thread_id)], request)
        return pb.ListRunsResponse(runs=some, next_page_token=token)

    async def WaitRun(self, request, context):
        """As the real one."""
        self._saw("WaitRun")
        run = self.log.run(request.run_id).run
        end = time.monotonic() + (context.time_remaining() or 0) - 0.05
        while run.status not in TERMINAL.values() and time.monotonic() < end:
            try:
                async with asyncio.timeout(0.05):
                    await self.log.grown.wait()
            except TimeoutError:
                continue
        return pb.WaitRunResponse(run=run)

    async def CancelRun(self, request, context):
        """As the real one."""
        who = self._saw("CancelRun")
        found = self.log.runs.get((who.tenant, request.run_id))
        if found is None:
            self.log.tombstones.add((who.tenant, request.run_id))
            return pb.CancelRunResponse()
        found.run.cancel_requested = True
        found.cancelled.set()
        return pb.CancelRunResponse(run=found.run)

    async def StreamEvents(self, request, context):
        """As the real one."""
        who = self._saw("StreamEvents")
        self.open_streams += 1
        try:
            async for response in self._stream(who.tenant, request):
                yield response
        finally:
            self.open_streams -= 1

    async def _stream(self, tenant: str, request: pb.StreamEventsRequest) -> AsyncGenerator[pb.StreamEventsResponse, None]:
        thread_id = request.thread_id or self.log.run(request.run_id).run.thread_id
        self.log.thread(thread_id)
        events = self.log.events[(tenant, thread_id)]
        sent, position = 0, request.after_seq
        while True:
            grown = self.log.grown
            while position < len(events):
                event = events[position]
                position += 1
                if request.run_id not in ("", event.run_id) or (request.types and event.type not in request.types):
                    continue
                yield pb.StreamEventsResponse(batch=pb.EventBatch(events=[event]))
                sent += 1
                if request.run_id and event.type in TERMINAL:
                    return
                if self.cut_after and sent >= self.cut_after:
                    raise Overloaded("this replica is going away", reason="DRAINING")
            if request.replay_only:
                return
            try:
                # Not wait_for: before Python 3.12 it can swallow a cancellation that comes together with the result.
                async with asyncio.timeout(1.0):
                    await grown.wait()
            except TimeoutError:
                yield pb.StreamEventsResponse(heartbeat=pb.Heartbeat(last_seq=len(events)))

    async def ListAgents(self, request, context):
        """As the real one."""
        self._saw("ListAgents")
        agents = [pb.Agent(name=name, version="1", description=script.__doc__ or "") for name, script in SCRIPTS.items()]
        some, token = _page(agents, request)
        return pb.ListAgentsResponse(agents=some, next_page_token=token)

    async def GetAgent(self, request, context):
        """As the real one."""
        self._saw("GetAgent")
        if request.name not in SCRIPTS:
            raise NotFound("no such agent", reason="AGENT_NOT_FOUND")
        return pb.GetAgentResponse(agent=pb.Agent(name=request.name, version="1"))


@dataclass
class Gateway:
    """A gateway that serves on loopback, and what stands behind it."""

    url: str
    key: str
    accounts: Accounts
    log: FakeLog
    replicas: list[FakeOrchestrator]
    stops: list[asyncio.Event]
    settings: Settings

    def headers(self, **more: str) -> dict[str, str]:
        """Headers of a caller with every scope; underscores in names become dashes."""
        return {"authorization": f"Bearer {self.key}", **{name.replace("_", "-"): value for name, value in more.items()}}

    async def issue(self, tenant: str = "acme", *, user: str = "ana", tier: str = "enterprise", scopes: tuple[str, ...] = ("*",)) -> str:
        """A new API key."""
        return (await self.accounts.create_key(tenant=tenant, user=user, tier=tier, scopes=scopes)).secret

    def calls(self, method: str) -> list[call_context.CallContext]:
        """Contexts of the calls of one method that the orchestrator saw."""
        return [context for name, context in self.log.seen if name == method]


@asynccontextmanager
async def gateway(
    identities: testing.Identities,
    state_url: str,
    *,
    replicas: int = 1,
    cut_after: int = 0,
    config_dir: Path | None = None,
    **settings: Any,
) -> AsyncIterator[Gateway]:
    """A gateway over fakes, each a real gRPC server on a port of its own."""
    log = FakeLog()
    orchestrators = [FakeOrchestrator(log, cut_after=cut_after) for _ in range(replicas)]
    stops: list[asyncio.Event] = []
    async with AsyncExitStack() as stack:
        addresses = []
        for orchestrator in orchestrators:
            adders = [
                partial(add, orchestrator)
                for add in (
                    rpc.add_ThreadServiceServicer_to_server, rpc.add_RunServiceServicer_to_server, rpc.add_AgentServiceServicer_to_server,
                )
            ]  # fmt: skip
            adders += [
                partial(approvals_pb2_grpc.add_ApprovalServiceServicer_to_server, FakeApprovals(log.desk)),
                *record_adders(log.desk, log.records),
            ]
            address, stop = await _serve(stack, "orchestrator", adders, identities)
            addresses.append(address)
            stops.append(stop)
        models, _ = await _serve(stack, "llm_gateway", budget_adders(log.records), identities)
        memory, _ = await _serve(stack, "memory", fake_stores.memory_adders(), identities)
        executor, _ = await _serve(stack, "tool_executor", fake_stores.tool_adders(), identities)
        address_file = identities.folder / f"addresses-{next(_numbers)}.json"
        behind = {"orchestrator": addresses, "llm_gateway": [models], "memory": [memory], "tool_executor": [executor]}
        address_file.write_bytes(orjson.dumps(behind))
        made = Settings(
            env="test", http_port=testing.free_port(), metrics_port=0, state_url=state_url, address_file=address_file,
            **{"drain_grace_s": 3, **settings}, **({"config_dir": config_dir} if config_dir else {}), **identities.settings("gateway"),
        )  # fmt: skip
        stops.append(await stack.enter_async_context(testing.running(made, build)))
        state = connect(state_url)
        stack.push_async_callback(state.aclose)
        accounts = Accounts(state)
        served = Gateway(f"http://127.0.0.1:{made.http_port}", "", accounts, log, orchestrators, stops, made)
        served.key = await served.issue()
        stack.callback(lambda: [run.cancelled.set() for run in log.runs.values()])
        yield served


async def frames_of(response: Any, until: Callable[[list], bool] | None = None) -> list[tuple[int, str, dict[str, Any]]]:
    """Server-sent events of an aiohttp response as (id, event, data), to its end or until enough came."""
    found: list[tuple[int, str, dict[str, Any]]] = []
    rest = b""
    async for chunk in response.content.iter_any():
        rest += chunk
        while b"\n\n" in rest:
            block, rest = rest.split(b"\n\n", 1)
            fields = dict(line.split(": ", 1) for line in block.decode().split("\n") if not line.startswith(":"))
            if "data" in fields:
                found.append((int(fields.get("id", 0)), fields["event"], orjson.loads(fields["data"])))
                if until is not None and until(found):
                    return found
    return found


async def _serve(stack: AsyncExitStack, name: str, adders: list, identities: testing.Identities) -> tuple[str, asyncio.Event]:
    port = testing.free_port()

    def build(_: Any) -> Service:
        return Service(name, adders, verifier=identities.verifier)

    stop = await stack.enter_async_context(testing.running(ServiceSettings(grpc_port=port, drain_grace_s=0.2), build))
    return f"127.0.0.1:{port}", stop


_numbers = itertools.count()
