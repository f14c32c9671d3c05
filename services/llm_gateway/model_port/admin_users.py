"""/user/* and /tenant/*: limits of users, and of a whole tenant, which the master key alone sets."""

import uuid
from dataclasses import replace
from functools import partial
from typing import Any

import orjson

from services.common.accounts import KeyRecord, TeamRecord, TenantRecord, UserRecord
from services.common.errors import InvalidInput, NotFound
from services.llm_gateway.model_port.admin_access import ADMIN
from services.llm_gateway.model_port.admin_desk import AdminDesk
from services.llm_gateway.model_port.admin_fields import Fields, changed_in_common, check, named
from services.llm_gateway.model_port.admin_keys import expiry_of
from services.llm_gateway.model_port.admin_views import key_view, user_view
from services.llm_gateway.model_port.exchange import Exchange
from services.llm_gateway.model_port.routing import Route
from services.llm_gateway.request_rules import SCOPE


class UserRoutes:
    """Requests and answers in LiteLLM's shape; /tenant/* is ours."""

    def __init__(self, desk: AdminDesk) -> None:
        self._desk = desk
        self._keys = desk.keys
        self._accounts = desk.accounts

    def routes(self) -> list[Route]:
        """All of them."""
        return [
            Route("POST", "/user/new", self.new, scope=ADMIN),
            Route("POST", "/user/update", self.update, scope=ADMIN),
            Route("POST", "/user/block", partial(self._set_blocked, True), scope=ADMIN),
            Route("POST", "/user/unblock", partial(self._set_blocked, False), scope=ADMIN),
            Route("GET", "/user/info", self.info, scope=ADMIN),
            Route("POST", "/tenant/update", self.update_tenant, scope=ADMIN),
            Route("GET", "/tenant/info", self.tenant_info, scope=ADMIN),
        ]

    async def new(self, exchange: Exchange) -> None:
        """A record for a user, and a first key unless auto_create_key is false."""
        principal, fields, tenant = await self._desk.take(exchange)
        user = fields.text("user_id") or str(uuid.uuid4())
        tier = self._keys.tier(principal, fields.text("tier"))
        record = _changed(fields, UserRecord(tenant, user))
        teams, with_key = fields.texts("teams"), fields.flag("auto_create_key", default=True)
        check(fields, record, "user")
        key = KeyRecord("", tenant, user, "", tier, (SCOPE,), name=fields.text("key_alias") or "", expires_at=expiry_of(fields))
        check(fields, key, "key")
        unsupported = fields.finish()
        if with_key:
            principal.require(*key.scopes)
        for team in teams:
            await self._accounts.teams.get(tenant, team)
        record = await self._accounts.users.create(record, user)
        for team in teams:
            await self._accounts.teams.update(tenant, team, partial(_with_member, user))
        body: dict[str, Any] = {**user_view(record, teams=teams), **named(unsupported)}
        if with_key:
            issued = await self._accounts.keys.create(key, strict=True)
            shown = key_view(issued.record)
            body |= {"key": issued.secret} | {
                name: shown[name] for name in ("token", "token_id", "key_name", "key_alias", "expires", "tier")
            }
        await exchange.answer(200, orjson.dumps(body))

    async def update(self, exchange: Exchange) -> None:
        """Changes what the body names; null takes a limit away. A user who has keys but no record gets one."""
        _, fields, tenant = await self._desk.take(exchange)
        user = fields.required("user_id")
        check(fields, _changed(fields, UserRecord(tenant, user)), "user")
        unsupported = fields.finish()

        def change(old: UserRecord | None) -> UserRecord:
            return _changed(fields, old or UserRecord(tenant, user))

        record = await self._accounts.users.change(tenant, user, change)
        await exchange.answer(200, orjson.dumps({"user_id": user, "data": await self._desk.user(record), **named(unsupported)}))

    async def _set_blocked(self, blocked: bool, exchange: Exchange) -> None:
        """Keys of a blocked user answer 401."""
        _, fields, tenant = await self._desk.take(exchange)
        user = fields.required("user_id")
        fields.finish()

        def change(old: UserRecord | None) -> UserRecord:
            return replace(old or UserRecord(tenant, user), blocked=blocked)

        record = await self._accounts.users.change(tenant, user, change)
        await exchange.answer(200, orjson.dumps(await self._desk.user(record)))

    async def info(self, exchange: Exchange) -> None:
        """A user with their keys and teams; without user_id the caller's own."""
        principal, tenant = self._desk.asked(exchange)
        user = exchange.query("user_id") or principal.user
        keys = [await self._desk.key(key) for key in await self._accounts.keys.list(tenant) if key.user == user]
        teams = [team for team in await self._accounts.teams.list(tenant) if user in team.members]
        record = await self._accounts.users.find(tenant, user)
        if record is None and not keys and not teams:
            raise NotFound("no such user")
        view = await self._desk.user(record or UserRecord(tenant, user), tuple(team.team for team in teams))
        body = {"user_id": user, "user_info": view, "keys": keys, "teams": [await self._desk.team(team) for team in teams]}
        await exchange.answer(200, orjson.dumps(body))

    async def update_tenant(self, exchange: Exchange) -> None:
        """Limits of a whole tenant."""
        principal, fields, tenant = await self._desk.take(exchange)
        self._keys.require_master(principal)
        check(fields, _changed_tenant(fields, TenantRecord(tenant)), "tenant")
        unsupported = fields.finish()

        def change(old: TenantRecord | None) -> TenantRecord:
            return _changed_tenant(fields, old or TenantRecord(tenant))

        record = await self._accounts.tenants.change(tenant, "", change)
        await exchange.answer(200, orjson.dumps({**await self._desk.tenant(record), **named(unsupported)}))

    async def tenant_info(self, exchange: Exchange) -> None:
        """Limits and spend of the caller's tenant, or of any for the master key."""
        _, tenant = self._desk.asked(exchange)
        if not tenant.isprintable() or len(tenant) > 128:
            raise InvalidInput.field("tenant", "is no name of a tenant")
        record = await self._accounts.tenants.find(tenant) or TenantRecord(tenant)
        await exchange.answer(200, orjson.dumps(await self._desk.tenant(record)))


def _with_member(user: str, old: TeamRecord) -> TeamRecord:
    return replace(old, members={**old.members, user: old.members.get(user, "user")})


def _changed(fields: Fields, old: UserRecord) -> UserRecord:
    found = changed_in_common(fields, old, "user")
    if fields.given("user_email"):
        found["email"] = fields.text("user_email") or ""
    return replace(old, **found)


def _changed_tenant(fields: Fields, old: TenantRecord) -> TenantRecord:
    return replace(old, **changed_in_common(fields, old, "tenant"))
