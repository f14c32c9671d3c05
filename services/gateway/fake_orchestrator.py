"""A replica of the fake orchestrator: what it answers about threads, runs, events and agents."""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator
from functools import partial

from bulkhead.orchestrator.v1 import approvals_pb2_grpc
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb
from bulkhead.orchestrator.v1 import orchestrator_pb2_grpc as rpc

from services.common.errors import Conflict, NotFound, Overloaded
from services.common.identity import Principal
from services.common.rpc import context as call_context
from services.common.rpc.context import principal
from services.gateway import fake_clients
from services.gateway.fake_admin import FakeThreadChanges, record_adders
from services.gateway.fake_control import FakeApprovals, FakeControl, page
from services.gateway.fake_log import TERMINAL, FakeLog
from services.gateway.fake_scripts import SCRIPTS, FakeRun


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
        who = self._saw("GetThread")
        if who.missing(["runs:read"]):
            who.require("threads:read")
        return pb.GetThreadResponse(thread=self.log.thread(request.thread_id))

    async def GetThreadSnapshot(self, request, context):
        """As the real one, of a thread of which all is kept."""
        self._saw("GetThreadSnapshot")
        thread = self.log.thread(request.thread_id)
        return pb.GetThreadSnapshotResponse(snapshot=pb.ThreadSnapshot(thread=thread, resume_after_seq=thread.last_seq))

    async def ListThreads(self, request, context):
        """As the real one; a page token is the number of entries to leave out."""
        who = self._saw("ListThreads")
        mine = [thread for (tenant, _), thread in self.log.threads.items() if tenant == who.tenant]
        some, token = page(list(reversed(mine)), request)
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
        fake_clients.check_results(request, self.log.last_of(who.tenant, request.thread_id))
        thread = self.log.make_thread(who.tenant, request.thread_id or f"thread_{uuid.uuid4().hex}")
        run = pb.Run(
            run_id=request.run_id or f"run_{uuid.uuid4().hex}", thread_id=thread.thread_id, agent=request.agent or "assistant",
            agent_version="1", status=pb.RUN_STATUS_QUEUED, attempt=1, first_seq=thread.last_seq + 1,
            metadata=request.metadata,
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
        mine = [r for r in mine if request.thread_id in ("", r.thread_id) and request.agent in ("", r.agent)]
        some, token = page([r for r in reversed(mine) if not request.statuses or r.status in request.statuses], request)
        answer = pb.ListRunsResponse(runs=some, next_page_token=token)
        for run in answer.runs:
            run.ClearField("metadata")
        return answer

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
        some, token = page(agents, request)
        return pb.ListAgentsResponse(agents=some, next_page_token=token)

    async def GetAgent(self, request, context):
        """As the real one."""
        self._saw("GetAgent")
        if request.name not in SCRIPTS:
            raise NotFound("no such agent", reason="AGENT_NOT_FOUND")
        return pb.GetAgentResponse(agent=pb.Agent(name=request.name, version="1"))


def orchestrator_adders(replica: FakeOrchestrator) -> list:
    """Add functions of all services of a replica."""
    own = (rpc.add_ThreadServiceServicer_to_server, rpc.add_RunServiceServicer_to_server, rpc.add_AgentServiceServicer_to_server)
    return [
        *(partial(add, replica) for add in own),
        partial(approvals_pb2_grpc.add_ApprovalServiceServicer_to_server, FakeApprovals(replica.log.desk)),
        *record_adders(replica.log.desk, replica.log.records),
    ]
