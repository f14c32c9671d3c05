"""One batch while this process holds it: from the claim to its end, or until somebody else takes it over."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import orjson
import structlog
from opentelemetry.metrics import get_meter

from services.common.errors import BulkheadError, NotFound, Overloaded
from services.common.tasks import end
from services.llm_gateway.batches.files import Files, derived_name
from services.llm_gateway.batches.journal import Entry, Results
from services.llm_gateway.batches.ports import Answered, BatchRecords, Claim, Journal, LeaseLost, Lines, Standing, Workspace
from services.llm_gateway.batches.provider_execution import ProviderExecution
from services.llm_gateway.batches.records import (
    CANCELLED,
    CANCELLING,
    COMPLETED,
    EXPIRED,
    FAILED,
    FINALIZING,
    IN_PROGRESS,
    OUTPUT,
    FileRecord,
    Progress,
)
from services.llm_gateway.batches.requests import Scan, problem
from services.llm_gateway.batches.results import answered_line, expired_line, repeats, waits
from services.llm_gateway.batches.threads import DiskThreads

_PIECE_LINES = 500
log = structlog.get_logger("bulkhead.batches")
_lines = get_meter("bulkhead.llm").create_counter(
    "bulkhead_batch_lines_total", description="Lines of batches that got a result, by outcome."
)


@dataclass(frozen=True, slots=True)
class ExecutionRules:
    """Times in seconds. `concurrency` bounds the lines of one batch that are in flight; a line that something outside fails is asked
    `repeats` times more, one that must wait is asked again until the batch expires.
    """

    lease_s: float = 3.0
    heartbeat_s: float = 1.0
    concurrency: int = 8
    repeats: int = 2
    wait_first_s: float = 0.5
    wait_most_s: float = 30.0
    again_s: float = 5.0


@dataclass(frozen=True, slots=True)
class ExecutionParts:
    """What every execution of this process shares. `provider` is None where no provider executes batches."""

    records: BatchRecords
    files: Files
    workspace: Callable[[str, str], Workspace]
    lines: Lines
    threads: DiskThreads
    provider: ProviderExecution | None = None
    rules: ExecutionRules = field(default_factory=ExecutionRules)

    async def clear(self, tenant: str, batch_id: str) -> None:
        """Removes what is left of a batch that has ended or was erased; after a crash on the way it is done again."""
        await self.threads.run(self.workspace(tenant, batch_id).remove)
        await self.files.leave(tenant, batch_id)
        await self.records.forget_due(tenant, batch_id)


class Execution:
    """Executes what is missing of a claimed batch, and ends it once."""

    def __init__(self, claim: Claim, parts: ExecutionParts, chance: random.Random) -> None:
        self.claim = claim
        self.record = claim.record
        self._parts = parts
        self._rules = parts.rules
        self._chance = chance
        self.threads = parts.threads
        self.workspace = parts.workspace(self.record.tenant, self.record.id)
        self.scan = Scan()
        self.results = Results(0)
        self.journal: Journal | None = None
        # Lines that a provider says it has answered and failed, while their results are not here.
        self.remote = (0, 0)
        # cancelled or expired: no further line is begun, and the batch ends.
        self.ending = CANCELLED if self.record.status == CANCELLING else ""
        self.erased = self.record.erased
        # This process goes: no further line is begun, and another holder goes on.
        self.leaving = False
        self._changed = asyncio.Event()
        self._local: asyncio.Task | None = None
        self._cleared = False
        now = time.monotonic()
        self._lease_until = now + self._rules.lease_s
        self.expires_at = now + (self.record.expires_ms - claim.now_ms) / 1000

    async def run(self) -> None:
        """Works until the batch has ended, the lease is lost, or `leave` was called."""
        work, beat = asyncio.create_task(self._execute(), name="batch"), asyncio.create_task(self._heartbeat(), name="batch-lease")
        after_s = 0.0
        try:
            await asyncio.wait({work, beat}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await end((work, beat))
            error = None if work.cancelled() else work.exception()
            if isinstance(error, LeaseLost):
                log.warning("batch_lease_lost", batch=self.record.id, epoch=self.claim.epoch)
            elif error is not None:
                after_s = self._rules.again_s
                log.error("batch_interrupted", batch=self.record.id, again_in_s=after_s, exc_info=error)
            if not self._cleared:
                await self._release(after_s)

    def leave(self) -> None:
        """Begins no further line; lines in flight are finished, then the lease is given back."""
        self.leaving = True
        self._tell()

    async def renew(self, enter: str = "", **fields: Any) -> Standing:
        """Writes what is known of the batch. Raises LeaseLost."""
        asked_at = time.monotonic()
        standing = await self._parts.records.renew(self.claim, self._rules.lease_s, self._progress(), enter=enter, **fields)
        self._lease_until = asked_at + self._rules.lease_s
        if standing.cancelling and self.ending != CANCELLED:
            self._end(CANCELLED)
        if standing.erased and not self.erased:
            self.erased = True
            if self._local is not None:
                self._local.cancel()
        return standing

    async def pause(self, seconds: float) -> None:
        """Waits, but no longer than until something about the batch changes."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()

    async def keep(self, number: int, failed: bool, usage: Any, result: bytes) -> None:
        """Keeps the result of a line. Raises LeaseLost: what comes after the lease is another holder's to find out."""
        assert self.journal is not None
        if time.monotonic() >= self._lease_until:
            raise LeaseLost
        await self.journal.append(Entry(number, failed, usage, result))
        _lines.add(1, {"outcome": "failed" if failed else "completed"})

    def read_line(self, number: int) -> dict[str, Any]:
        """The request of a line, with custom_id and body. Blocks."""
        return orjson.loads(self.workspace.line(self.scan.offsets[number], self.scan.lengths[number]))

    @property
    def stopped(self) -> bool:
        """Whether no further line is to be begun."""
        return self.leaving or bool(self.ending)

    def _progress(self) -> Progress:
        completed, failed = max(self.results.completed, self.remote[0]), max(self.results.failed, self.remote[1])
        return Progress(len(self.scan), completed, failed, self.results.usage)

    def _end(self, status: str) -> None:
        self.ending = status
        self._tell()

    def _tell(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _heartbeat(self) -> None:
        """Ends when the lease is lost."""
        pause_s = self._rules.heartbeat_s
        while True:
            now = time.monotonic()
            if not self.ending and now >= self.expires_at:
                self._end(EXPIRED)
            await asyncio.sleep(min(pause_s, max(0.01, self.expires_at - now)) if not self.ending else pause_s)
            try:
                await self.renew()
                pause_s = self._rules.heartbeat_s
            except LeaseLost:
                log.warning("batch_lease_lost", batch=self.record.id, epoch=self.claim.epoch)
                return
            except Overloaded:
                if time.monotonic() >= self._lease_until:
                    log.warning("batch_lease_lost", batch=self.record.id, epoch=self.claim.epoch, reason="store away")
                    return
                pause_s = self._rules.heartbeat_s / 4

    async def _execute(self) -> None:
        record = self.record
        try:
            await self._parts.files.keep(record.tenant, record.spec.input_file_id, record.id)
            await self.threads.run(self.workspace.begin, record.spec.input_file_id)
            self.scan = await self.threads.run(self.workspace.scan, record.spec.endpoint)
        except NotFound:
            self.scan = Scan(problems=[problem("input_file_missing", "the input file was deleted", None, "input_file_id")])
        if self.scan.problems:
            errors, self.scan = self.scan.problems, Scan()
            await self._finish(FAILED, {}, errors)
            return
        self.results = await self.threads.run(self.workspace.results, len(self.scan))
        await self.renew(IN_PROGRESS, model=self.scan.model)
        self.journal = await self.threads.run(self.workspace.journal, self.claim.epoch, self.results)
        try:
            if self._parts.provider is not None and not await self._parts.provider.run(self):
                return
            self._local = asyncio.create_task(self._execute_lines(), name="batch-lines")
            if self.erased:
                self._local.cancel()
            try:
                await asyncio.wait({self._local})
            finally:
                await end((self._local,))
            if not self._local.cancelled():
                self._local.result()
        finally:
            await self.journal.close()
        if self.leaving and not self.ending:
            return
        await self.renew(FINALIZING)
        await self._assemble()

    async def _execute_lines(self) -> None:
        missing = self.results.missing()

        async def worker() -> None:
            for number in missing:
                if self.stopped:
                    return
                await self._execute_line(number)

        workers = [asyncio.create_task(worker()) for _ in range(min(self._rules.concurrency, len(self.scan)))]
        try:
            done, _ = await asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            await end(workers)
        for task in done:
            task.result()

    async def _execute_line(self, number: int) -> None:
        line = await self.threads.run(self.read_line, number)
        spec, waited, failures = self.record.spec, 0, 0
        while True:
            answered: Answered = await self._parts.lines.call(
                spec.endpoint, line["body"], spec.principal, key_checked=spec.key_checked
            )  # fmt: skip
            error = answered.error
            if repeats(error) and failures < self._rules.repeats:
                failures += 1
            elif not waits(error):
                break
            waited += 1
            await self._pause_after(error, waited)
            if self.stopped:
                return
        await self.keep(number, answered.status >= 400, answered.usage, answered_line(line["custom_id"], answered))

    async def _pause_after(self, error: BulkheadError | None, waited: int) -> None:
        wait_s = min(self._rules.wait_most_s, self._rules.wait_first_s * 2 ** min(waited - 1, 10)) * self._chance.uniform(0.5, 1.0)
        if error is not None and error.retry_after_s:
            wait_s = max(wait_s, min(error.retry_after_s, 10 * self._rules.wait_most_s))
        await self.pause(wait_s)

    async def _assemble(self) -> None:
        """Writes the result files, and ends the batch."""
        left = len(self.scan) - self.results.completed - self.results.failed
        status = COMPLETED if not left else self.ending or COMPLETED
        assert not left or self.ending
        progress, expired = self._progress(), left if status == EXPIRED else 0
        files: dict[str, FileRecord] = {}
        if not self.erased:
            if progress.completed:
                files["output"] = await self._written("output", self._pieces(wants_failed=False, expired=False))
            if progress.failed + expired:
                files["error"] = await self._written("error", self._pieces(wants_failed=True, expired=bool(expired)))
        progress = Progress(progress.total, progress.completed, progress.failed + expired, progress.usage)
        await self._finish(status, files, progress=progress)

    async def _written(self, name: str, pieces: AsyncIterator[bytes]) -> FileRecord:
        # The name belongs to this epoch: a holder that has lost the lease writes over nobody's file.
        record = self.record
        file_id = derived_name("file-", record.tenant, record.id, str(self.claim.epoch), name)
        return await self._parts.files.write_result(
            record.spec.principal, file_id, f"{record.id}_{name}.jsonl", OUTPUT, pieces, record.spec.output_kept_s
        )

    async def _pieces(self, *, wants_failed: bool, expired: bool) -> AsyncIterator[bytes]:
        merged = self.workspace.merged(self.scan, self.results, wants_failed)
        try:
            while piece := await self.threads.run(self._piece, merged, expired):
                yield b"".join(piece)
        finally:
            merged.close()

    def _piece(self, merged: Iterator[tuple[int, bytes | None]], expired: bool) -> list[bytes]:
        found: list[bytes] = []
        # A piece that is empty would look like the end, so it goes on until there is a line, or none is left.
        while not found and (taken := list(islice(merged, _PIECE_LINES))):
            for number, result in taken:
                if result is not None:
                    found.append(result + b"\n")
                elif expired:
                    found.append(expired_line(self.read_line(number)["custom_id"]) + b"\n")
        return found

    async def _finish(
        self, status: str, files: dict[str, FileRecord], errors: list[dict[str, Any]] | None = None, progress: Progress | None = None
    ) -> None:
        record, parts = self.record, self._parts
        try:
            final = await parts.records.finish(self.claim, status, progress or self._progress(), files, errors or ())
        except LeaseLost:
            for file in files.values():
                await parts.files.discard(file)
            raise
        for file in files.values():
            await (parts.files.discard(file) if final == "erased" else parts.files.kept(file))
        log.info(
            "batch_ended", batch=record.id, tenant=record.tenant, status=final, total=len(self.scan), completed=self.results.completed,
            cost_microusd=self.results.usage.cost_microusd,
        )  # fmt: skip
        await parts.clear(record.tenant, record.id)
        self._cleared = True

    async def _release(self, after_s: float) -> None:
        try:
            await self._parts.records.release(self.claim, after_s)
        except Overloaded as error:
            # The lease runs out by itself.
            log.warning("batch_not_released", batch=self.record.id, reason=error.reason)
