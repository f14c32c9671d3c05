"""Model calls as use cases. Every surface calls these, and all of them pass through the one attempt loop."""

import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from services.common.errors import BulkheadError
from services.common.identity import Principal
from services.common.rpc import context as call_context
from services.llm_gateway import charges, streams
from services.llm_gateway.attempts import Course, Opened, Policy
from services.llm_gateway.bounds import assumed_output, output_bound
from services.llm_gateway.canonical_key import affinity_of
from services.llm_gateway.capabilities import Fit, Needs, Verdict, fit_of, needs_of
from services.llm_gateway.charges import Charge, Payer, usage_of
from services.llm_gateway.chat import Answer, ChatCall, malformed, text_of
from services.llm_gateway.estimates import Estimates, Measure, measure
from services.llm_gateway.failures import Failure, FailureClass, UpstreamFault
from services.llm_gateway.hedging import Hedge
from services.llm_gateway.money import Usage, priced
from services.llm_gateway.ports import Attempt, Gate, Limits, Load, Purse, Ranking, Upstream, Vectors
from services.llm_gateway.recovery import Stitch
from services.llm_gateway.registry import Deployment, Group, Mode, Registry
from services.llm_gateway.results import Completed, EmbedCall, Embedded, Notice, Outcome, Ranked, RerankCall, StreamEvent, Timing
from services.llm_gateway.telemetry import LATEST, CallRecord, Conventions
from services.llm_gateway.terms import Terms

NOBODY = Principal(tenant="default", user="")
T = TypeVar("T")


class Completions:
    """Completes, embeds and ranks over the registry that `registry` answers at the time of the call."""

    def __init__(
        self,
        registry: Callable[[], Registry],
        upstreams: Mapping[str, Upstream],
        policy: Policy,
        chance: random.Random,
        gate: Gate,
        purse: Purse,
        *,
        deny_unpriced: bool = False,
        hedge: Hedge | None = None,
        conventions: Conventions = LATEST,
    ) -> None:
        self._registry = registry
        self.upstreams = upstreams
        self._policy = policy
        self._chance = chance
        self.gate = gate
        self.purse = purse
        self._deny_unpriced = deny_unpriced
        self.hedge = hedge
        self.estimates = Estimates()
        self._conventions = conventions

    @property
    def registry(self) -> Registry:
        """The registry as it is now."""
        return self._registry()

    async def complete(self, call: ChatCall) -> Completed:
        """One whole completion. Raises domain errors."""
        work = self.work("chat", "chat", call.model, call.body, call.run_id, call.terms, size=call.size, thread_id=call.thread_id)
        with work.recorded():

            async def attempt(deployment: Deployment, limits: Limits, number: int) -> tuple[Answer, Usage]:
                charge, body, _ = await work.begin(deployment, limits, number)
                try:
                    answer = await self.upstreams[deployment.adapter].complete(work.attempt(deployment, body, limits, number))
                except UpstreamFault as fault:
                    work.failed(charge, deployment, fault)
                    raise
                except BaseException as error:
                    work.abandoned(charge, deployment, error)
                    raise
                usage = usage_of(deployment, answer.usage, batch=call.terms.discounted)
                if usage is None:
                    usage = priced(deployment.prices, charge.input_tokens, _output_of(answer, charge), estimated=True)
                work.served(charge, deployment, usage)
                return answer, usage

            opened = await work.opened(attempt)
            answer, _ = opened.result
            if work.record.captures:
                work.record.answered(*_content(answer), _finish_reason(answer))
            outcome = work.outcome(
                opened.deployment, _finish_reason(answer), text_of(answer.data.get("id")), text_of(answer.data.get("model")), answer.headers
            )
            return Completed(answer, outcome, work.notices)

    def stream(self, call: ChatCall) -> AsyncGenerator[StreamEvent, None]:
        """One streamed completion: notices, lists of chunks, and one Finished at the end of a whole answer.

        Nothing but notices is yielded before the first token. A stream that breaks later is opened again and joined to
        what was delivered, or ends with UpstreamFailed: never as a success. Close the iterator to end the upstream.
        """
        return streams.stream(self, call)

    async def embed(self, call: EmbedCall) -> Embedded:
        """Embeds `body["input"]`, a text or a list of texts. Raises domain errors."""
        work = self.work("embeddings", "embedding", call.model, call.body, call.run_id, call.terms)
        with work.recorded():

            def tokens(vectors: Vectors) -> int | None:
                return vectors.input_tokens

            opened = await work.opened(work.single(lambda upstream, made: upstream.embed(made), tokens))
            vectors = opened.result
            return Embedded(vectors, work.outcome(opened.deployment, "", "", vectors.model), work.notices)

    async def rerank(self, call: RerankCall) -> Ranked:
        """Ranks `body["documents"]` by `body["query"]`. Raises domain errors."""
        work = self.work("rerank", "rerank", call.model, call.body, call.run_id, call.terms)
        with work.recorded():

            def tokens(ranking: Ranking) -> int | None:
                return ranking.input_tokens

            count = len(call.body["documents"])

            async def ask(upstream: Upstream, made: Attempt) -> Ranking:
                ranking = await upstream.rerank(made)
                if any(not 0 <= index < count for index, _ in ranking.ranked):
                    raise malformed("a document was ranked that was not sent")
                return ranking

            opened = await work.opened(work.single(ask, tokens))
            ranking = opened.result
            return Ranked(ranking, work.outcome(opened.deployment, "", "", ranking.model), work.notices)

    def work(
        self,
        operation: str,
        mode: Mode,
        model: str,
        body: Mapping[str, Any],
        run_id: str,
        terms: Terms,
        *,
        size: int = 0,
        thread_id: str = "",
    ) -> "Work":
        """What one call is made of. Raises NotFound or InvalidInput for a model that is none."""
        registry = self._registry()
        group, defaulted = registry.resolve(model, mode)
        context = call_context.current()
        principal = NOBODY if context is None or context.principal is None else context.principal
        deadline = time.monotonic() + min(self._policy.total_s, registry.request_timeout_s or self._policy.total_s)
        if context is not None and context.deadline is not None:
            deadline = min(deadline, context.deadline)
        measured = measure(body)
        tokens = self.estimates.input_bound(group.deployments[0].id, measured)
        affinity = ""
        if operation == "chat" and len(group.deployments) > 1:
            affinity = affinity_of(ChatCall(model, body, size=size))
        load = Load(principal.tenant, principal.tier, tokens, 0, deadline, terms.low_priority, affinity)
        payer = Payer(call_context.new_request_id(), principal, operation, run_id, terms, load, tokens, self._deny_unpriced)
        record = CallRecord(operation, group, model, run_id, thread_id, self._conventions)
        record.requested(body)
        course = Course(registry, group, self._policy, self.gate, load, record, self._chance, deadline, hedge=self.hedge)
        work = Work(self, group, body, measured, run_id, payer, record, course, [_defaulted(group)] if defaulted else [])
        if operation == "chat":
            course.unfit = work.unfit
            work.drop_params = registry.drop_params
        return work


class Work:
    """One logical call on its way: its course, who pays, and what is recorded of it."""

    def __init__(
        self,
        owner: Completions,
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

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Ends the record with the error of a call that fails."""
        try:
            yield
        except BaseException as error:
            self.record.timing = self.payer.timing
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

    async def begin(
        self, deployment: Deployment, limits: Limits, number: int, stitch: Stitch | None = None
    ) -> tuple[Charge, Mapping[str, Any], int]:
        """Takes place and money for an attempt; answers the body to send and the output tokens that were reserved. With `stitch` the
        answer goes on from what of it was delivered.
        """
        self.record.attempts = number
        wanted = self.body
        if self._fits:
            fit = self._fit(deployment)
            if fit.verdict is Verdict.ADAPTED:
                wanted = fit.body
                self.notices.append(_adapted(deployment, fit))
        if stitch is not None:
            wanted = stitch.continuing(wanted)
        sent = (
            {**deployment.defaults, **wanted, "model": deployment.model} if deployment.defaults else {**wanted, "model": deployment.model}
        )
        output = 0
        if self.payer.operation == "chat":
            output = output_bound(sent)
            if output == 0:
                field, output = assumed_output(deployment)
                sent[field] = output
                output *= max(_choices(sent), 1)
        # Read before anything is waited for: attempts at two deployments may begin side by side.
        self.payer.input_tokens = self._owner.estimates.input_bound(deployment.id, self._measured)
        charge = await charges.begin(
            self._owner.gate,
            self._owner.purse,
            self.payer,
            deployment,
            number,
            output,
            limits.ends_at,
            fallback=self.course.fallbacks > 0,
            repeated_tokens=0 if stitch is None else len(stitch.delivered_text.encode()),
        )
        return charge, sent, output

    def attempt(self, deployment: Deployment, body: Mapping[str, Any], limits: Limits, number: int, *, continues: bool = False) -> Attempt:
        """What an upstream is given."""
        return Attempt(deployment, body, limits, number, self.record.parent, self._run_id, continues=continues)

    def single(
        self, ask: Callable[[Upstream, Attempt], Awaitable[T]], tokens_of: Callable[[T], int | None]
    ) -> Callable[[Deployment, Limits, int], Coroutine[Any, Any, T]]:
        """An attempt whose answer costs input tokens only."""

        async def attempt(deployment: Deployment, limits: Limits, number: int) -> T:
            charge, body, _ = await self.begin(deployment, limits, number)
            try:
                result = await ask(self._owner.upstreams[deployment.adapter], self.attempt(deployment, body, limits, number))
            except UpstreamFault as fault:
                self.failed(charge, deployment, fault)
                raise
            except BaseException as error:
                self.abandoned(charge, deployment, error)
                raise
            tokens = tokens_of(result)
            bound = self.payer.input_tokens if tokens is None else tokens
            usage = priced(deployment.prices, bound, 0, estimated=tokens is None, batch=self.payer.terms.discounted)
            self.served(charge, deployment, usage)
            return result

        return attempt

    async def opened(self, attempt: Callable[[Deployment, Limits, int], Coroutine[Any, Any, T]]) -> Opened[T]:
        """Walks the course to its success; what happens on the way is added to the notices."""
        while True:
            step = await self.course.step(attempt)
            if isinstance(step, Opened):
                return step
            self.notices.append(step)

    def served(self, charge: Charge, deployment: Deployment, usage: Usage) -> None:
        """The attempt gave the answer."""
        first_s = charge.served(usage)
        if not usage.estimated and usage.input:
            self._owner.estimates.learn(deployment.id, self._measured, usage.input)
        if self._owner.hedge is not None:
            self._owner.hedge.observe(deployment.id, first_s, usage.cost_nanousd)
        self.record.attempted(deployment)

    def failed(self, charge: Charge, deployment: Deployment, fault: UpstreamFault, usage: Usage | None = None) -> None:
        """The attempt failed. `usage` is what it will be billed as far as we know; what the provider says of it itself wins."""
        charge.failed(fault.failure, usage_of(deployment, fault.usage, batch=self.payer.terms.discounted) or usage)
        self.record.attempted(deployment, fault.failure.failure_class.value)
        self.record.spent(deployment, self.payer.spent)

    def abandoned(
        self, charge: Charge, deployment: Deployment, error: BaseException | None, usage: Usage | None = None, status: str = "cancelled"
    ) -> None:
        """Nobody waits for the attempt any more, or it was refused before it was made."""
        if isinstance(error, BulkheadError) and usage is None:
            charge.refused()
            self.record.attempted(deployment, "refused")
            return
        charge.abandoned(usage, status)
        self.record.attempted(deployment, status)
        self.record.spent(deployment, self.payer.spent)

    def outcome(
        self, deployment: Deployment, finish_reason: str, response_id: str, provider_model: str, headers: Mapping[str, str] | None = None
    ) -> Outcome:
        """How the answer came about; ends the record."""
        self.record.timing = self.payer.timing
        self.record.succeeded(deployment, self.payer.spent, finish_reason, response_id, provider_model)
        return self.so_far(deployment, self.payer.timing, finish_reason, response_id, provider_model, headers)

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


def _content(answer: Answer) -> tuple[str, list[dict[str, Any]]]:
    """Text and tool calls of the first choice."""
    message = answer.data["choices"][0]["message"]
    made = [(call, call.get("function") or {}) for call in message.get("tool_calls") or ()]
    calls = [{"id": call.get("id"), "name": function.get("name"), "arguments": function.get("arguments")} for call, function in made]
    return text_of(message.get("content")), calls


def _finish_reason(answer: Answer) -> str:
    return answer.data["choices"][0]["finish_reason"]


def _output_of(answer: Answer, charge: Charge) -> int:
    # A token is at least one byte of the body, and never more were asked for than reserved. What was thought unseen is not in it.
    return charge.output_tokens if charge.deployment.reasoning else min(len(answer.raw), charge.output_tokens)


def _adapted(deployment: Deployment, fit: Fit) -> Notice:
    message = f"The request was adapted to what {deployment.group} can take: {', '.join(fit.reasons)}."
    return Notice("request_adapted", message, attributes=(("model", deployment.group), ("adapted", ", ".join(fit.reasons))))


def _defaulted(group: Group) -> Notice:
    message = f"No model was named; {group.name} answers."
    return Notice("model_defaulted", message, fallback=group.name, attributes=(("to_model", group.name),))
