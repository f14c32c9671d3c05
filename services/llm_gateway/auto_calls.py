"""`auto` models as a layer: which group serves a request is decided once, before anything else looks at it."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Protocol

from services.common.errors import PermissionDenied
from services.common.identity import Principal
from services.common.rpc import context as call_context
from services.llm_gateway.auto_route import AutoRoute, Routed, route_of
from services.llm_gateway.chat import ChatCall
from services.llm_gateway.registry import Registry
from services.llm_gateway.results import Completed, EmbedCall, Embedded, Finished, ModelCalls, Ranked, RerankCall, StreamEvent
from services.llm_gateway.single_flight import Admit
from services.llm_gateway.terms import Terms


class BudgetLeft(Protocol):
    """What is left of a caller's money."""

    async def budget_left(self, principal: Principal) -> float:
        """A share from 0 to 1."""
        ...


class AutoRouted:
    """Passes calls on; those for an `auto` model under the name of the group that was chosen, with the reasons in the outcome."""

    def __init__(self, inner: ModelCalls, purse: BudgetLeft, admit: Admit | None = None) -> None:
        """`admit` raises PermissionDenied for a model that the caller may not use."""
        self._inner = inner
        self._purse = purse
        self._admit = admit

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

        # The run pays for the question about its request as well.
        terms = Terms(run_budget_microusd=call.terms.run_budget_microusd, low_priority=call.terms.low_priority)

        async def ask(model: str, body: Mapping[str, Any]) -> str:
            answer = (await self._inner.complete(ChatCall(model, body, call.run_id, call.thread_id, terms))).answer
            content = answer.data["choices"][0]["message"].get("content")
            return content if isinstance(content, str) else ""

        return await self._allowed(route, await route_of(route, call.body, left, ask))

    async def _allowed(self, route: AutoRoute, routed: Routed) -> Routed:
        """The choice, or the next best model that the caller may use. Raises PermissionDenied without one."""
        if self._admit is None:
            return routed
        refused: PermissionDenied | None = None
        for tier in dict.fromkeys((routed.tier, "balanced", "best", "cheap")):
            model = route.model(tier)
            try:
                await self._admit(model)
            except PermissionDenied as error:
                refused = refused or error
                continue
            return (
                routed
                if refused is None
                else replace(routed, model=model, tier=tier, reasons=(*routed.reasons, f"not_allowed:{routed.model}"))
            )
        assert refused is not None
        raise refused
