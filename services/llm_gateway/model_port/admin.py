"""The admin API of the model port, in the shape that LiteLLM's clients and scripts know.

surface = AdminSurface(PortKeys(accounts, master_key=...), lambda: models.current, ledger, KeyAudit(stream))
"""

from collections.abc import Callable
from dataclasses import replace

import structlog

from services.common.audit import KeyAudit
from services.llm_gateway.model_port.admin_access import PortKeys
from services.llm_gateway.model_port.admin_book import SpendBook
from services.llm_gateway.model_port.admin_desk import AdminDesk
from services.llm_gateway.model_port.admin_keys import KeyRoutes
from services.llm_gateway.model_port.admin_models import ModelRoutes
from services.llm_gateway.model_port.admin_spend import SpendRoutes
from services.llm_gateway.model_port.admin_teams import TeamRoutes
from services.llm_gateway.model_port.admin_users import UserRoutes
from services.llm_gateway.model_port.exchange import Exchange
from services.llm_gateway.model_port.routing import Route
from services.llm_gateway.registry import Registry

log = structlog.get_logger("bulkhead.admin")


class AdminSurface:
    """Keys, teams, users, tenants, spend and models. A key with the scope `admin` acts on its tenant, the master key on all."""

    def __init__(self, keys: PortKeys, registry: Callable[[], Registry], book: SpendBook, audit: KeyAudit) -> None:
        desk = AdminDesk(keys, book, audit)
        self._parts = (
            KeyRoutes(desk),
            TeamRoutes(desk),
            UserRoutes(desk),
            SpendRoutes(keys, book),
            ModelRoutes(registry, keys.accounts),
        )

    def routes(self) -> list[Route]:
        """All of them."""
        return [_told(route) for part in self._parts for route in part.routes()]


def _told(route: Route) -> Route:
    """The route; what it changes is logged with who did it, and neither bodies nor secrets."""
    if route.method == "GET":
        return route

    async def handle(exchange: Exchange) -> None:
        await route.handle(exchange)
        assert exchange.principal is not None
        log.info("admin_change", route=route.path, tenant=exchange.principal.tenant, key_id=exchange.principal.key_id)

    return replace(route, handle=handle)
