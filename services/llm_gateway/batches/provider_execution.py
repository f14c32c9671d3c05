"""A batch that its provider executes, at the provider's batch price: one reservation, one bill, and every step is resumable.

What the record holds of it: deployment, ticket and ask of the reservation (at first with `reserving`), then file_id, batch_id, and done.
Whoever takes the batch over goes on behind the last step that stands there; a step that was made and not recorded is found again.
"""

import asyncio
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO

import orjson
import structlog

from services.common.errors import BulkheadError, InvalidInput, NotFound, Overloaded
from services.common.identity import Principal
from services.llm_gateway.batches.ports import Answered, BatchPurse, Provider, ProviderBatch, ProviderFailed
from services.llm_gateway.batches.records import usage_as_list
from services.llm_gateway.batches.results import answered_line, read_provider_line
from services.llm_gateway.bounds import output_bound
from services.llm_gateway.charges import usage_of
from services.llm_gateway.estimates import measure
from services.llm_gateway.money import NOTHING, Usage, priced
from services.llm_gateway.ports import Ask, Ticket
from services.llm_gateway.registry import Deployment, Mode, Registry
from services.llm_gateway.request_rules import check_request

if TYPE_CHECKING:
    from services.llm_gateway.batches.execution import Execution

# What providers execute in batches, and the kind of model that it takes.
MODES: Mapping[str, Mode] = {"/v1/chat/completions": "chat", "/v1/embeddings": "embedding"}
ENDED = frozenset({"completed", "failed", "expired", "cancelled"})
# An error of the provider that says nothing of the request: such a line is executed here.
ELSEWHERE = frozenset({401, 403, 408, 409, 429})
_KEPT_AT_ONCE = 256
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
    state: dict[str, Any]
    ticket: Ticket
    usage: Usage = NOTHING
    lines: int = 0
    seen: set[int] = field(default_factory=set)

    async def save(self, **more: Any) -> None:
        self.state |= more
        await self.held.renew(provider=self.state)


class ProviderExecution:
    """Hands batches to providers that offer batch prices. What comes back without an answer is left for local execution."""

    def __init__(
        self, registry: Callable[[], Registry], provider: Provider, purse: BatchPurse, rules: ProviderRules = ProviderRules()
    ) -> None:
        self._registry = registry
        self._provider = provider
        self._purse = purse
        self._rules = rules

    async def run(self, held: "Execution") -> None:
        """Returns when the provider has nothing more to say to this batch, or when it is to be left to another holder. Raises LeaseLost."""
        state = dict(held.record.provider)
        if state.get("done"):
            return
        run = await (self._resumed(held, state) if state else self._begun(held))
        if run is None:
            return
        found = await self._submitted(run)
        if found is None and held.leaving:
            return
        if found is not None:
            found = await self._ended(run, found)
            if found is None:
                return
            try:
                await self._collect(run, found)
            except ProviderFailed as error:
                # The results stay at the provider; the next holder asks for them again.
                raise Overloaded(f"the provider does not hand out its results: {error}", reason="PROVIDER_RESULTS") from error
        await self._settled(run, found)

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
        lines, tokens, cost_nanousd = await held.threads.run(self._prepared, held, deployment, None)
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
        run = _Run(held, deployment, state, ticket)
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
            return await self._begun(held)
        try:
            group, _ = self._registry().resolve(state["group"], MODES[held.record.spec.endpoint])
            deployment = next(d for d in group.deployments if d.id == state["deployment"])
        except (NotFound, InvalidInput, StopIteration):
            # Nobody can ask the provider any more. What it may have done is paid for at its bound.
            log.error("batch_provider_gone", batch=held.record.id, deployment=state["deployment"])
            if "file_id" in state:
                bound = Usage(input=ask.tokens, cost_picousd=ask.cost_nanousd * 1_000, estimated=True)
                self._purse.settle(ticket, bound, status="lost", latency_s=0.0, metadata={"batch": held.record.id})
            else:
                self._purse.release(ticket)
            await held.renew(provider={**state, "done": True})
            return None
        return _Run(held, deployment, state, ticket)

    def _chosen(self, held: "Execution") -> Deployment | None:
        mode = MODES.get(held.record.spec.endpoint)
        if mode is None or not held.scan.model:
            return None
        try:
            group, _ = self._registry().resolve(held.scan.model, mode)
        except BulkheadError:
            return None
        fitting = [d for d in group.deployments if d.adapter == "openai" and (d.prices.batch_input or d.prices.batch_output)]
        return min(fitting, key=lambda d: d.order, default=None)

    def _prepared(self, held: "Execution", deployment: Deployment, file: BinaryIO | None) -> tuple[int, int, int]:
        """Writes the file for the provider; answers its lines, and the most tokens and nano-USD that they can come to. Blocks."""
        count = tokens = picousd = 0
        for number in range(len(held.scan)):
            line = self._line(held, deployment, number)
            if line is None:
                continue
            if file is not None:
                file.write(line + b"\n")
            bound = _bound(deployment, orjson.loads(line)["body"])
            count, tokens, picousd = count + 1, tokens + bound.input + bound.output, picousd + bound.cost_picousd
        return count, tokens, -(-picousd // 1_000)

    def _line(self, held: "Execution", deployment: Deployment, number: int) -> bytes | None:
        """The line as the provider gets it; None where it cannot be said to it, and its own route has to answer it."""
        body, endpoint = held.read_line(number)["body"], held.record.spec.endpoint
        try:
            if endpoint == "/v1/chat/completions":
                check_request(body)
            if body.get("stream"):
                return None
            return self._provider.line(deployment, endpoint, str(number), body)
        except BulkheadError:
            return None

    async def _submitted(self, run: _Run) -> ProviderBatch | None:
        """The batch at the provider; None where there is none and none came to be."""
        state, provider = run.state, self._provider
        if "batch_id" in state:
            return ProviderBatch(state["batch_id"], "unknown", state["file_id"], "", "")
        for number in range(self._rules.tries):
            if number:
                await run.held.pause(self._rules.again_s * 2 ** (number - 1))
            try:
                if "file_id" not in state:
                    if run.held.stopped:
                        return None
                    with run.held.workspace.scratch("provider.jsonl") as content:
                        await run.held.threads.run(self._prepared, run.held, run.deployment, content)
                        content.seek(0)
                        file_id = await provider.upload(run.deployment, f"{run.held.record.id}.jsonl", content)
                    # Recorded before the batch is begun: whoever comes next can look for a batch over this file.
                    await run.save(file_id=file_id)
                found = await provider.find(run.deployment, state["file_id"])
                if found is None:
                    if run.held.stopped:
                        return None
                    found = await provider.create(run.deployment, run.held.record.spec.endpoint, state["file_id"], run.held.record.id)
                await run.save(batch_id=found.id)
                return found
            except ProviderFailed as error:
                log.warning("batch_provider_failed", batch=run.held.record.id, deployment=run.deployment.id, error=str(error)[:300])
                if error.permanent:
                    break
        return None

    async def _ended(self, run: _Run, found: ProviderBatch) -> ProviderBatch | None:
        """Polls until the provider is through; None where the batch is to be left to another holder."""
        pause_s, held, asked_at = self._rules.poll_first_s, run.held, 0.0
        while True:
            if held.leaving:
                return None
            try:
                if held.ending and not asked_at:
                    asked_at = time.monotonic()
                    await self._provider.cancel(run.deployment, found.id)
                found = await self._provider.get(run.deployment, found.id)
            except ProviderFailed as error:
                log.warning("batch_provider_failed", batch=held.record.id, deployment=run.deployment.id, error=str(error)[:300])
                if error.missing:
                    return ProviderBatch(found.id, "failed", found.input_file_id, "", "")
            if found.status in ENDED:
                held.remote = (0, 0)
                return found
            held.remote = (found.completed, found.failed)
            if asked_at and time.monotonic() > asked_at + self._rules.ending_s:
                return ProviderBatch(found.id, "failed", found.input_file_id, found.output_file_id, found.error_file_id)
            # A change of the batch wakes this up once; after that the pauses are whole.
            await (asyncio.sleep(pause_s) if asked_at else held.pause(pause_s))
            pause_s = min(pause_s * 1.5, self._rules.poll_most_s)

    async def _collect(self, run: _Run, found: ProviderBatch) -> None:
        """Keeps every answer that the provider has given."""
        for file_id in filter(None, (found.output_file_id, found.error_file_id)):
            gathered: list[bytes] = []
            async for raw in self._provider.lines(run.deployment, file_id):
                gathered.append(raw)
                if len(gathered) == _KEPT_AT_ONCE:
                    await self._keep(run, gathered)
                    gathered = []
            await self._keep(run, gathered)

    async def _keep(self, run: _Run, raws: list[bytes]) -> None:
        kept = [self._read(run, line) for line in map(read_provider_line, raws) if line is not None]
        answers = [answer for answer in kept if answer is not None]
        lines = await run.held.threads.run(lambda: [run.held.read_line(number) for number, _ in answers])
        writes = []
        for (number, answered), line in zip(answers, lines, strict=True):
            usage = answered.usage
            if answered.status < 400 and usage is NOTHING:
                # The provider counted nothing, and bills all the same.
                usage = _bound(run.deployment, line["body"])
            run.usage, run.lines = run.usage + usage, run.lines + 1
            result = answered_line(line["custom_id"], answered)
            writes.append(run.held.keep(number, answered.status >= 400, usage, result))
        await asyncio.gather(*writes)

    def _read(self, run: _Run, line: Mapping[str, Any]) -> tuple[int, Answered] | None:
        """Number and answer of a provider's result line; None for what is no answer."""
        custom_id, response = line["custom_id"], line.get("response")
        if not custom_id.isascii() or not custom_id.isdigit() or int(custom_id) >= len(run.held.scan) or int(custom_id) in run.seen:
            return None
        status = response.get("status_code") if isinstance(response, Mapping) else None
        if not isinstance(response, Mapping) or not isinstance(status, int) or line.get("error"):
            return None
        if status >= 500 or status in ELSEWHERE:
            return None
        body = response.get("body")
        number = int(custom_id)
        run.seen.add(number)
        usage = usage_of(run.deployment, _counted(body), batch=True) if status < 400 else None
        return number, Answered(status, orjson.dumps(body), str(response.get("request_id") or ""), usage or NOTHING)

    async def _settled(self, run: _Run, found: ProviderBatch | None) -> None:
        """Pays, once: a ticket that was settled by an earlier holder stays as it is."""
        record = run.held.record
        if run.lines:
            latency_s = max(time.time() - record.created_ms / 1000, 0.0)
            metadata = {"lines": run.lines, "batch": record.id}
            self._purse.settle(run.ticket, run.usage, status="ok", latency_s=latency_s, metadata=metadata)
        else:
            self._purse.release(run.ticket)
        log.info(
            "batch_provider_ended", batch=record.id, deployment=run.deployment.id, answered=run.lines,
            status=found.status if found else "never begun", usage=usage_as_list(run.usage),
        )  # fmt: skip
        await run.save(done=True)
        for file_id in (found.input_file_id, found.output_file_id, found.error_file_id) if found else (run.state.get("file_id"),):
            if file_id:
                try:
                    await self._provider.delete_file(run.deployment, file_id)
                except ProviderFailed as error:
                    log.info("batch_provider_file_left", batch=record.id, file=file_id, error=str(error)[:300])


def _bound(deployment: Deployment, body: Mapping[str, Any]) -> Usage:
    return priced(deployment.prices, measure(body).worst(), output_bound(body), estimated=True, batch=True)


def _counted(body: Any) -> Mapping[str, Any] | None:
    usage = body.get("usage") if isinstance(body, Mapping) else None
    return usage if isinstance(usage, Mapping) else None
