"""A batch that its provider executes, at the provider's batch price: one reservation, one bill, and every step is resumable.

What the record holds of it: deployment, ticket and ask of the reservation (at first with `reserving`), then file_id (what the provider's
`stage` has answered), batch_id, and done. Whoever takes the batch over goes on behind the last step that stands there; a step that was made
and not recorded is found again.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, BinaryIO

import structlog

from services.common.errors import BulkheadError, InvalidInput, NotFound, Overloaded
from services.common.identity import Principal
from services.llm_gateway.batches.ports import Answered, BatchPurse
from services.llm_gateway.batches.provider_port import LineResult, NotYetKnown, Provider, ProviderBatch, ProviderFailed, Submission
from services.llm_gateway.batches.provider_requests import bound_of, prepared, sent_body
from services.llm_gateway.batches.records import usage_as_list
from services.llm_gateway.batches.results import answered_line
from services.llm_gateway.charges import usage_of
from services.llm_gateway.money import NOTHING, PICO_PER_NANO, Prices, Usage
from services.llm_gateway.ports import Ask, Ticket
from services.llm_gateway.registry import Deployment, Mode, Registry

if TYPE_CHECKING:
    from services.llm_gateway.batches.execution import Execution

# What a provider may execute in batches, and the kind of model that it takes.
MODES: Mapping[str, Mode] = {"/v1/chat/completions": "chat", "/v1/embeddings": "embedding"}
ENDED = frozenset({"completed", "failed", "expired", "cancelled"})
_KEPT_AT_ONCE = 256
# So long is waited for money to reach the store before the record says that it did.
_PAID_WITHIN_S = 5.0
log = structlog.get_logger("bulkhead.batches")


@dataclass(frozen=True, slots=True)
class ProviderRules:
    """Times in seconds. Polls begin after `poll_first_s` and slow down to `poll_most_s`. A batch that should have ended is waited for
    `ending_s` longer; a step that fails is tried `tries` times. `shortest_lines` is the least for which a provider is asked.
    """

    poll_first_s: float = 1.0
    poll_most_s: float = 30.0
    ending_s: float = 900.0
    tries: int = 5
    again_s: float = 1.0
    shortest_lines: int = 1
    # A reservation outlives the batch by this.
    grace_s: float = 3_600.0


@dataclass(slots=True)
class _Run:
    """One batch at a provider, on its way."""

    held: "Execution"
    deployment: Deployment
    provider: Provider
    state: dict[str, Any]
    ticket: Ticket
    usage: Usage = NOTHING
    # Lines that the provider has answered, and those that it takes money for.
    lines: int = 0
    paid: int = 0
    # Whether the last try to begin it is known to have begun nothing.
    refused: bool = False
    seen: set[int] = field(default_factory=set)

    @property
    def prices(self) -> Prices:
        return self.provider.prices(self.deployment)

    async def save(self, **more: Any) -> None:
        self.state |= more
        await self.held.renew(provider=self.state)


class ProviderExecution:
    """Hands batches to providers that offer batch prices. What comes back without an answer is left for local execution."""

    def __init__(
        self,
        registry: Callable[[], Registry],
        providers: Mapping[str, Provider],
        purse: BatchPurse,
        rules: ProviderRules = ProviderRules(),
    ) -> None:
        """`providers` by the adapters of the deployments that they are for."""
        self._registry = registry
        self._providers = providers
        self._purse = purse
        self._rules = rules

    async def run(self, held: "Execution") -> bool:
        """Returns when the provider has nothing more to say to this batch; False where it is to be left to another holder. Raises
        LeaseLost.
        """
        state = dict(held.record.provider)
        if state.get("done"):
            return True
        run = await (self._resumed(held, state) if state else self._begun(held))
        if run is None:
            return True
        found = await self._submitted(run)
        if found is None and held.leaving:
            return False
        if found is not None:
            found = await self._ended(run, found)
            if found is None:
                return False
            try:
                await self._collect(run, found)
            except ProviderFailed as error:
                if not error.missing and time.monotonic() < held.expires_at + self._rules.ending_s:
                    # The results stay at the provider; the next holder asks for them again.
                    raise Overloaded(f"the provider does not hand out its results: {error}", reason="PROVIDER_RESULTS") from error
                _warn(run, error)
                found = replace(found, completed=found.completed or run.state["lines"])
        await self._settled(run, found)
        return True

    async def _begun(self, held: "Execution") -> _Run | None:
        """Reserves for a batch that a provider may execute; None where it is to be executed here."""
        deployment = self._chosen(held)
        if (
            deployment is None
            or held.stopped
            or held.results.completed + held.results.failed
            or len(held.scan) < self._rules.shortest_lines
        ):
            return None
        provider = self._providers[deployment.adapter]
        lines, tokens, cost_nanousd = await held.threads.run(prepared, held, deployment, provider, None)
        if not lines:
            return None
        left_s = max(held.expires_at - time.monotonic(), 0.0) + self._rules.ending_s + self._rules.grace_s
        ask = Ask(
            held.record.id, 1, held.record.spec.principal, deployment.group, deployment.id, deployment.provider, "batch", tokens,
            cost_nanousd, left_s,
        )  # fmt: skip
        # Recorded before it is made: whoever finds it like this gives the reservation back, if there is one, and begins anew.
        name = f"batch.{uuid.uuid4().hex}"
        state = {"deployment": deployment.id, "group": deployment.group, "ticket": name, "ask": asdict(ask), "lines": lines}
        await held.renew(provider={**state, "reserving": True})
        try:
            ticket = await self._purse.reserve(ask, ticket_id=name)
        except BulkheadError as error:
            # The whole may be too much at once where each line is not: executed here, the budget decides line by line.
            log.info("batch_executed_locally", batch=held.record.id, reason=error.reason)
            await held.renew(provider={"done": True})
            return None
        run = _Run(held, deployment, provider, state, ticket)
        try:
            await run.save()
        except BaseException:
            self._purse.release(ticket)
            raise
        return run

    async def _resumed(self, held: "Execution", state: dict[str, Any]) -> _Run | None:
        ask = Ask(**{**state["ask"], "principal": Principal.from_dict(state["ask"]["principal"])})
        ticket = await self._purse.adopt(state["ticket"], ask)
        if state.get("reserving"):
            self._purse.release(ticket)
            await self._purse.drain(_PAID_WITHIN_S)
            return await self._begun(held)
        try:
            group, _ = self._registry().resolve(state["group"], MODES[held.record.spec.endpoint])
            deployment = next(d for d in group.deployments if d.id == state["deployment"])
            provider = self._providers[deployment.adapter]
        except (NotFound, InvalidInput, StopIteration, KeyError):
            # Nobody can ask the provider any more.
            log.error("batch_provider_gone", batch=held.record.id, deployment=state["deployment"])
            if "file_id" in state:
                self._lost(held, ticket)
            else:
                self._purse.release(ticket)
            await self._purse.drain(_PAID_WITHIN_S)
            await held.renew(provider={**state, "done": True})
            return None
        return _Run(held, deployment, provider, state, ticket)

    def _lost(self, held: "Execution", ticket: Ticket, share: float = 1.0) -> None:
        """Nobody will know what the provider has done. It is paid for at its bound, or as much of it as lines were done."""
        ask = ticket.ask
        bound = Usage(input=int(ask.tokens * share), cost_picousd=int(ask.cost_nanousd * share) * PICO_PER_NANO, estimated=True)
        self._purse.settle(ticket, bound, status="lost", latency_s=0.0, metadata={"batch": held.record.id})

    def _chosen(self, held: "Execution") -> Deployment | None:
        mode = MODES.get(held.record.spec.endpoint)
        if mode is None or not held.scan.model:
            return None
        try:
            group, _ = self._registry().resolve(held.scan.model, mode)
        except BulkheadError:
            return None
        endpoint = held.record.spec.endpoint
        fitting = [
            d
            for d in group.deployments
            if (provider := self._providers.get(d.adapter)) is not None
            and provider.serves(d, endpoint)
            and (d.prices.batch_input or d.prices.batch_output)
        ]
        return min(fitting, key=lambda d: d.order, default=None)

    async def _submitted(self, run: _Run) -> ProviderBatch | None:
        """The batch at the provider; None where there is none and none came to be, or where it is to be left to another holder."""
        state, held = run.state, run.held
        if "batch_id" in state:
            return ProviderBatch(state["batch_id"], "unknown")
        submission = Submission(held.record.id, held.record.spec.endpoint, state["lines"], lambda: _content(run))
        failures, pause_s, gives_up_at = 0, self._rules.poll_first_s, 0.0
        reason: ProviderFailed
        while True:
            try:
                return await self._step(run, submission, begins=failures < self._rules.tries)
            except NotYetKnown as error:
                reason, ends = error, bool(held.ending)
            except ProviderFailed as error:
                _warn(run, error)
                failures += 1
                if error.permanent:
                    return None
                if failures < self._rules.tries:
                    await held.pause(self._rules.again_s * 2 ** (failures - 1))
                    continue
                if run.refused or "file_id" not in state:
                    return None
                # It may have been begun, and is looked for alone: to execute it here now could be to do and to pay all of it twice.
                reason, ends = error, True
            if held.leaving:
                return None
            if ends and gives_up_at and time.monotonic() > gives_up_at:
                log.error("batch_provider_lost", batch=held.record.id, deployment=run.deployment.id, error=str(reason)[:300])
                self._lost(held, run.ticket)
                return None
            if ends and not gives_up_at:
                gives_up_at = time.monotonic() + self._rules.ending_s
            await (asyncio.sleep(pause_s) if gives_up_at else held.pause(pause_s))
            pause_s = min(pause_s * 1.5, self._rules.poll_most_s)

    async def _step(self, run: _Run, submission: Submission, *, begins: bool) -> ProviderBatch | None:
        """Finds what was begun, and begins what was not; None where nothing is to be begun any more."""
        state, held, provider = run.state, run.held, run.provider
        staged: str | None = state.get("file_id")
        found = None if staged is None or run.refused else await provider.find(run.deployment, submission, staged)
        if found is None:
            if held.stopped or not begins:
                return None
            if staged is None:
                staged = await provider.stage(run.deployment, submission)
                # Recorded before the batch is begun: whoever comes next can look for it.
                await run.save(file_id=staged)
            run.refused = False
            try:
                found = await provider.begin(run.deployment, submission, staged)
            except ProviderFailed as error:
                run.refused = error.refused
                raise
        await run.save(batch_id=found.id)
        return found

    async def _ended(self, run: _Run, found: ProviderBatch) -> ProviderBatch | None:
        """Polls until the provider is through; None where the batch is to be left to another holder."""
        pause_s, held, asked_at, heard = self._rules.poll_first_s, run.held, 0.0, False
        while True:
            if held.leaving:
                return None
            if held.ending and not heard:
                asked_at = asked_at or time.monotonic()
                try:
                    await run.provider.cancel(run.deployment, found.id)
                    heard = True
                except ProviderFailed as error:
                    # One that has ended already refuses.
                    heard = error.permanent
                    if not heard:
                        _warn(run, error)
            try:
                found = await run.provider.get(run.deployment, found.id)
            except ProviderFailed as error:
                _warn(run, error)
                if error.missing:
                    return ProviderBatch(found.id, "failed")
            if found.status in ENDED:
                held.remote = (0, 0)
                return found
            held.remote = (found.completed, found.failed)
            if asked_at and time.monotonic() > asked_at + self._rules.ending_s:
                return replace(found, status="failed", completed=found.completed if found.counted else run.state["lines"])
            # A change of the batch wakes this up once; after that the pauses are whole.
            await (asyncio.sleep(pause_s) if asked_at else held.pause(pause_s))
            pause_s = min(pause_s * 1.5, self._rules.poll_most_s)

    async def _collect(self, run: _Run, found: ProviderBatch) -> None:
        """Keeps every answer that the provider has given."""
        gathered: list[LineResult] = []
        async for result in run.provider.results(run.deployment, run.held.record.id, found):
            if not 0 <= result.number < len(run.held.scan) or result.number in run.seen:
                continue
            run.seen.add(result.number)
            gathered.append(result)
            if len(gathered) == _KEPT_AT_ONCE:
                await self._keep(run, gathered)
                gathered = []
        await self._keep(run, gathered)

    async def _keep(self, run: _Run, results: list[LineResult]) -> None:
        held, deployment = run.held, replace(run.deployment, prices=run.prices)
        lines = await held.threads.run(lambda: [held.read_line(result.number) for result in results])
        writes = []
        for result, line in zip(results, lines, strict=True):
            usage = NOTHING
            if result.billed:
                # A provider that counts nothing bills all the same.
                usage = usage_of(deployment, result.usage) or bound_of(run.prices, sent_body(held, run.deployment, line["body"]))
                run.usage, run.paid = run.usage + usage, run.paid + 1
            if not result.status:
                continue
            run.lines += 1
            told = answered_line(line["custom_id"], Answered(result.status, result.body, result.request_id))
            writes.append(held.keep(result.number, result.status >= 400, usage, told))
        await asyncio.gather(*writes)

    async def _settled(self, run: _Run, found: ProviderBatch | None) -> None:
        """Pays, once: a ticket that was settled by an earlier holder stays as it is."""
        record = run.held.record
        if found is not None and found.completed and not run.seen:
            # It has done lines, will bill them, and hands nothing out.
            log.error("batch_provider_lost", batch=record.id, deployment=run.deployment.id, lines=found.completed)
            self._lost(run.held, run.ticket, min(found.completed / run.state["lines"], 1.0))
        elif run.lines or run.paid:
            latency_s = max(time.time() - record.created_ms / 1000, 0.0)
            metadata = {"lines": run.lines, "batch": record.id}
            self._purse.settle(run.ticket, run.usage, status="ok", latency_s=latency_s, metadata=metadata)
        else:
            self._purse.release(run.ticket)
        log.info(
            "batch_provider_ended", batch=record.id, deployment=run.deployment.id, answered=run.lines,
            status=found.status if found else "never begun", usage=usage_as_list(run.usage),
        )  # fmt: skip
        # A process that ends behind the record's word leaves nobody who would pay.
        await self._purse.drain(_PAID_WITHIN_S)
        await run.save(done=True)
        for leftover in run.provider.leftovers(run.state["file_id"], found) if "file_id" in run.state else ():
            try:
                await run.provider.delete(run.deployment, leftover)
            except ProviderFailed as error:
                log.info("batch_provider_left", batch=record.id, leftover=leftover, error=str(error)[:300])


def _warn(run: _Run, error: ProviderFailed) -> None:
    log.warning("batch_provider_failed", batch=run.held.record.id, deployment=run.deployment.id, error=str(error)[:300])


@asynccontextmanager
async def _content(run: _Run) -> AsyncIterator[BinaryIO]:
    """The file of all lines, made anew."""
    with run.held.workspace.scratch("provider.jsonl") as file:
        await run.held.threads.run(prepared, run.held, run.deployment, run.provider, file)
        file.seek(0)
        yield file
