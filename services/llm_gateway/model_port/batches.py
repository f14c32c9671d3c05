"""/v1/batches in the shape of OpenAI's API."""

from typing import Any

import orjson

from services.llm_gateway.batches.records import BatchRecord
from services.llm_gateway.batches.service import MOST_LISTED, Batches
from services.llm_gateway.model_port.admin_access import MASTER_KEY_ID
from services.llm_gateway.model_port.exchange import Exchange
from services.llm_gateway.model_port.files import FORM, limit_of, listed, not_configured, principal_of
from services.llm_gateway.model_port.routing import Handler, Route
from services.llm_gateway.model_port.terms import IDEMPOTENCY_KEY

PATH = "/v1/batches"
_TIMES = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")


class BatchSurface:
    """Batches. Without `batches` every route says that they are not configured."""

    def __init__(self, batches: Batches | None) -> None:
        self._batches = batches

    def routes(self) -> list[Route]:
        """All of them."""
        one = f"{PATH}/{{batch}}"
        routes: list[tuple[str, str, Handler]] = [
            ("POST", PATH, self.create), ("GET", PATH, self.list), ("GET", one, self.get), ("POST", f"{one}/cancel", self.cancel)
        ]  # fmt: skip
        return [Route(method, path, handle if self._batches else not_configured, errors=FORM) for method, path, handle in routes]

    async def create(self, exchange: Exchange) -> None:
        """Begins a batch."""
        body, _ = await exchange.json()
        principal = principal_of(exchange)
        record = await self._known.create(
            principal, body, idempotency_key=exchange.headers.get(IDEMPOTENCY_KEY, ""), own_key=principal.key_id != MASTER_KEY_ID
        )
        await exchange.answer(200, orjson.dumps(shown(record)))

    async def list(self, exchange: Exchange) -> None:
        """A page of batches, newest first."""
        tenant, limit = principal_of(exchange).tenant, limit_of(exchange, 20, MOST_LISTED)
        page = await self._known.list(tenant, after=exchange.query("after") or "", limit=limit)
        await exchange.answer(200, listed([shown(record) for record in page.items], more=page.more))

    async def get(self, exchange: Exchange) -> None:
        """One batch."""
        await exchange.answer(200, orjson.dumps(shown(await self._known.get(principal_of(exchange).tenant, exchange.parameters["batch"]))))

    async def cancel(self, exchange: Exchange) -> None:
        """Ends a batch."""
        record = await self._known.cancel(principal_of(exchange).tenant, exchange.parameters["batch"])
        await exchange.answer(200, orjson.dumps(shown(record)))

    @property
    def _known(self) -> Batches:
        assert self._batches is not None
        return self._batches


def shown(record: BatchRecord) -> dict[str, Any]:
    """A batch as OpenAI's API shows it; its usage has what it has cost as well."""
    progress, usage = record.progress, record.progress.usage
    return {
        "id": record.id,
        "object": "batch",
        "endpoint": record.spec.endpoint,
        "model": record.model or None,
        "errors": {"object": "list", "data": list(record.errors)} if record.errors else None,
        "input_file_id": record.spec.input_file_id,
        "completion_window": record.spec.completion_window,
        "status": record.status,
        "output_file_id": record.output_file_id or None,
        "error_file_id": record.error_file_id or None,
        "created_at": record.created_ms // 1000,
        "expires_at": record.expires_ms // 1000,
        **{f"{name}_at": record.times_ms[name] // 1000 if name in record.times_ms else None for name in _TIMES},
        "request_counts": {"total": progress.total, "completed": progress.completed, "failed": progress.failed},
        "usage": {
            "input_tokens": usage.input,
            "input_tokens_details": {"cached_tokens": usage.cached_input},
            "output_tokens": usage.output,
            "output_tokens_details": {"reasoning_tokens": usage.reasoning},
            "total_tokens": usage.input + usage.output,
            "cost_microusd": usage.cost_microusd,
        },
        "metadata": record.spec.metadata,
    }
