"""Forgetting a subject: durable from the first answer on, driven to its end by whichever process is there, a receipt of it kept.

The order makes it complete. The user is marked first, so that no new run of theirs is accepted; then their hooks and schedules go, their
runs are cancelled, and nothing more leaves them; then the other services erase, the LLM gateway with the keys that the user calls by; then
logs, records, segments and messages to webhooks go, then the key that all of it is encrypted with; and at last the mark and the user's
name.
Every step can be done again, and by two processes at once.
"""

import asyncio
import random
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import structlog
from opentelemetry.metrics import get_meter

from services.common.envelope import Envelope
from services.common.errors import BulkheadError, IdempotencyMismatch, InvalidInput, NotFound, Overloaded
from services.common.idempotency import check_key, fingerprint
from services.common.identity import Minter, Principal
from services.common.rpc import context as call_context
from services.orchestrator.erasure_records import ORCHESTRATOR, SERVICES, ErasureRecord, ErasureRef, ErasureStore, Part, SubjectEraser
from services.orchestrator.records import RunRecord, RunRef
from services.orchestrator.repeating import safely
from services.orchestrator.schedules.records import ScheduleRecord
from services.orchestrator.segments import SegmentStore

# Whoever holds the first erases any user, whoever holds the second themselves: what cannot be taken back is no part of other rights.
ADMIN, OWN = "admin", "erasures:write"
MOST_USER = 256
MOST_AT_ONCE = 8
# A process that dies leaves its erasures to others after this; longer than a pass takes, and a second one at the same time is harmless.
AGAIN_S = 30.0
# Longer than beginning one takes.
NOTED_S = 10.0
EVERY_S = 1.0
CALL_S = 60.0
WAIT_FIRST_S = 0.2
WAIT_MOST_S = 300.0
# Runs that are on their way to their end are looked at this often at least.
RUNS_WAIT_MOST_S = 5.0
CANCELLED_AT_ONCE = 50
SESSIONS_AT_ONCE = 1_000
# A process whose file is older may make a tenant's key with the root key of before, also behind a look at all of them.
REWRAP_EVERY_S = 3600.0
KEYS_AT_HAND = "KEYS_AT_HAND"
SCHEDULES_AT_ONCE = 100
EVERY_EVENT = 1 << 62
# The store's files are written anew only when the last write of an erasure is behind it, which this allows for.
FILES_SETTLED_S = 2.0
log = structlog.get_logger("bulkhead.erasure")
_ended = get_meter("bulkhead.orchestrator").create_counter("bulkhead_erasures_done_total", description="Subjects that were erased.")
_tries = get_meter("bulkhead.orchestrator").create_counter(
    "bulkhead_erasure_tries_total", description="Tries of a service's part of an erasure, by service and outcome."
)


class Runs(Protocol):
    """As Accepting."""

    async def cancel_run(self, principal: Principal, run_id: str, reason: str) -> RunRecord | None:
        """As Accepting.cancel_run."""
        ...


class UserSchedules(Protocol):
    """As ScheduleStore."""

    async def of_user(self, tenant: str, user: str, before: int, size: int) -> list[tuple[ScheduleRecord | None, int]]:
        """As ScheduleStore.of_user."""
        ...

    async def remove(self, record: ScheduleRecord) -> None:
        """As ScheduleStore.remove."""
        ...


class UserBlobs(Protocol):
    """As BlobTending."""

    async def drop_user(self, tenant: str, user: str) -> int:
        """As BlobTending.drop_user."""
        ...


class UserHooks(Protocol):
    """As HookStore."""

    async def remove_of(self, tenant: str, user: str) -> int:
        """As HookStore.remove_of."""
        ...


def subject_digest(tenant: str, user: str) -> str:
    """What a receipt tells of the subject: SHA-256 over both, each preceded by its length."""
    return fingerprint(tenant, user)


@dataclass(slots=True)
class Erasing:
    """The use cases and the loop. `segments`, `envelope`, `blobs` and `hooks` are None where there are none."""

    store: ErasureStore
    runs: Runs
    schedules: UserSchedules
    eraser: SubjectEraser
    minter: Minter
    segments: SegmentStore | None
    envelope: Envelope | None
    every_s: float = EVERY_S
    jitter: Callable[[float, float], float] = random.uniform
    blobs: UserBlobs | None = None
    hooks: UserHooks | None = None
    _woken: asyncio.Event | None = None

    # --- what callers do ---

    async def forget(self, caller: Principal, user: str, key: str) -> ErasureRecord:
        """Makes an erasure durable, or answers the one that is under way.

        Raises PermissionDenied, InvalidInput, IdempotencyMismatch, Overloaded.
        """
        if caller.missing([ADMIN]):
            caller.require(OWN if caller.user == user else ADMIN)
        if not user or len(user) > MOST_USER:
            raise InvalidInput.field("user", f"must be 1 to {MOST_USER} characters")
        check_key(key)
        name = fingerprint("ForgetSubject", caller.tenant, caller.user, key)[:32] if key else uuid.uuid4().hex
        ref = ErasureRef(caller.tenant, f"era_{name}")
        # Should this process die behind the next step, the erasure is found all the same; and not before it is there.
        await self.store.note(ref, NOTED_S)
        digest = subject_digest(caller.tenant, user)
        verdict, standing = await self.store.begin(ref, user, digest, fingerprint("ForgetSubject", digest))
        if verdict == "mismatch":
            raise IdempotencyMismatch("the idempotency key was used before for another user")
        record = await self.store.record(ref._replace(erasure_id=standing))
        if record is None:
            raise Overloaded("the erasure ended meanwhile; ask again", reason="ERASURE_ENDED", retry_after_s=0.1)
        if not record.done:
            await self.store.note(record.ref, 0.0)
            if self._woken is not None:
                self._woken.set()
        log.info("erasure_asked_for", erasure_id=standing, verdict=verdict)
        return record

    async def get(self, caller: Principal, erasure_id: str) -> ErasureRecord:
        """A receipt. Raises NotFound, also for another user's."""
        record = await self.store.record(ErasureRef(caller.tenant, erasure_id)) if "/" not in erasure_id else None
        allowed = record is not None and (not caller.missing([ADMIN]) or record.digest == subject_digest(caller.tenant, caller.user))
        if record is None or not allowed:
            raise NotFound("there is no such erasure", reason="ERASURE_NOT_FOUND")
        return record

    # --- driving ---

    async def run(self) -> None:
        """Drives erasures until cancelled; a store that is away is tried again."""
        self._woken = asyncio.Event()
        rewrapped, rewrap_at = "", 0.0
        while True:
            with suppress(Overloaded):
                while len(refs := await self.store.due(MOST_AT_ONCE, AGAIN_S)) > 0:
                    await asyncio.gather(*(safely("erasure", self.look(ref), Overloaded, erasure_id=ref.erasure_id) for ref in refs))
                    if len(refs) < MOST_AT_ONCE:
                        break
                if self.envelope is not None:
                    now, newest = time.monotonic(), self.envelope.newest_root
                    if newest != rewrapped or now >= rewrap_at:
                        if tenants := await self.envelope.rewrap():
                            log.info("tenant_keys_rewrapped", root=newest, tenants=tenants)
                        rewrapped, rewrap_at = newest, now + REWRAP_EVERY_S
            self._woken.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(self.every_s * self.jitter(0.8, 1.2)):
                    await self._woken.wait()

    async def look(self, ref: ErasureRef) -> bool:
        """Does what can be done now; True when the erasure is done. Raises Overloaded."""
        record = await self.store.record(ref)
        if record is None:
            # Its process died, or lost the store, between noting and beginning it.
            await self.store.settle(ref)
            return False
        if not record.done and not await self._advance(record):
            return False
        # Whatever the erasure deleted stands in the store's own files until these are written anew.
        await self.store.want_files(FILES_SETTLED_S)
        await self.store.settle(ref)
        return True

    async def _advance(self, record: ErasureRecord) -> bool:
        ref, own = record.ref, record.parts[ORCHESTRATOR]
        reason = await self._quiet(record)
        if not reason:
            sessions = await self.store.threads(ref.tenant, record.user)
            done = await asyncio.gather(*(self._ask(record, service, sessions) for service in SERVICES if not record.parts[service].done))
            reason = "" if all(done) else "SERVICES_PENDING"
        if not reason:
            own = await self._delete(record)
            reason = own.reason
        own = Part(own.attempts + 1, reason, own.erased)
        await self.store.tell(ref, ORCHESTRATOR, own, done=not reason)
        _tries.add(1, {"service": ORCHESTRATOR, "outcome": "done" if not reason else "waits"})
        if reason:
            log.info("erasure_waits", erasure_id=ref.erasure_id, reason=reason, attempts=own.attempts)
            await self.store.note(ref, await self._wait_s(record, own))
            return False
        await self.store.finish(ref, record.user)
        _ended.add(1)
        log.info("subject_erased", erasure_id=ref.erasure_id)
        return True

    async def _wait_s(self, record: ErasureRecord, own: Part) -> float:
        if own.reason == KEYS_AT_HAND and self.envelope is not None:
            return await self.envelope.at_hand_s(record.ref.tenant, record.user) or 0.0
        most = RUNS_WAIT_MOST_S if own.reason == "RUNS_OPEN" else WAIT_MOST_S
        return min(WAIT_FIRST_S * 2 ** min(own.attempts, 12), most) * self.jitter(0.5, 1.0)

    async def _quiet(self, record: ErasureRecord) -> str:
        """Nothing of the subject is at work and nothing more will begin; else why not. Hooks and schedules first: they make runs."""
        tenant, user = record.ref.tenant, record.user
        if self.hooks is not None:
            await self.hooks.remove_of(tenant, user)
        while found := [schedule for schedule, _ in await self.schedules.of_user(tenant, user, 0, SCHEDULES_AT_ONCE) if schedule]:
            for schedule in found:
                await self.schedules.remove(schedule)
        still_open, busy = await self.store.unquiet(await self.store.runs(tenant, user))
        subject = Principal(tenant, user)
        for first in range(0, len(still_open), CANCELLED_AT_ONCE):
            some = still_open[first : first + CANCELLED_AT_ONCE]
            await asyncio.gather(*(self._cancel(subject, run) for run in some))
        return "RUNS_OPEN" if still_open or busy else ""

    async def _cancel(self, subject: Principal, run: RunRef) -> None:
        # One that was deleted meanwhile is no longer open.
        with suppress(NotFound):
            await self.runs.cancel_run(subject, run.run_id, "erasure")

    async def _ask(self, record: ErasureRecord, service: str, sessions: Sequence[str]) -> bool:
        """One try of another service's part."""
        part, reason, erased = record.parts[service], "", dict(record.parts[service].erased)
        # Its own authority, and none of the subject's: whoever asked need not be there any more.
        principal = Principal(record.ref.tenant, "", scopes=(ADMIN,))
        context = call_context.CallContext(principal=principal, token=self.minter.mint(principal)).with_timeout(CALL_S)
        batches = [sessions[first : first + SESSIONS_AT_ONCE] for first in range(0, len(sessions), SESSIONS_AT_ONCE)] or [()]
        try:
            with call_context.bind(context):
                for some in batches if service == "memory" else [()]:
                    _add(erased, await self.eraser.erase(service, record.user, record.ref.erasure_id, some))
        except BulkheadError as error:
            reason = error.reason
            log.warning("erasure_part_failed", erasure_id=record.ref.erasure_id, service=service, reason=reason)
        _tries.add(1, {"service": service, "outcome": reason or "done"})
        await self.store.tell(record.ref, service, Part(part.attempts + 1, reason, erased), done=not reason)
        return not reason

    async def _delete(self, record: ErasureRecord) -> Part:
        """What the orchestrator itself holds. The lists of runs and threads go last, with the mark: whoever goes on needs them."""
        tenant, user, own = record.ref.tenant, record.user, record.parts[ORCHESTRATOR]
        runs, threads = await self.store.runs(tenant, user), await self.store.threads(tenant, user)
        await self.store.delete_runs(runs)
        await self.store.delete_messages(tenant, user)
        done = await self.store.delete_threads(tenant, threads)
        if not done or len(await self.store.runs(tenant, user)) > len(runs):
            # A replica of the version before, which knows of no mark, has accepted another.
            return Part(own.attempts, "RUNS_OPEN", own.erased)
        if self.segments is not None:
            # After the log: a mover that was at it has nothing to point to its file with, and this takes the file.
            for thread in threads:
                await self.segments.drop(tenant, thread, EVERY_EVENT)
        # A second pass finds those of the first no more.
        blobs = own.erased.get("blobs", 0)
        if self.blobs is not None:
            blobs += await self.blobs.drop_user(tenant, user)
        keys, left = own.erased.get("keys", 0), None
        if self.envelope is not None:
            if own.reason != KEYS_AT_HAND:
                keys = await self.envelope.erase(tenant, user)
            # Who begins anew must not write with a key that another process has at hand still: nobody would read it.
            left = await self.envelope.at_hand_s(tenant, user)
            # Memory destroys the same key, and is asked before.
            keys = max(keys, int(left is not None))
        erased = {"runs": len(runs), "threads": len(threads), "keys": keys, **({"blobs": blobs} if blobs else {})}
        return Part(own.attempts, KEYS_AT_HAND if left else "", erased)


def _add(erased: dict[str, int], more: Mapping[str, int]) -> None:
    for kind, count in more.items():
        erased[kind] = erased.get(kind, 0) + count
