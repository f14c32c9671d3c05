"""Cancelling many runs at once: what fits a filter, page by page, going on where a call before it stopped."""

import asyncio
import hashlib
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

import orjson

from services.common.errors import FieldViolation, IdempotencyMismatch, InvalidInput, NotFound
from services.common.idempotency import IdempotencyStore, fingerprint, key_of, key_violations
from services.common.identity import Principal
from services.orchestrator.accepting import Accepting, checked_id
from services.orchestrator.records import RunRecord, RunRef
from services.orchestrator.run_store import RunStore

PAGE = 100
MOST_AT_ONCE = 8
# Well below the deadline of a call; a caller goes on with another one.
BUDGET_S = 5.0
OPEN = ("queued", "running", "waiting")


@dataclass(frozen=True, slots=True)
class RunFilter:
    """Which runs of the caller: those that fit all that is given. `statuses` empty: all that have not ended."""

    thread_id: str = ""
    agent: str = ""
    statuses: frozenset[str] = frozenset()
    labels: Mapping[str, str] = field(default_factory=dict)

    def encode(self) -> bytes:
        """Canonical JSON."""
        body = [self.thread_id, self.agent, sorted(self.statuses), dict(self.labels)]
        return orjson.dumps(body, option=orjson.OPT_SORT_KEYS)

    def fits(self, record: RunRecord) -> bool:
        """Whether a run is meant. One that has ended never is."""
        if record.ended or (self.statuses and record.status not in self.statuses):
            return False
        if self.agent and record.spec.agent != self.agent:
            return False
        return all(record.spec.metadata.get(name) == value for name, value in self.labels.items())


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an operation is: runs that fitted, those of them whose end was first asked for by it, the position in the list below which
    it goes on (0: at the newest)."""

    print_: str
    matched: int = 0
    asked: int = 0
    before: int = 0
    done: bool = False

    def encode(self) -> bytes:
        """JSON."""
        return orjson.dumps([self.print_, self.matched, self.asked, self.before, self.done])

    @classmethod
    def decode(cls, raw: bytes) -> "Progress":
        """The inverse of `encode`."""
        return cls(*orjson.loads(raw)[:5])


class ProgressStore(Protocol):
    """Raises Overloaded while the store is away."""

    async def progress(self, tenant: str, name: str) -> bytes | None:
        """What was kept under a name."""
        ...

    async def keep_progress(self, tenant: str, name: str, progress: bytes) -> None:
        """Keeps it for a day."""
        ...


class BulkCancel:
    """The use case."""

    def __init__(self, accepting: Accepting, runs: RunStore, store: ProgressStore, keys: IdempotencyStore) -> None:
        self._accepting, self._runs, self._store, self._keys = accepting, runs, store, keys

    async def cancel(
        self, principal: Principal, wanted: RunFilter, reason: str, key: str, most: int = 0, budget_s: float = BUDGET_S
    ) -> Progress:
        """Asks for the end of the caller's runs that fit, newest first, and answers how far the operation is that `key` names.

        A call looks at `most` runs (0: as many as it gets through in `budget_s`); where that is not all, the same call goes on, in any
        process, also after one that was lost. Runs that are accepted after the first call are not meant. Raises InvalidInput,
        NotFound (thread), IdempotencyMismatch, Conflict (the same operation is at work), Overloaded.
        """
        _check(wanted, key, most)
        print_ = fingerprint("CancelRuns", wanted.encode())
        if wanted.thread_id and await self._runs.thread(principal.tenant, principal.user, wanted.thread_id) is None:
            raise NotFound("there is no such thread", reason="THREAD_NOT_FOUND")
        name = hashlib.sha256(key_of(principal.user, key).encode()).hexdigest()
        claim = await self._keys.begin(principal.tenant, "CancelRuns", key_of(principal.user, key), print_)
        if claim.answer is not None:
            return Progress.decode(claim.answer)
        try:
            raw = await self._store.progress(principal.tenant, name)
            progress = Progress.decode(raw) if raw else Progress(print_)
            if progress.print_ != print_:
                raise IdempotencyMismatch("the idempotency key was used before with another body")
            until, left = time.monotonic() + budget_s, most or PAGE
            while not progress.done and left > 0:
                size = min(PAGE, left)
                progress = await self._page(principal, wanted, reason, progress, size)
                await self._store.keep_progress(principal.tenant, name, progress.encode())
                left = left - size if most else PAGE
                if time.monotonic() > until or not await self._keys.renew(claim):
                    break
        except BaseException:
            await self._keys.abandon(claim)
            raise
        if progress.done:
            await self._keys.finish(claim, progress.encode())
        else:
            await self._keys.abandon(claim)
        return progress

    async def _page(self, principal: Principal, wanted: RunFilter, reason: str, progress: Progress, size: int) -> Progress:
        tenant, thread_id = principal.tenant, wanted.thread_id
        kind = "thread" if thread_id else "runs"
        members = await self._runs.list_members(kind, tenant, principal.user, progress.before, size, thread_id)
        refs = [RunRef(tenant, thread_id, member) if thread_id else RunRef(tenant, *member.split("/")) for member, _ in members]
        found = [record for record in await self._runs.runs(refs) if wanted.fits(record)] if refs else []
        places = asyncio.Semaphore(MOST_AT_ONCE)

        async def end(record: RunRecord) -> None:
            # One whose thread was deleted meanwhile has ended with it.
            async with places:
                with suppress(NotFound):
                    await self._accepting.cancel_run(principal, record.run_id, reason)

        await asyncio.gather(*map(end, found))
        return Progress(
            progress.print_, progress.matched + len(found), progress.asked + sum(not record.cancel_requested for record in found),
            members[-1][1] if members else progress.before, len(members) < size,
        )  # fmt: skip


def _check(wanted: RunFilter, key: str, most: int) -> None:
    found = key_violations(key, required=True)
    if not (wanted.thread_id or wanted.agent or wanted.statuses or wanted.labels):
        found.append(FieldViolation("filter", "must name a thread, an agent, a status, a schedule or a label"))
    if not wanted.statuses <= set(OPEN):
        found.append(FieldViolation("filter.statuses", f"must be of {', '.join(OPEN)}"))
    if most < 0:
        found.append(FieldViolation("page_size", "must not be negative"))
    if found:
        raise InvalidInput("the request is not valid", violations=found)
    if wanted.thread_id:
        checked_id("filter.thread_id", wanted.thread_id)
