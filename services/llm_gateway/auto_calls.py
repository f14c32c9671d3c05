"""`auto` models as a layer: which group serves a request is decided once, before anything else looks at it."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Protocol

from services.common.identity import Principal
from services.common.rpc import context as call_context
from services.llm_gateway.auto_route import AutoRoute, Routed, route_of
from services.llm_gateway.chat import ChatCall
from services.llm_gateway.registry import Registry
from services.llm_gateway.results import Completed, EmbedCall, Embedded, Finished, ModelCalls, Ranked, RerankCall, StreamEvent


class BudgetLeft(Protocol):
    """What is left of a caller's money."""

    async def budget_left(self, principal: Principal) -> float:
        """A share from 0 to 1."""
        ...


class AutoRouted:
    """Passes calls on; those for an `auto` model under the name of the group that was chosen, with the reasons in the outcome."""

    def __init__(self, inner: ModelCalls, purse: BudgetLeft) -> None:
        self._inner = inner
        self._purse = purse

    @property
    def registry(self) -> Registry:
        """The registry as it is now."""
        return self._inner.registry

    async def complete(self, call: ChatCall) -> Completed:
        """One whole completion."""
        route = self._inner.registry.autos.get(call.model)
        if route is None:
            return await self._inner.complete(call)
        routed = await self._route(route, call)
        completed = await self._inner.complete(replace(call, model=routed.model))
        return replace(completed, outcome=replace(completed.outcome, routing=routed.metadata()))

    def stream(self, call: ChatCall) -> AsyncGenerator[StreamEvent, None]:
        """One streamed completion."""
        route = self._inner.registry.autos.get(call.model)
        return self._inner.stream(call) if route is None else self._routed_stream(route, call)

    async def embed(self, call: EmbedCall) -> Embedded:
        """As it is."""
        return await self._inner.embed(call)

    async def rerank(self, call: RerankCall) -> Ranked:
        """As it is."""
        return await self._inner.rerank(call)

    async def _routed_stream(self, route: AutoRoute, call: ChatCall) -> AsyncGenerator[StreamEvent, None]:
        routed = await self._route(route, call)
        async with aclosing(self._inner.stream(replace(call, model=routed.model))) as events:
            async for event in events:
                if isinstance(event, Finished):
                    event = replace(event, outcome=replace(event.outcome, routing=routed.metadata()))
                yield event

    async def _route(self, route: AutoRoute, call: ChatCall) -> Routed:
        context = call_context.current()
        left = 1.0 if context is None or context.principal is None else await self._purse.budget_left(context.principal)

        async def ask(model: str, body: Mapping[str, Any]) -> str:
            answer = (await self._inner.complete(ChatCall(model, body, call.run_id, call.thread_id))).answer
            content = answer.data["choices"][0]["message"].get("content")
            return content if isinstance(content, str) else ""

        return await route_of(route, call.body, left, ask)
