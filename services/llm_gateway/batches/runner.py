"""Finds batches that nobody holds, and executes them; removes files whose time has come.

runner = BatchRunner(records, files, parts, random.Random())
await runner.start()
await runner.drain()      # claims nothing more, finishes the lines in flight, and gives the leases back
await runner.stop()
"""

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass

import structlog
from opentelemetry.metrics import get_meter

from services.common.errors import Overloaded
from services.common.tasks import end
from services.llm_gateway.batches.execution import Execution, ExecutionParts
from services.llm_gateway.batches.ports import Claim

LOOKED_AT = 100
log = structlog.get_logger("bulkhead.batches")
_meter = get_meter("bulkhead.llm")
_claims = _meter.create_counter("bulkhead_batch_claims_total", description="Batches that this process has taken, anew or from another.")
_running = _meter.create_up_down_counter("bulkhead_batches_running", description="Batches that this process holds.")


@dataclass(frozen=True, slots=True)
class RunnerRules:
    """Times in seconds. `at_once` bounds the batches that this process holds."""

    look_every_s: float = 0.5
    sweep_every_s: float = 60.0
    at_once: int = 16


class BatchRunner:
    """Any number of replicas may run one: the lease lets one of them have a batch."""

    def __init__(self, parts: ExecutionParts, chance: random.Random, rules: RunnerRules = RunnerRules()) -> None:
        self._parts = parts
        self._chance = chance
        self._rules = rules
        self._held: dict[str, tuple[Execution, asyncio.Task]] = {}
        self._task: asyncio.Task | None = None
        self._sweep_at = 0.0

    async def start(self) -> None:
        """Begins to look for batches."""
        self._task = asyncio.create_task(self._look(), name="batches")

    async def drain(self) -> None:
        """Claims nothing more and hands over what it holds, when the lines in flight are done."""
        await self._end_looking()
        for execution, _ in list(self._held.values()):
            execution.leave()
        if self._held:
            await asyncio.wait([task for _, task in self._held.values()])

    async def stop(self) -> None:
        """Ends at once; leases are given back, lines in flight are asked again by the next holder."""
        await self._end_looking()
        tasks = [task for _, task in self._held.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=5.0)

    async def _end_looking(self) -> None:
        task, self._task = self._task, None
        await end((task,))

    async def _look(self) -> None:
        away = False
        while True:
            try:
                await self._claim()
                if time.monotonic() >= self._sweep_at:
                    await self._parts.files.sweep()
                    self._sweep_at = time.monotonic() + self._rules.sweep_every_s * self._chance.uniform(0.8, 1.2)
                away = False
            except Overloaded as error:
                if not away:
                    log.warning("batches_interrupted", reason=error.reason)
                away = True
            except Exception as error:
                # A defect must not end the search for batches for as long as the process lives.
                log.error("batches_failed", exc_info=error)
            await asyncio.sleep(self._rules.look_every_s * self._chance.uniform(0.5, 1.0))

    async def _claim(self) -> None:
        if len(self._held) >= self._rules.at_once:
            return
        due = [entry for entry in await self._parts.records.due(LOOKED_AT) if entry[1] not in self._held]
        held = Counter(execution.record.tenant for execution, _ in self._held.values())
        while due and len(self._held) < self._rules.at_once:
            # Tenants take turns: one with many batches holds up no other.
            tenant, batch_id = min(due, key=lambda entry: held[entry[0]])
            due.remove((tenant, batch_id))
            found = await self._parts.records.claim(tenant, batch_id, self._parts.rules.lease_s)
            if isinstance(found, Claim):
                held[tenant] += 1
                self._begin(found)
            elif found:
                # It has ended or was erased, and its holder did not live to clean up.
                await self._parts.clear(tenant, batch_id)

    def _begin(self, claim: Claim) -> None:
        execution = Execution(claim, self._parts, self._chance)
        task = asyncio.create_task(execution.run(), name=f"batch-{claim.record.id}")
        self._held[claim.record.id] = (execution, task)
        _claims.add(1)
        _running.add(1)
        log.info("batch_claimed", batch=claim.record.id, tenant=claim.record.tenant, epoch=claim.epoch)
        task.add_done_callback(lambda _: self._ended(claim.record.id))

    def _ended(self, batch_id: str) -> None:
        del self._held[batch_id]
        _running.add(-1)
