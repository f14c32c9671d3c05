"""What the routes of keys, teams, users and tenants share: who asks about which tenant, and records with what they have spent."""

from typing import Any

from services.common.accounts import KeyRecord, TeamRecord, TenantRecord, UserRecord
from services.common.audit import KeyAudit
from services.common.identity import Principal
from services.llm_gateway.model_port.admin_access import PortKeys
from services.llm_gateway.model_port.admin_book import SpendBook, spent_by
from services.llm_gateway.model_port.admin_fields import Fields
from services.llm_gateway.model_port.admin_views import key_view, team_view, tenant_view, user_view
from services.llm_gateway.model_port.exchange import Exchange


class AdminDesk:
    """Takes in requests of administrators, and shows records in LiteLLM's shape."""

    def __init__(self, keys: PortKeys, book: SpendBook, audit: KeyAudit) -> None:
        self.keys = keys
        self.audit = audit
        self.accounts = keys.accounts
        self._book = book

    async def take(self, exchange: Exchange) -> tuple[Principal, Fields, str]:
        """Who asks, the body, and the tenant it is about. Raises Refused, InvalidInput, PermissionDenied for a tenant of others."""
        assert exchange.principal is not None
        body, _ = await exchange.json()
        fields = Fields(body)
        return exchange.principal, fields, self.keys.tenant(exchange.principal, fields.text("tenant"))

    def asked(self, exchange: Exchange) -> tuple[Principal, str]:
        """Who asks, and the tenant that the query is about. Raises PermissionDenied for a tenant of others."""
        assert exchange.principal is not None
        return exchange.principal, self.keys.tenant(exchange.principal, exchange.query("tenant"))

    async def key(self, record: KeyRecord) -> dict[str, Any]:
        """A key with what it has spent."""
        return key_view(record, await spent_by(self._book, record.tenant, "key", record.key_id, record.limits))

    async def team(self, record: TeamRecord) -> dict[str, Any]:
        """A team with what it has spent."""
        return team_view(record, await spent_by(self._book, record.tenant, "team", record.team, record.limits))

    async def user(self, record: UserRecord, teams: tuple[str, ...] = ()) -> dict[str, Any]:
        """A user with what they have spent."""
        return user_view(record, await spent_by(self._book, record.tenant, "user", record.user, record.limits), teams)

    async def tenant(self, record: TenantRecord) -> dict[str, Any]:
        """A tenant with what it has spent."""
        return tenant_view(record, await spent_by(self._book, record.tenant, "tenant", record.tenant, record.limits))
