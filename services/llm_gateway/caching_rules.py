"""Which calls may be answered from a cache, which answers are worth keeping, and when an old one is better than none."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services.common.errors import BulkheadError, DeadlineExceeded, Overloaded, UpstreamFailed
from services.llm_gateway.caching_records import Record
from services.llm_gateway.chat import Chunk
from services.llm_gateway.failures import FailureClass
from services.llm_gateway.results import Notice, Outcome
from services.llm_gateway.terms import CacheTerms

TTL_S = 3_600.0
STALE_S = 86_400.0
OPERATIONS = frozenset({"chat", "embed", "rerank"})
# "length" counts only where the caller asked for that bound: what the gateway's own default cut off is no whole answer.
_WHOLE = frozenset({"stop", "tool_calls", "function_call"})
_BOUNDS = ("max_tokens", "max_completion_tokens")


@dataclass(frozen=True, slots=True)
class CachePolicy:
    """How caches work for calls that do not say it themselves. Off by default: a call can still ask (max-age, ttl, semantic).

    An answer is fresh for `ttl_s` and kept `stale_s` longer for the case that every provider fails. With `per_user` users of
    a tenant do not share answers. `operations` are chat, embed and rerank.
    """

    enabled: bool = False
    ttl_s: float = TTL_S
    stale_s: float = STALE_S
    per_user: bool = False
    operations: frozenset[str] = OPERATIONS

    def concerns(self, operation: str, cache: CacheTerms) -> bool:
        """Whether a call has anything to do with a cache."""
        return cache.stale_if_error_s is not None or self.serves(operation, cache)

    def serves(self, operation: str, cache: CacheTerms) -> bool:
        """Whether it has while providers answer."""
        if cache.semantic or cache.max_age_s is not None or cache.ttl_s is not None:
            return cache.read or cache.write
        return self.enabled and operation in self.operations and (cache.read or cache.write)


def acceptable(record: Record, cache: CacheTerms, now: float) -> bool:
    """Whether a record is fresh enough for a call."""
    return record.fresh_until > now and (cache.max_age_s is None or now - record.at <= cache.max_age_s)


def stale_helps(error: BulkheadError, cache: CacheTerms) -> bool:
    """Whether an old answer may stand in for this failure: every provider failed, and the caller asked for it or set no bounds to its age.

    Faults of the caller, budgets, full queues, limits that we set a deployment ourselves and our own stores are none of it.
    """
    if cache.stale_if_error_s is None and (not cache.read or not cache.write or cache.max_age_s is not None):
        return False
    if isinstance(error, Overloaded):
        return error.metadata.get("failure_class", FailureClass.SATURATED) != FailureClass.SATURATED
    return isinstance(error, UpstreamFailed | DeadlineExceeded)


def stale_until(record: Record, policy: CachePolicy, cache: CacheTerms) -> float:
    """Until when a record may stand in for a failure."""
    return record.fresh_until + policy.stale_s if cache.stale_if_error_s is None else record.at + cache.stale_if_error_s


def keepable_answer(body: Mapping[str, Any], data: Mapping[str, Any], outcome: Outcome) -> bool:
    """Whether a whole answer may be kept: complete, unfiltered, not empty, from the model that was asked for."""
    choices = data["choices"]
    said = all(
        (message := choice["message"]).get("content") or message.get("tool_calls") or message.get("function_call") or message.get("audio")
        for choice in choices
    )
    refused = any(choice["message"].get("refusal") for choice in choices)
    return said and not refused and _keepable(body, (choice.get("finish_reason") for choice in choices), outcome)


def keepable_stream(body: Mapping[str, Any], chunks: Sequence[Chunk], notices: Sequence[Notice], outcome: Outcome) -> bool:
    """The same for a stream that has come to its end. One of which a part could not be read is none."""
    said: set[int] = set()
    finished: dict[int, str | None] = {}
    for chunk in chunks:
        for choice in chunk.data.get("choices") or ():
            index, delta = choice.get("index", 0), choice.get("delta") or {}
            finished[index] = choice.get("finish_reason") or finished.get(index)
            if delta.get("refusal"):
                return False
            if delta.get("content") or delta.get("tool_calls") or delta.get("function_call") or delta.get("audio"):
                said.add(index)
    spoilt = any(notice.code == "event_skipped" for notice in notices)
    return bool(finished) and not spoilt and said == finished.keys() and _keepable(body, finished.values(), outcome)


def _keepable(body: Mapping[str, Any], finish_reasons: Iterable[Any], outcome: Outcome) -> bool:
    # The answer of a fallback would outlive the outage; that of another caller is kept by the one who paid for it.
    if outcome.fallbacks or outcome.cached:
        return False
    bounded = any(body.get(name) is not None for name in _BOUNDS)
    return all(reason in _WHOLE or (reason == "length" and bounded) for reason in finish_reasons)


def stale_notice(record: Record, now: float) -> Notice:
    """The warning that goes with an expired answer."""
    age_s = max(int(now - record.at), 0)
    message = f"No model answers at the moment; this answer is {age_s} seconds old."
    return Notice("stale_answer", message, fallback=record.group, attributes=(("age_s", age_s), ("model", record.group)))
