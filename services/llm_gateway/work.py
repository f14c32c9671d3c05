"""One logical call on its way: what it holds, what it costs, what is recorded of it."""

import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from services.common.errors import BulkheadError, DeadlineExceeded
from services.llm_gateway import charges
from services.llm_gateway.attempts import Course, Opened
from services.llm_gateway.bounds import assumed_output, output_bound, usage_wanted
from services.llm_gateway.capabilities import Fit, Needs, Verdict, fit_of, needs_of
from services.llm_gateway.charges import Charge, Payer, usage_of
from services.llm_gateway.estimates import Measure
from services.llm_gateway.extras import described, extras_of
from services.llm_gateway.failures import Failure, FailureClass, UpstreamFault
from services.llm_gateway.money import MOST_COUNTED, Usage, priced
from services.llm_gateway.ports import Attempt, Upstream
from services.llm_gateway.recovery import Stitch
from services.llm_gateway.registry import Deployment, Group
from services.llm_gateway.results import Notice, Outcome, Timing
from services.llm_gateway.telemetry import CallRecord

if TYPE_CHECKING:
    from services.llm_gateway.completions import Completions

# A request of so much text may have enough messages to take milliseconds where a thread costs a tenth of one.
LARGE_BYTES = 128 * 1024
T = TypeVar("T")


class Work:
    """One logical call on its way: its course, who pays, and what is recorded of it."""

    def __init__(
        self,
        owner: "Completions",
        group: Group,
        body: Mapping[str, Any],
        measured: Measure,
        run_id: str,
        payer: Payer,
        record: CallRecord,
        course: Course,
        notices: list[Notice],
    ) -> None:
        self._owner = owner
        self.group = group
        self.body = body
        self._measured = measured
        self._run_id = run_id
        self.payer = payer
        self.record = record
        self.course = course
        self.notices = notices
        self.drop_params = False
        self._needs: Needs | None = None
        self._fits: dict[str, Fit] = {}
        self._told: Set[tuple[str, str]] = frozenset()

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Ends the record with the error of a call that fails."""
        try:
            yield
        except BaseException as error:
            self.record.timing = self.timing
            self.record.failed(error)
            raise
        finally:
            # The course knows this work and this work the course; a call that has ended must not wait for the collector.
            self.course.unfit = None

    def _fit(self, deployment: Deployment) -> Fit:
        fit = self._fits.get(deployment.id)
        if fit is None:
            if self._needs is None:
                self._needs = needs_of(self.body)
            fit = self._fits[deployment.id] = fit_of(deployment, self._needs, self.body, drop_params=self.drop_params)
        return fit

    def unfit(self, deployment: Deployment) -> Failure | None:
        """Why the deployment cannot take the request as it stands or adapted, None where it can."""
        fit = self._fit(deployment)
        if fit.verdict is not Verdict.UNFIT:
            return None
        if fit.reasons == ("context_window",):
            return Failure(FailureClass.CONTEXT_WINDOW, "the prompt is longer than the model's context")
        return Failure(FailureClass.UNFIT, f"the model {deployment.group} cannot do what the request asks: {', '.join(fit.reasons)}")

    async def begin(self, deployment: Deployment, number: int, stitch: Stitch | None = None) -> tuple[Charge, Attempt]:
        """Takes place and money for an attempt, and answers what the upstream is given. With `stitch` the answer goes on from what of it
        was delivered.
        """
        self.record.attempts = number
        wanted = self.body
        if self._fits:
            fit = self._fit(deployment)
            if fit.verdict is Verdict.ADAPTED:
                wanted = fit.body
                self._tell_once(
                    "request_adapted", deployment, f"The request was adapted to what {deployment.group} can take", ", ".join(fit.reasons)
                )
        if stitch is not None:
            wanted = stitch.continuing(wanted)
        sent = (
            {**deployment.defaults, **wanted, "model": deployment.model} if deployment.defaults else {**wanted, "model": deployment.model}
        )
        output, extras = 0, None
        if self.payer.operation == "chat":
            output = output_bound(sent)
            if output == 0:
                field, output = assumed_output(deployment)
                sent[field] = output
                output *= max(_choices(sent), 1)
            if deployment.stream_usage and sent.get("stream"):
                sent["stream_options"] = usage_wanted(sent.get("stream_options"))
            elif deployment.stream_usage is False:
                # Most surfaces ask for it themselves: their callers cannot, and nobody would miss it.
                sent.pop("stream_options", None)
            extras = extras_of(deployment, sent, self._measured)
            if extras is not None and extras.tools is not None:
                sent["tools"] = extras.tools
        # Read before anything is waited for: attempts at two deployments may begin side by side.
        self.payer.input_tokens = self._owner.estimates.input_bound(deployment.id, self._measured)
        asked_at = time.monotonic()
        charge = await charges.begin(
            self._owner.gate,
            self._owner.purse,
            self.payer,
            deployment,
            number,
            output,
            self.course.deadline,
            fallback=self.course.fallbacks > 0,
            repeated_tokens=0 if stitch is None else len(stitch.delivered_text.encode()),
            extras=extras,
        )
        if extras is not None and extras.missing:
            self._tell_once("price_unknown", deployment, f"Not all that {deployment.group} bills has a price", described(extras.missing))
        try:
            limits = self.course.limits(deployment, asked_at)
        except DeadlineExceeded as error:
            self.abandoned(charge, deployment, error)
            raise
        charge.attempt = made = Attempt(
            deployment,
            sent,
            limits,
            number,
            self.record.parent,
            self._run_id,
            continues=stitch is not None,
            large=self._measured.text_bytes > LARGE_BYTES,
        )
        return charge, made

    def _tell_once(self, code: str, deployment: Deployment, message: str, details: str) -> None:
        """Once for each target, however often it is asked."""
        if (deployment.group, details) in self._told:
            return
        self._told = {*self._told, (deployment.group, details)}
        name = "adapted" if code == "request_adapted" else "missing"
        self.notices.append(Notice(code, f"{message}: {details}.", attributes=(("model", deployment.group), (name, details))))

    def single(
        self,
        ask: Callable[[Upstream, Attempt], Awaitable[T]],
        tokens_of: Callable[[T], int | None],
        units_of: Callable[[T], int] | None = None,
    ) -> Callable[[Deployment, int], Coroutine[Any, Any, T]]:
        """An attempt whose answer costs input tokens only, and the price of a request for each of its units."""

        async def attempt(deployment: Deployment, number: int) -> T:
            charge, made = await self.begin(deployment, number)
            try:
                result = await ask(self._owner.upstreams[deployment.adapter], made)
            except UpstreamFault as fault:
                self.failed(charge, deployment, fault)
                raise
            except BaseException as error:
                self.abandoned(charge, deployment, error)
                raise
            tokens, units = tokens_of(result), 0 if units_of is None else units_of(result)
            tokens = None if tokens is not None and tokens > MOST_COUNTED else tokens
            units = 0 if units > MOST_COUNTED else units
            bound = charge.input_tokens if tokens is None else tokens
            # Where units are what is paid for, tokens that nobody told are no estimate of the price.
            guessed = tokens is None and not (units and not deployment.prices.input)
            usage = priced(deployment.prices, bound, 0, estimated=guessed, batch=self.payer.terms.discounted)
            if units > 1:
                usage = replace(usage, cost_picousd=usage.cost_picousd + (units - 1) * deployment.prices.per_request)
            self.served(charge, deployment, usage)
            return result

        return attempt

    async def opened(self, attempt: Callable[[Deployment, int], Coroutine[Any, Any, T]]) -> Opened[T]:
        """Walks the course to its success; what happens on the way is added to the notices."""
        while True:
            step = await self.course.step(attempt)
            if isinstance(step, Opened):
                return step
            self.notices.append(step)

    def untold(self) -> list[Notice]:
        """The notices that a stream has not told yet."""
        if not self.notices:
            return self.notices
        found, self.notices = self.notices, []
        return found

    def served(self, charge: Charge, deployment: Deployment, usage: Usage) -> None:
        """The attempt gave the answer."""
        first_s = charge.served(usage)
        # What tools and files made of the prompt says nothing about the next one.
        if not usage.estimated and usage.input and charge.extras is None:
            self._owner.estimates.learn(deployment.id, self._measured, usage.input)
        if self._owner.hedge is not None:
            self._owner.hedge.observe(deployment.id, first_s, usage.cost_nanousd)
        self.record.attempted(deployment)

    def failed(self, charge: Charge, deployment: Deployment, fault: UpstreamFault, usage: Usage | None = None) -> None:
        """The attempt failed. `usage` is what it will be billed as far as we know; what the provider says of it itself wins."""
        charge.failed(fault.failure, usage_of(deployment, fault.usage, charge.extras, batch=self.payer.terms.discounted) or usage)
        self.record.attempted(deployment, fault.failure.failure_class.value)
        self.record.spent(deployment, self.payer.spent)

    def abandoned(
        self, charge: Charge, deployment: Deployment, error: BaseException | None, usage: Usage | None = None, status: str = "cancelled"
    ) -> None:
        """Nobody waits for the attempt any more, or it was refused before it was made."""
        refused = isinstance(error, BulkheadError) and usage is None
        if refused or not charge.sent:
            charge.refused()
            self.record.attempted(deployment, "refused" if refused else status)
            return
        charge.abandoned(usage, status)
        self.record.attempted(deployment, status)
        self.record.spent(deployment, self.payer.spent)

    @property
    def timing(self) -> Timing:
        """Where the time of all attempts went."""
        return Timing(self.payer.queue_s, self.payer.reserve_s, self.payer.upstream_s, self.course.waited_s)

    def outcome(
        self, deployment: Deployment, finish_reason: str, response_id: str, provider_model: str, headers: Mapping[str, str] | None = None
    ) -> Outcome:
        """How the answer came about; ends the record."""
        self.record.timing = self.timing
        self.record.succeeded(deployment, self.payer.spent, finish_reason, response_id, provider_model)
        return self.so_far(deployment, self.timing, finish_reason, response_id, provider_model, headers)

    def so_far(
        self,
        deployment: Deployment,
        timing: Timing,
        finish_reason: str = "",
        response_id: str = "",
        provider_model: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> Outcome:
        """How the answer comes about, as it stands."""
        course, payer = self.course, self.payer
        return Outcome(
            deployment,
            payer.spent,
            finish_reason,
            response_id,
            provider_model or deployment.model,
            course.attempts,
            course.retries,
            course.fallbacks,
            timing=timing,
            limits=payer.limits,
            upstream_headers=headers or {},
        )


def _choices(body: Mapping[str, Any]) -> int:
    number = body.get("n")
    return number if type(number) is int else 1
