"""Forks: a thread that begins as another one was at a checkpoint. Nothing over two hash tags is atomic, so it is a job: recorded first,
gone on with by whoever finds it, and seen by nobody before it is whole."""

import hashlib
import uuid
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import orjson

from services.common.errors import BulkheadError, Conflict, Gone, IdempotencyMismatch, InvalidInput, NotFound, Overloaded
from services.common.identity import Principal
from services.orchestrator.accepting import Accepting, RunRequest
from services.orchestrator.records import RunRecord, RunRef, ThreadRecord
from services.orchestrator.run_store import RunStore
from services.orchestrator.threads.changing import AGAIN_S, NOTED_S, Changing, changing, settled
from services.orchestrator.threads.checkpoints import Asked, Position, log_of, resolve
from services.orchestrator.threads.conversation import RUNS_AT_ONCE, Conversation, encoded
from services.orchestrator.threads.deleting import Deleting, ThreadBlobs
from services.orchestrator.threads.ports import Begun, ThreadStore

# Of forks of forks: each adds one, and each may be as large as all that a run was given and said.
MOST_BASES, MOST_BASES_BYTES = 32, 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class ForkRequest:
    """What a caller asks for; empty values mean the defaults. `ttl_ms` 0: none."""

    thread_id: str
    at: Asked
    new_thread_id: str = ""
    key: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    ttl_ms: int = 0
    continue_run: bool = False

    def digest(self) -> str:
        """Of all but the key."""
        body = [self.thread_id, self.at.seq, self.at.run_id, self.at.step, self.at.beginning, self.new_thread_id, dict(self.metadata)]
        body += [self.ttl_ms, self.continue_run]
        return hashlib.sha256(orjson.dumps(body, option=orjson.OPT_SORT_KEYS)).hexdigest()


class Forking:
    """Makes forks."""

    def __init__(
        self,
        store: RunStore,
        threads: ThreadStore,
        conversation: Conversation,
        changing: Changing,
        deleting: Deleting,
        accepting: Accepting,
        blobs: ThreadBlobs | None = None,
    ) -> None:
        self._store, self._threads, self._conversation = store, threads, conversation
        self._changing, self._deleting, self._accepting, self._blobs = changing, deleting, accepting, blobs

    async def fork(self, principal: Principal, request: ForkRequest) -> tuple[ThreadRecord, RunRecord | None]:
        """Makes a fork, or answers the one that this request made before; and the run that goes on in it, where that is asked for.

        Raises InvalidInput (NOTHING_TO_CONTINUE, and as `resolve`), NotFound (also AGENT_NOT_FOUND), Gone (RESUME_GAP: the beginning of
        the thread is no longer kept), Conflict (THREAD_EXISTS, THREAD_CHANGING, RUN_IS_WORKFLOW), IdempotencyMismatch, Overloaded.
        """
        parent = RunRef(principal.tenant, request.thread_id, "-")
        ref = parent._replace(thread_id=_id_of(principal, request))
        begun = await self._again(principal, parent, ref, request) or await self._begin(principal, parent, ref, request)
        if begun.verdict == "building":
            await self.work(ref, begun.job)
        thread = await self._store.thread(principal.tenant, principal.user, ref.thread_id)
        if thread is None:
            raise NotFound("the fork was deleted", reason="THREAD_NOT_FOUND")
        return thread, await self._continue(principal, ref) if request.continue_run else None

    async def _again(self, principal: Principal, parent: RunRef, ref: RunRef, request: ForkRequest) -> Begun | None:
        """What this request made before: its parent may have gone on since, or be gone."""
        if not request.key:
            return None
        known = await self._store.thread(principal.tenant, principal.user, ref.thread_id)
        if known is None or known.parent != parent.thread_id:
            return None
        return self._checked(await self._threads.build(ref, principal.user, {}, b"", request.digest(), 0), request)

    async def _begin(self, principal: Principal, parent: RunRef, ref: RunRef, request: ForkRequest) -> Begun:
        record = await self._store.thread(principal.tenant, principal.user, parent.thread_id)
        if record is None:
            raise NotFound("there is no such thread", reason="THREAD_NOT_FOUND")
        state = await self._threads.state(parent)
        if state is None or state.doing:
            raise changing()
        at = await resolve(self._store, parent, record.last_seq, request.at)
        if at.seq:
            # The whole of what comes before is copied: where some of it is gone, now is the time to say so.
            await self._store.read(parent, 0, 1, False)
        if request.continue_run:
            carry = await self._conversation.carry(parent, at, state)
            if not carry or carry.get("asks"):
                raise InvalidInput("the checkpoint is not within a run", reason="NOTHING_TO_CONTINUE")
            self._conversation.check_agent(carry["agent"])
        not_after_ms = await self._threads.note(ref, NOTED_S)
        job = {
            "kind": "fork", "parent": parent.thread_id, "at": list(at), "ttl_ms": request.ttl_ms, "principal": principal.as_dict(),
            "as_of": not_after_ms,
        }  # fmt: skip
        begun = await self._threads.build(ref, principal.user, request.metadata, orjson.dumps(job), request.digest(), not_after_ms)
        return self._checked(begun, request)

    def _checked(self, begun: Begun, request: ForkRequest) -> Begun:
        if begun.verdict == "foreign":
            raise NotFound("there is no such thread", reason="THREAD_NOT_FOUND")
        if begun.verdict in ("taken", "gone") or (begun.verdict == "mismatch" and not request.key):
            raise Conflict("a thread of this id is, or was, there already", reason="THREAD_EXISTS")
        if begun.verdict == "mismatch":
            raise IdempotencyMismatch("the idempotency key was used before with another body")
        if begun.verdict == "late":
            raise Overloaded("forking the thread took too long", reason="FORK_TIMED_OUT", retry_after_s=1.0)
        return begun

    async def work(self, ref: RunRef, raw: bytes) -> None:
        """Makes the fork whole, from wherever it was left; one that cannot be made is deleted. Raises BulkheadError."""
        await self._threads.note(ref, AGAIN_S)
        job = orjson.loads(raw)
        principal = Principal.from_dict(job["principal"])
        parent, at = ref._replace(thread_id=job["parent"]), Position(*job["at"])
        try:
            state = await self._threads.state(parent)
            if state is None or state.doing == "gone":
                raise _parent_gone()
            taken_over = await self._threads.bases(parent)
            if not await self._copy(parent, ref, principal.user, at):
                return
            last_run = await self._copy_runs(parent, ref, principal.user, at)
            if self._blobs is not None:
                # Its events name them, and the thread that it is made of may be deleted before it.
                await self._blobs.share(ref.tenant, parent.thread_id, ref.thread_id)
            carry = await self._conversation.carry(parent, at, state)
            turns = await self._conversation.turns(parent, at)
        except (Gone, NotFound):
            await self._deleting.abandon(ref, principal)
            raise
        if turns:
            await self._changing.replace_session(ref, principal, turns, [], job.get("as_of", 0))
        data = orjson.dumps({"parent_thread_id": parent.thread_id, "forked_at_seq": at.seq})
        bases = kept_bases({seq: base for seq, base in taken_over.items() if seq < at.seq} | ({at.seq: carry} if carry else {}))
        ttl_ms = job["ttl_ms"]
        await self._threads.built(ref, principal.user, data, encoded(carry), encoded(bases), parent.thread_id, at.seq, ttl_ms, last_run, "")
        await settled(self._threads, ref, ttl_ms / 1000 if ttl_ms else None)

    async def _copy(self, parent: RunRef, ref: RunRef, user: str, at: Position) -> bool:
        """Copies the log; False where somebody else has made or deleted the fork meanwhile."""
        state = await self._threads.state(ref)
        last = state.last_seq if state is not None and state.doing == "building" else -1
        while 0 <= last < at.seq:
            async with aclosing(log_of(self._store, parent, last, at.seq)) as pages:
                events = await anext(pages, None)
            if not events:
                raise _parent_gone()
            last = await self._threads.copy(ref, user, last, events)
        return last >= 0

    async def _copy_runs(self, parent: RunRef, ref: RunRef, user: str, at: Position) -> str:
        """Copies the records of the runs that had ended; answers the newest."""
        newest, before = "", at.seq + 1
        while before > 1:
            members = await self._store.list_members("thread", parent.tenant, "", before, RUNS_AT_ONCE, parent.thread_id)
            if not members:
                break
            before = members[-1][1]
            records = await self._store.runs([parent._replace(run_id=run_id) for run_id, _ in members])
            ended = [record for record in records if 0 < record.terminal_seq <= at.seq]
            await self._threads.copy_runs(parent, ref, user, [_as_of(record, at.seq) for record in ended])
            newest = newest or (ended[0].run_id if ended else "")
        return newest

    async def _continue(self, principal: Principal, ref: RunRef) -> RunRecord:
        state = await self._threads.state(ref)
        if state is None or not state.carry:
            raise InvalidInput("the checkpoint is not within a run", reason="NOTHING_TO_CONTINUE")
        # Of the thread, so that asking again answers the same run.
        request = RunRequest(
            thread_id=ref.thread_id, agent=state.carry["agent"], input=tuple(state.carry["input"]),
            idempotency_key=f"fork/{ref.thread_id}", continues=True, **_terms(state.carry),
        )  # fmt: skip
        record, _ = await self._accepting.create_run(principal, request)
        return record


def _terms(carry: Mapping[str, Any]) -> dict[str, Any]:
    """What the run that was cut off asked beside its input."""
    terms = dict(carry.get("terms", {}))
    return {**terms, "client_tools": tuple(terms["client_tools"])} if "client_tools" in terms else terms


def _id_of(principal: Principal, request: ForkRequest) -> str:
    if request.new_thread_id:
        return request.new_thread_id
    if not request.key:
        return f"th_{uuid.uuid4().hex}"
    return "th_" + hashlib.sha256(f"ForkThread\0{principal.tenant}\0{principal.user}\0{request.key}".encode()).hexdigest()[:32]


def _as_of(record: RunRecord, seq: int) -> RunRecord:
    """A record without what was taken out of the conversation only later."""
    if record.rolled_back > seq:
        record.rolled_back = 0
    return record


def kept_bases(bases: Mapping[int, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """What is kept of what a fork and those before it began with: the newest, as far as they are no more than so many, and so large. Who
    goes back to within a run that an older fork was cut off in is given nothing of it."""
    kept: dict[str, Mapping[str, Any]] = {}
    size = 0
    for seq in sorted(bases, reverse=True)[:MOST_BASES]:
        size += len(orjson.dumps(bases[seq]))
        if kept and size > MOST_BASES_BYTES:
            break
        kept[str(seq)] = bases[seq]
    return kept


def _parent_gone() -> NotFound:
    return NotFound("the thread was deleted while it was forked", reason="THREAD_NOT_FOUND")


def permanent(error: BulkheadError) -> bool:
    """Whether going on with a fork later can only fail again."""
    return isinstance(error, (Gone, NotFound))
