"""GET /model/info: what there is to call, at which price, with which abilities and limits. Never where it is or with which key."""

from collections.abc import Callable
from typing import Any

import orjson

from services.common.accounts import Accounts
from services.common.errors import NotFound
from services.llm_gateway.model_port.exchange import Exchange
from services.llm_gateway.model_port.routing import Route
from services.llm_gateway.money import PICO_PER_USD
from services.llm_gateway.registry import Deployment, Registry


class ModelRoutes:
    """For every key that may call models: those that it may call."""

    def __init__(self, registry: Callable[[], Registry], accounts: Accounts) -> None:
        self._registry = registry
        self._accounts = accounts

    def routes(self) -> list[Route]:
        """All of them."""
        return [Route("GET", "/model/info", self.info), Route("GET", "/v1/model/info", self.info)]

    async def info(self, exchange: Exchange) -> None:
        """All deployments, or one with litellm_model_id. Raises NotFound."""
        assert exchange.principal is not None
        limits = await self._accounts.limits(exchange.principal)
        wanted = exchange.query("litellm_model_id")
        data = [
            deployment_view(name, deployment)
            for name, group in self._registry().groups.items()
            if limits.allows(name)
            for deployment in group.deployments
            if wanted is None or deployment.id == wanted
        ]
        if wanted is not None and not data:
            raise NotFound("no such deployment")
        await exchange.answer(200, orjson.dumps({"data": data}))


def deployment_view(name: str, deployment: Deployment) -> dict[str, Any]:
    """One deployment in LiteLLM's shape; prices are dollars a token, null where none is known."""
    prices, can, limits = deployment.prices, deployment.capabilities, deployment.limits

    def price(picousd: int) -> float | None:
        return picousd / PICO_PER_USD if prices.known else None

    return {
        "model_name": name,
        "litellm_params": {
            "model": f"{deployment.provider}/{deployment.model}",
            "rpm": limits.requests_per_minute or None,
            "tpm": limits.tokens_per_minute or None,
            "max_parallel_requests": limits.parallel or None,
            "weight": deployment.weight,
            "order": deployment.order,
        },
        "model_info": {
            "id": deployment.id,
            "mode": deployment.mode,
            "litellm_provider": deployment.provider,
            "input_cost_per_token": price(prices.input),
            "output_cost_per_token": price(prices.output),
            "cache_read_input_token_cost": price(prices.cached_input),
            "cache_creation_input_token_cost": price(prices.cache_write),
            "output_cost_per_reasoning_token": price(prices.reasoning),
            "input_cost_per_token_batches": price(prices.batch_input),
            "output_cost_per_token_batches": price(prices.batch_output),
            "input_cost_per_query": price(prices.per_request),
            "max_input_tokens": deployment.max_input_tokens or None,
            "max_output_tokens": deployment.max_output_tokens or None,
            "output_vector_size": deployment.dimension or None,
            "supports_function_calling": can.tools,
            "supports_tool_choice": can.tool_choice,
            "supports_parallel_function_calling": can.parallel_tools,
            "supports_vision": can.vision,
            "supports_response_schema": can.json_schema,
            "supports_system_messages": can.system_messages,
            "supports_reasoning": deployment.reasoning or can.reasoning,
            "supports_assistant_prefill": can.prefill,
        },
    }
