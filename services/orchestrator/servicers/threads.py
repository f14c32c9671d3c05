"""ThreadService."""

from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb
from bulkhead.orchestrator.v1 import orchestrator_pb2_grpc as rpc
from google.protobuf.duration_pb2 import Duration

from services.common.errors import InvalidInput, NotFound
from services.common.idempotency import check_key
from services.common.identity import Principal
from services.common.rpc.context import principal
from services.orchestrator.accepting import Accepting, checked_id
from services.orchestrator.records import ThreadRecord
from services.orchestrator.run_request import checked_labels
from services.orchestrator.run_store import RunStore
from services.orchestrator.servicer import input_message, page, page_token, run_message
from services.orchestrator.servicers.approvals import approval_message
from services.orchestrator.snapshots import Snapshot, Snapshots
from services.orchestrator.threads.checkpoints import Asked
from services.orchestrator.threads.forking import ForkRequest
from services.orchestrator.threads.threads import Threads

READ, WRITE, READ_RUNS = "threads:read", "threads:write", "runs:read"
LEAST_TTL_S, MOST_TTL_S = 1, 3_650 * 86_400


def thread_message(record: ThreadRecord) -> pb.Thread:
    """A thread as it travels."""
    message = pb.Thread(
        thread_id=record.thread_id, last_seq=record.last_seq, metadata=record.metadata, parent_thread_id=record.parent,
        forked_at_seq=record.forked_at, oldest_seq=record.oldest_seq,
    )  # fmt: skip
    message.created_at.FromMilliseconds(record.created_ms)
    if record.expires_ms:
        message.expires_at.FromMilliseconds(record.expires_ms)
    return message


def snapshot_message(found: Snapshot) -> pb.ThreadSnapshot:
    """A snapshot as it travels."""
    return pb.ThreadSnapshot(
        thread=thread_message(found.thread), resume_after_seq=found.resume_after_seq,
        runs=[
            pb.SnapshotRun(run=run_message(record, labels=False), input=[input_message(said) for said in record.spec.input])
            for record in found.runs
        ],
        approvals=[approval_message(seen) for seen in found.approvals],
        runs_page_token=page_token(found.older_than) if found.older_than else "",
    )  # fmt: skip


def _asked(checkpoint: pb.Checkpoint) -> Asked:
    return Asked(checkpoint.seq, checkpoint.run_id, checkpoint.step, checkpoint.beginning)


def _ttl_ms(given: bool, ttl: Duration) -> int:
    if not given:
        return 0
    if not LEAST_TTL_S <= ttl.seconds <= MOST_TTL_S:
        raise InvalidInput.field("ttl", f"must be from {LEAST_TTL_S} to {MOST_TTL_S:,} seconds")
    return ttl.ToMilliseconds()


class ThreadServicer(rpc.ThreadServiceServicer):
    """Scopes threads:read and threads:write; a fork that goes on with a run needs runs:write as well, a snapshot runs:read; one
    thread is shown for either of threads:read and runs:read."""

    def __init__(self, accepting: Accepting, store: RunStore, threads: Threads, snapshots: Snapshots) -> None:
        self._accepting, self._store, self._threads, self._snapshots = accepting, store, threads, snapshots

    async def CreateThread(self, request, context):
        """Makes a thread, or answers the one that is there."""
        caller = principal()
        caller.require(WRITE)
        ttl_ms = _ttl_ms(request.HasField("ttl"), request.ttl) or self._threads.ttl_ms(caller.tier)
        thread = await self._accepting.open_thread(caller, request.thread_id, dict(request.metadata))
        if ttl_ms and not thread.expires_ms:
            await self._threads.live(caller, thread, ttl_ms)
            thread = await self._thread(caller, thread.thread_id)
        return pb.CreateThreadResponse(thread=thread_message(thread))

    async def _thread(self, caller: Principal, thread_id: str) -> ThreadRecord:
        thread = await self._store.thread(caller.tenant, caller.user, thread_id)
        if thread is None:
            raise NotFound("there is no such thread", reason="THREAD_NOT_FOUND")
        return thread

    async def GetThread(self, request, context):
        """One thread. Whoever may read its runs reads its log, which begins with a look at the thread."""
        caller = principal()
        if caller.missing([READ_RUNS]):
            caller.require(READ)
        return pb.GetThreadResponse(thread=thread_message(await self._thread(caller, checked_id("thread_id", request.thread_id))))

    async def GetThreadSnapshot(self, request, context):
        """A thread without its log."""
        caller = principal()
        caller.require(READ_RUNS)
        found = await self._snapshots.of(caller, checked_id("thread_id", request.thread_id))
        return pb.GetThreadSnapshotResponse(snapshot=snapshot_message(found))

    async def ListThreads(self, request, context):
        """Threads of the caller, newest first."""
        caller = principal()
        caller.require(READ)
        size, before = page(request.page_size, request.page_token)
        members = await self._store.list_members("threads", caller.tenant, caller.user, before, size + 1)
        threads = await self._store.threads(caller.tenant, caller.user, [member for member, _ in members[:size]])
        token = page_token(members[size - 1][1]) if len(members) > size else ""
        return pb.ListThreadsResponse(threads=[thread_message(t) for t in threads], next_page_token=token)

    async def ForkThread(self, request, context):
        """Makes a thread out of the beginning of another one."""
        caller = principal()
        caller.require(WRITE, *(["runs:write"] if request.continue_run else []))
        thread, run = await self._threads.forking.fork(
            caller,
            ForkRequest(
                checked_id("thread_id", request.thread_id), _asked(request.at),
                checked_id("new_thread_id", request.new_thread_id) if request.new_thread_id else "", check_key(request.idempotency_key),
                checked_labels(dict(request.metadata)), _ttl_ms(request.HasField("ttl"), request.ttl) or self._threads.ttl_ms(caller.tier),
                request.continue_run,
            ),
        )  # fmt: skip
        return pb.ForkThreadResponse(thread=thread_message(thread), run=run_message(run) if run is not None else None)

    async def RollbackThread(self, request, context):
        """Takes what came after a checkpoint out of the conversation."""
        caller = principal()
        caller.require(WRITE)
        thread_id, key = checked_id("thread_id", request.thread_id), check_key(request.idempotency_key)
        thread, seq = await self._threads.rolling_back.roll_back(caller, thread_id, _asked(request.to), key)
        return pb.RollbackThreadResponse(thread=thread_message(thread), seq=seq)

    async def DeleteThread(self, request, context):
        """Deletes a thread. Done twice it is the same, so the key needs no record."""
        caller = principal()
        caller.require(WRITE)
        check_key(request.idempotency_key)
        completed = await self._threads.deleting.delete(caller, checked_id("thread_id", request.thread_id))
        return pb.DeleteThreadResponse(completed=completed)
