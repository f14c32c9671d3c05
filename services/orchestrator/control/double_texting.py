"""Runs for threads that have one at work: what becomes of the one and of the other. The store decides it in the step that accepts."""

import asyncio

import orjson

from services.common.errors import Conflict, InvalidInput
from services.common.idempotency import IdempotencyStore, key_of
from services.common.identity import Principal
from services.orchestrator.accepting import Accepting, RunRequest, thread_busy
from services.orchestrator.control.controlling import Controlling
from services.orchestrator.records import RunRecord, RunRef
from services.orchestrator.run_store import RunStore
from services.orchestrator.turn import steering
from services.orchestrator.watching import Watching

# Each failed try means that a run of the thread began or ended in between.
TRIES = 16
# A caller who was never answered asks again before that many runs have followed in the thread.
LOOKED_BACK = 16


class DoubleTexting:
    """CreateRun with all its policies."""

    def __init__(
        self, store: RunStore, accepting: Accepting, controlling: Controlling, watching: Watching, idempotency: IdempotencyStore
    ) -> None:
        self._store, self._accepting, self._controlling, self._watching = store, accepting, controlling, watching
        self._idempotency = idempotency

    async def create_run(self, principal: Principal, request: RunRequest) -> tuple[RunRecord, bool, int]:
        """The run, whether it is new, and the number of the message that steers it (0: it was made for the request).

        Raises as Accepting.create_run, and Conflict THREAD_BUSY (reject; or steer, where runs of the thread came and went too fast).
        """
        if request.on_busy not in ("reject", "steer") or not request.thread_id or request.violations():
            return *await self._accepting.create_run(principal, request), 0
        ref = RunRef(principal.tenant, request.thread_id, "-")
        if request.on_busy == "reject":
            # Before a slot is taken: who is refused holds nothing. A run that is there already answers for its key.
            if (head := await self._store.at_work(ref, principal.user)) and not await self._made_before(principal, request):
                raise thread_busy(head)
            return *await self._accepting.create_run(principal, request), 0
        return await self._steer(principal, request, ref)

    async def _made_before(self, principal: Principal, request: RunRequest) -> bool:
        return bool(request.idempotency_key) and await self._store.made_with(principal.tenant, principal.user, request.idempotency_key)

    async def _steer(self, principal: Principal, request: RunRequest, ref: RunRef) -> tuple[RunRecord, bool, int]:
        if len(request.input) != 1:
            raise InvalidInput.field("input", "must be one user message where it steers the run at work")
        key = key_of(principal.user, request.idempotency_key)
        claim = await self._idempotency.begin(principal.tenant, "CreateRun.steer", key, request.fingerprint())
        if claim.answer is not None:
            run_id, number = orjson.loads(claim.answer)
            return await self._watching.record(ref._replace(run_id=run_id)), False, number
        try:
            for tried in range(TRIES):
                head = await self._store.at_work(ref, principal.user)
                if not tried:
                    head = await self._steered(principal, request, ref) or head
                try:
                    if not head or await self._made_before(principal, request):
                        return *await self._accepting.create_run(principal, request), 0
                    posted = await self._controlling.steer_at(ref._replace(run_id=head), request.input[0]["text"], _said_under(request))
                except Conflict as error:
                    if error.reason not in ("RUN_ENDED", "THREAD_BUSY"):
                        raise
                    continue
                await self._idempotency.finish(claim, orjson.dumps([head, posted.number]))
                return await self._watching.record(ref._replace(run_id=head)), False, posted.number
            raise thread_busy(head)
        finally:
            # Without effect on an answer that is stored; a run that was made answers for its key by itself.
            await self._idempotency.abandon(claim)

    async def _steered(self, principal: Principal, request: RunRequest, ref: RunRef) -> str:
        """The run that got this message from a process that died before it could keep its answer, '' where none did."""
        if not request.idempotency_key or await self._store.thread(ref.tenant, principal.user, ref.thread_id) is None:
            return ""
        members = await self._store.list_members("thread", ref.tenant, principal.user, 0, LOOKED_BACK, ref.thread_id)
        key = f"{steering.COMMAND}:{_said_under(request)}"
        numbers = await asyncio.gather(*(self._store.posted(ref._replace(run_id=run_id), key) for run_id, _ in members))
        return next((run_id for (run_id, _), number in zip(members, numbers, strict=True) if number), "")


def _said_under(request: RunRequest) -> str:
    """Under which key of SteerRun's the message is put; keys of the two are not the same."""
    return f"CreateRun:{request.idempotency_key}" if request.idempotency_key else ""
