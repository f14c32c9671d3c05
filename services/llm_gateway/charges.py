"""What one attempt holds while it lasts, a place at the deployment and a reservation of money, and how each of them ends."""

import time
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import structlog

from services.common.errors import BudgetExceeded, InvalidInput, Overloaded, PermissionDenied, QuotaExceeded
from services.common.identity import Principal
from services.llm_gateway.extras import Extras, described
from services.llm_gateway.failures import Failure, FailureClass, UpstreamFault
from services.llm_gateway.money import MOST_COUNTED, NOTHING, PICO_PER_NANO, Prices, Usage, priced
from services.llm_gateway.ports import Ask, Attempt, Gate, LimitState, Load, Permit, Purse, Ticket
from services.llm_gateway.registry import Deployment
from services.llm_gateway.terms import Terms

NANO_PER_MICRO = 1_000
# What a budget that refuses a call would still cover, in tokens of its answer; below 0: not even the prompt.
AFFORDABLE = "affordable_output_tokens"
# A reservation outlives the deadline of its attempt by this: what has not ended by then has died with its process.
GRACE_S = 30.0
# The provider was at work when the answer was lost, so it may have been billed in full.
MAYBE_BILLED = frozenset(
    {
        FailureClass.CUT,
        FailureClass.STALLED,
        FailureClass.MALFORMED,
        FailureClass.TIMEOUT_FIRST_TOKEN,
        FailureClass.TIMEOUT_TOTAL,
    }
)
# Tells a gate that nobody was asked, so that the deployment's minute gets back what was taken for it.
_NOT_SENT = Failure(FailureClass.UNFIT)
log = structlog.get_logger("bulkhead.llm")


@dataclass(slots=True)
class Payer:
    """Who pays for a call, and within which bounds; the same for all of its attempts."""

    call_id: str
    principal: Principal
    operation: str
    run_id: str
    terms: Terms
    load: Load
    input_tokens: int
    deny_unpriced: bool
    # Most times that the price of a request is charged: providers count a long ranking as several.
    units: int = 1
    spent: Usage = NOTHING
    held_nanousd: int = 0
    # Whether a reservation has counted the call among the caller's requests.
    counted: bool = False
    queue_s: float = 0.0
    reserve_s: float = 0.0
    upstream_s: float = 0.0
    limits: tuple[LimitState, ...] = ()


class Charge:
    """The permit and the ticket of one attempt; ends exactly once, by `served`, `failed`, `abandoned` or `refused`."""

    __slots__ = (
        "_began", "_first", "_gate", "_payer", "_permit", "_purse", "_ticket", "attempt", "bound_nanousd", "extras", "input_tokens",
        "output_tokens",
    )  # fmt: skip

    def __init__(
        self,
        gate: Gate,
        purse: Purse,
        payer: Payer,
        permit: Permit,
        ticket: Ticket,
        input_tokens: int,
        output_tokens: int,
        extras: Extras | None = None,
    ) -> None:
        self._gate, self._purse, self._payer, self._permit = gate, purse, payer, permit
        self._ticket: Ticket | None = ticket
        self.input_tokens = input_tokens
        self.output_tokens = output_tokens
        self.extras = extras
        # What the upstream is given, once that is known.
        self.attempt: Attempt | None = None
        self.bound_nanousd = ticket.ask.cost_nanousd
        payer.held_nanousd += self.bound_nanousd
        self._began = time.perf_counter()
        self._first = 0.0

    @property
    def deployment(self) -> Deployment:
        """Who is asked."""
        return self._permit.deployment

    @property
    def sent(self) -> bool:
        """Whether the provider may have heard of the attempt."""
        return self.attempt is None or self.attempt.sent

    @property
    def upper_bound(self) -> Usage:
        """The most that the attempt can have cost, which is what was reserved for it, flagged as an estimate."""
        return Usage(self.input_tokens, self.output_tokens, cost_picousd=self.bound_nanousd * PICO_PER_NANO, estimated=True)

    def first_token(self) -> None:
        """The answer has begun."""
        self._first = self._first or time.perf_counter()

    @property
    def first_token_s(self) -> float:
        """Seconds to the first token, 0 before it."""
        return max(self._first - self._began, 0.0)

    def served(self, usage: Usage) -> float:
        """The attempt gave the answer. Answers the seconds to its first token, or to the whole of it."""
        now = self._end(usage, "ok")
        latency_s = (self._first or now) - self._began
        self._gate.leave(self._permit, None, latency_s=latency_s, tokens=usage.input + usage.output)
        return latency_s

    def failed(self, failure: Failure, usage: Usage | None = None) -> None:
        """The attempt failed. `usage` is what the provider has sent and will bill, None where nothing is known of it."""
        if not self.sent:
            usage = None
        elif usage is None and failure.failure_class in MAYBE_BILLED:
            usage = self.upper_bound
        self._end(usage, failure.failure_class.value)
        # An answer that was coming when its caller's time was up says nothing about the deployment.
        overtime = self._first > 0 and failure.failure_class is FailureClass.TIMEOUT_TOTAL
        self._gate.leave(self._permit, failure, cancelled=overtime)

    def abandoned(self, usage: Usage | None = None, status: str = "cancelled") -> None:
        """Nobody waits for the attempt any more; the provider may bill what it has done by now."""
        self._end(self.upper_bound if usage is None else usage, status)
        self._gate.leave(self._permit, None, cancelled=True)

    def refused(self) -> None:
        """The attempt was never made: the request could not be said to this provider, or nobody waited until it was."""
        self._end(None, "refused")
        self._gate.leave(self._permit, _NOT_SENT)

    def _end(self, usage: Usage | None, status: str) -> float:
        ticket, self._ticket = self._ticket, None
        assert ticket is not None
        self._payer.held_nanousd -= self.bound_nanousd
        now = time.perf_counter()
        elapsed = now - self._began
        self._payer.upstream_s += elapsed
        if usage is None:
            self._purse.release(ticket)
        else:
            self._payer.spent = self._payer.spent + usage if self._payer.spent is not NOTHING else usage
            self._purse.settle(ticket, usage, status=status, latency_s=elapsed)
        return now


async def begin(
    gate: Gate,
    purse: Purse,
    payer: Payer,
    deployment: Deployment,
    number: int,
    output_tokens: int,
    ends_at: float,
    *,
    fallback: bool,
    repeated_tokens: int = 0,
    extras: Extras | None = None,
) -> Charge:
    """Waits for a place at the deployment and reserves the most that the attempt can cost.

    Raises UpstreamFault where another deployment may still be asked, and else BudgetExceeded, QuotaExceeded, Overloaded, or
    InvalidInput (PRICE_UNKNOWN, MAX_COST_EXCEEDED). `ends_at` is on `time.monotonic()`. `repeated_tokens` are a beginning of the answer
    that goes out with the prompt; `extras` is what may be billed beside the text.
    """
    prices, input_tokens = deployment.prices, payer.input_tokens + repeated_tokens
    tokens = input_tokens + output_tokens
    if payer.deny_unpriced and not prices.known:
        raise UpstreamFault(Failure(FailureClass.UNFIT, "the price of the model is not known", code="PRICE_UNKNOWN"))
    if extras is None:
        cost_nanousd = prices.bound_nanousd(input_tokens, output_tokens)
    else:
        if extras.missing:
            _unpriced(deployment, extras, deny=payer.deny_unpriced)
        # Limits of tokens a minute are about what was asked; what the provider's tools read is counted when it is known.
        input_tokens, output_tokens = extras.prompt_bound(deployment, input_tokens), output_tokens + extras.output_tokens
        cost_nanousd = extras.bound_nanousd(prices, input_tokens, output_tokens)
    if payer.units > 1:
        cost_nanousd += -(-(payer.units - 1) * prices.per_request // PICO_PER_NANO)
    most = payer.terms.max_cost_microusd
    # What refuses an attempt after the first one only skips it: the failure before it stays the answer.
    again = fallback or number > 1
    if most is not None and (bound := payer.spent.cost_nanousd + payer.held_nanousd + cost_nanousd) > most * NANO_PER_MICRO:
        message = f"the call may cost up to {-(-bound // NANO_PER_MICRO)} micro-USD, more than its max_cost of {most}"
        if again:
            raise UpstreamFault(Failure(FailureClass.UNFIT, message, code="MAX_COST_EXCEEDED"))
        raise InvalidInput(message, reason="MAX_COST_EXCEEDED", metadata={"param": "max_cost_microusd"})
    try:
        permit = await gate.enter(deployment, payer.load)
    except Overloaded as error:
        if again:
            raise UpstreamFault(Failure(FailureClass.SATURATED, error.message, retry_after_s=error.retry_after_s)) from error
        raise
    payer.queue_s += permit.queued_s
    began = time.perf_counter()
    requests = 0 if payer.counted else 1
    payer.counted = True
    try:
        ticket = await purse.reserve(
            Ask(
                payer.call_id,
                number,
                payer.principal,
                deployment.group,
                deployment.id,
                deployment.provider,
                payer.operation,
                tokens,
                cost_nanousd,
                ends_at - time.monotonic() + GRACE_S,
                requests,
                payer.run_id,
                payer.terms.run_budget_microusd,
            )
        )
    except BaseException as error:
        gate.leave(permit, _NOT_SENT)
        payer.counted = not requests
        if again and isinstance(error, BudgetExceeded | QuotaExceeded | PermissionDenied):
            raise UpstreamFault(Failure(FailureClass.UNFIT, error.message, code=error.reason)) from error
        if isinstance(error, BudgetExceeded) and extras is None and "spent_microusd" in error.metadata:
            error.metadata[AFFORDABLE] = str(_affordable(prices, input_tokens, output_tokens, error.metadata))
        raise
    payer.reserve_s += time.perf_counter() - began
    payer.limits = ticket.limits or payer.limits
    return Charge(gate, purse, payer, permit, ticket, input_tokens, output_tokens, extras)


def _affordable(prices: Prices, input_tokens: int, output_tokens: int, refusal: Mapping[str, str]) -> int:
    """Output tokens, at most `output_tokens`, that what is left of the budget would cover."""
    limit, spent, reserved = (int(refusal[f"{name}_microusd"]) for name in ("limit", "spent", "reserved"))
    left_nanousd = (limit - spent - reserved) * NANO_PER_MICRO
    # The cost grows with each token.
    return bisect_right(range(output_tokens + 1), left_nanousd, key=lambda tokens: prices.bound_nanousd(input_tokens, tokens)) - 1


def _unpriced(deployment: Deployment, extras: Extras, *, deny: bool) -> None:
    """Says that a part of the call has no price. Raises UpstreamFault where such a call is not to be made."""
    missing = described(extras.missing)
    outcome = "refused, unless another deployment is left" if deny else "counted as 0"
    log.warning("price_unknown", model=deployment.group, deployment=deployment.id, missing=missing, outcome=outcome)
    if deny:
        message = f"the model {deployment.group} has no declared price for {missing}"
        raise UpstreamFault(Failure(FailureClass.UNFIT, message, code="PRICE_UNKNOWN"))


def usage_of(
    deployment: Deployment, reported: Mapping[str, Any] | None, extras: Extras | None = None, *, batch: bool = False
) -> Usage | None:
    """The provider's usage object with its price and that of the extras, None where it says nothing that can be counted."""
    if reported is not None and extras is not None:
        # What is beside the text has no batch price.
        usage = usage_of(deployment, reported)
        return None if usage is None else extras.settled(deployment.prices, usage, reported)
    if reported is None:
        return None
    prompt, completion = reported.get("prompt_tokens"), reported.get("completion_tokens", 0)
    if type(prompt) is not int or type(completion) is not int or prompt < 0 or completion < 0 or not (prompt or completion):
        # No call has neither a prompt nor an answer: a provider that counts nothing has told nothing.
        return None
    if prompt > MOST_COUNTED or completion > MOST_COUNTED:
        return None
    details, made = reported.get("prompt_tokens_details"), reported.get("completion_tokens_details")
    if not details and not made and "prompt_cache_hit_tokens" not in reported:
        return priced(deployment.prices, prompt, completion, batch=batch)
    reasoning = _count(made, "reasoning_tokens")
    if reasoning and reported.get("total_tokens") == prompt + completion + reasoning:
        completion += reasoning  # xAI counts it beside the answer
    return priced(
        deployment.prices,
        prompt,
        completion,
        _count(details, "cached_tokens") or _count(reported, "prompt_cache_hit_tokens"),  # the latter is DeepSeek's
        reasoning,
        cache_write=_count(details, "cache_creation_tokens"),
        cache_write_1h=_count(details, "cache_creation_1h_tokens"),
        batch=batch,
    )


def bounded(usage: Usage, bound_nanousd: int) -> Usage:
    """An estimate that never exceeds what was reserved for the attempt."""
    if usage.cost_nanousd <= bound_nanousd:
        return usage
    return Usage(usage.input, usage.output, usage.cached_input, usage.reasoning, bound_nanousd * PICO_PER_NANO, True)


def _count(holder: Any, key: str) -> int:
    value = holder.get(key) if isinstance(holder, Mapping) else None
    return value if type(value) is int and 0 < value <= MOST_COUNTED else 0
