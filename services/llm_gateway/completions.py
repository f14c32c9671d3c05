"""Model calls as use cases. Every surface calls these, and all of them pass through the one attempt loop."""

import random
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any, TypeVar

from services.common.identity import Principal
from services.common.rpc import context as call_context
from services.llm_gateway import streams
from services.llm_gateway.attempts import Course, Policy
from services.llm_gateway.bounds import search_units
from services.llm_gateway.canonical_key import affinity_of
from services.llm_gateway.charges import Charge, Payer, usage_of
from services.llm_gateway.chat import Answer, ChatCall, malformed, text_of
from services.llm_gateway.estimates import Estimates, measure
from services.llm_gateway.failures import UpstreamFault
from services.llm_gateway.hedging import Hedge
from services.llm_gateway.money import Usage, priced
from services.llm_gateway.ports import Attempt, Gate, Load, Purse, Ranking, Upstream, Vectors
from services.llm_gateway.registry import Deployment, Group, Mode, Registry
from services.llm_gateway.results import Completed, EmbedCall, Embedded, Notice, Ranked, RerankCall, StreamEvent
from services.llm_gateway.telemetry import LATEST, CallRecord, Conventions
from services.llm_gateway.terms import Terms
from services.llm_gateway.work import Work

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

            async def attempt(deployment: Deployment, number: int) -> tuple[Answer, Usage]:
                charge, made = await work.begin(deployment, number)
                try:
                    answer = await self.upstreams[deployment.adapter].complete(made)
                except UpstreamFault as fault:
                    work.failed(charge, deployment, fault)
                    raise
                except BaseException as error:
                    work.abandoned(charge, deployment, error)
                    raise
                usage = usage_of(deployment, answer.usage, charge.extras, batch=call.terms.discounted)
                if usage is None and charge.extras is not None:
                    usage = charge.upper_bound
                elif usage is None:
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

            given = call.body["input"]
            # A list of numbers is one input in tokens.
            count = 1 if isinstance(given, str) or (given and isinstance(given[0], int)) else len(given)

            async def ask(upstream: Upstream, made: Attempt) -> Vectors:
                vectors = await upstream.embed(made)
                if len(vectors.vectors) != count:
                    raise malformed("there are not as many embeddings as inputs")
                return vectors

            opened = await work.opened(work.single(ask, tokens))
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

            work.payer.units = search_units(call.body["documents"])
            opened = await work.opened(work.single(ask, tokens, lambda ranking: ranking.search_units))
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
    ) -> Work:
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


def _defaulted(group: Group) -> Notice:
    message = f"No model was named; {group.name} answers."
    return Notice("model_defaulted", message, fallback=group.name, attributes=(("to_model", group.name),))
