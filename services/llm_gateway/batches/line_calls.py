"""Model calls of batch lines: behind all others in every queue, and metered for their batch."""

from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace

from services.llm_gateway.chat import ChatCall
from services.llm_gateway.money import NOTHING, Usage
from services.llm_gateway.registry import Registry
from services.llm_gateway.results import (
    Completed,
    EmbedCall,
    Embedded,
    Finished,
    ModelCalls,
    Outcome,
    Ranked,
    RerankCall,
    StreamEvent,
)
from services.llm_gateway.terms import Terms


class Meter:
    """What the calls of one line were charged with."""

    def __init__(self) -> None:
        self.usage: Usage = NOTHING


# The object is shared by the tasks that a surface starts for one line.
_meter: ContextVar[Meter | None] = ContextVar("bulkhead_batch_line", default=None)


@contextmanager
def metered() -> Iterator[Meter]:
    """Adds up the calls made inside."""
    meter = Meter()
    token = _meter.set(meter)
    try:
        yield meter
    finally:
        _meter.reset(token)


class LineCalls:
    """Implements ModelCalls around another. Surfaces for batch lines are built over it."""

    def __init__(self, calls: ModelCalls) -> None:
        self._calls = calls

    @property
    def registry(self) -> Registry:
        """The registry as it is now."""
        return self._calls.registry

    async def complete(self, call: ChatCall) -> Completed:
        """As ModelCalls.complete."""
        completed = await self._calls.complete(replace(call, terms=_low(call.terms)))
        _count(completed.outcome)
        return completed

    async def stream(self, call: ChatCall) -> AsyncGenerator[StreamEvent, None]:
        """As ModelCalls.stream."""
        async for event in self._calls.stream(replace(call, terms=_low(call.terms))):
            if isinstance(event, Finished):
                _count(event.outcome)
            yield event

    async def embed(self, call: EmbedCall) -> Embedded:
        """As ModelCalls.embed."""
        embedded = await self._calls.embed(replace(call, terms=_low(call.terms)))
        _count(embedded.outcome)
        return embedded

    async def rerank(self, call: RerankCall) -> Ranked:
        """As ModelCalls.rerank."""
        ranked = await self._calls.rerank(replace(call, terms=_low(call.terms)))
        _count(ranked.outcome)
        return ranked


def _low(terms: Terms) -> Terms:
    return replace(terms, low_priority=True)


def _count(outcome: Outcome) -> None:
    meter = _meter.get()
    if meter is not None:
        meter.usage = meter.usage + outcome.usage
