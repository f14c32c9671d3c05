"""The admin API of the model port, in the shape that LiteLLM's clients and scripts know.

surface = AdminSurface(PortKeys(accounts, master_key=...), lambda: models.current, ledger)
"""

from collections.abc import Callable

from services.llm_gateway.model_port.admin_access import PortKeys
from services.llm_gateway.model_port.admin_book import SpendBook
from services.llm_gateway.model_port.admin_keys import KeyRoutes
from services.llm_gateway.model_port.admin_models import ModelRoutes
from services.llm_gateway.model_port.admin_spend import SpendRoutes
from services.llm_gateway.model_port.admin_teams import TeamRoutes
from services.llm_gateway.model_port.admin_users import UserRoutes
from services.llm_gateway.model_port.routing import Route
from services.llm_gateway.registry import Registry


class AdminSurface:
    """Keys, teams, users, tenants, spend and models. A key with the scope `admin` acts on its tenant, the master key on all."""

    def __init__(self, keys: PortKeys, registry: Callable[[], Registry], book: SpendBook) -> None:
        self._parts = (
            KeyRoutes(keys, book),
            TeamRoutes(keys, book),
            UserRoutes(keys, book),
            SpendRoutes(keys, book),
            ModelRoutes(registry, keys.accounts),
        )

    def routes(self) -> list[Route]:
        """All of them."""
        return [route for part in self._parts for route in part.routes()]
