"""/team/*: teams with their members, limits and models."""

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import orjson

from services.common.accounts import Accounts, KeyRecord, TeamRecord
from services.common.errors import InvalidInput, NotFound
from services.llm_gateway.model_port.admin_access import ADMIN
from services.llm_gateway.model_port.admin_desk import AdminDesk
from services.llm_gateway.model_port.admin_fields import Fields, changed_in_common, check, named
from services.llm_gateway.model_port.admin_keys import MOST_AT_ONCE
from services.llm_gateway.model_port.admin_views import team_view
from services.llm_gateway.model_port.exchange import Exchange
from services.llm_gateway.model_port.routing import Route


class TeamRoutes:
    """Requests and answers in LiteLLM's shape."""

    def __init__(self, desk: AdminDesk) -> None:
        self._desk = desk
        self._accounts = desk.accounts

    def routes(self) -> list[Route]:
        """All of them."""
        return [
            Route("POST", "/team/new", self.new, scope=ADMIN),
            Route("POST", "/team/update", self.update, scope=ADMIN),
            Route("POST", "/team/delete", self.delete, scope=ADMIN),
            Route("POST", "/team/block", partial(self._set_blocked, True), scope=ADMIN),
            Route("POST", "/team/unblock", partial(self._set_blocked, False), scope=ADMIN),
            Route("POST", "/team/member_add", self.member_add, scope=ADMIN),
            Route("POST", "/team/member_delete", self.member_delete, scope=ADMIN),
            Route("GET", "/team/info", self.info, scope=ADMIN),
            Route("GET", "/team/list", self.list, scope=ADMIN),
        ]

    async def new(self, exchange: Exchange) -> None:
        """A new team; its id is made here where none is given."""
        _, fields, tenant = await self._desk.take(exchange)
        team = fields.text("team_id") or str(uuid.uuid4())
        record = _changed(fields, TeamRecord(tenant, team))
        check(fields, record, "team")
        unsupported = fields.finish()
        record = await self._accounts.teams.create(record, team)
        await exchange.answer(200, orjson.dumps({**team_view(record), **named(unsupported)}))

    async def update(self, exchange: Exchange) -> None:
        """Changes what the body names; null takes a limit away. Members that are named replace all."""
        _, fields, tenant = await self._desk.take(exchange)
        team = fields.required("team_id")
        check(fields, _changed(fields, TeamRecord(tenant, team)), "team")
        unsupported = fields.finish()
        record = await self._accounts.teams.update(tenant, team, lambda old: _changed(fields, old))
        await exchange.answer(200, orjson.dumps({"team_id": team, "data": await self._desk.team(record), **named(unsupported)}))

    async def delete(self, exchange: Exchange) -> None:
        """Ends teams together with their keys, which would go on without the team's limits. All must be there before any is ended."""
        _, fields, tenant = await self._desk.take(exchange)
        teams = fields.texts("team_ids")
        if not teams or len(teams) > MOST_AT_ONCE:
            fields.wrong("team_ids", f"must be 1 to {MOST_AT_ONCE} ids")
        fields.finish()
        for team in teams:
            await self._accounts.teams.get(tenant, team)
        # A blocked team's keys are refused at once, and no key can be made between here and the end that would live on.
        for team in teams:
            await self._accounts.teams.update(tenant, team, lambda old: replace(old, blocked=True))
        ended = await self._end_keys(tenant, lambda record: record.team in teams)
        for team in teams:
            await self._accounts.teams.delete(tenant, team)
        await exchange.answer(200, orjson.dumps({"deleted_teams": teams, "deleted_keys": ended}))

    async def _set_blocked(self, blocked: bool, exchange: Exchange) -> None:
        """Keys of a blocked team answer 401."""
        _, fields, tenant = await self._desk.take(exchange)
        team = fields.required("team_id")
        fields.finish()
        record = await self._accounts.teams.update(tenant, team, lambda old: replace(old, blocked=blocked))
        await exchange.answer(200, orjson.dumps(await self._desk.team(record)))

    async def member_add(self, exchange: Exchange) -> None:
        """Adds one member or several; who is one already gets the role that is named."""
        _, fields, tenant = await self._desk.take(exchange)
        team = fields.required("team_id")
        added = _members(fields, "member", fields.objects("member"))
        if not added:
            fields.wrong("member", "is needed")
        check(fields, TeamRecord(tenant, team, members=added), "team")
        unsupported = fields.finish()

        def change(old: TeamRecord) -> TeamRecord:
            return replace(old, members={**old.members, **added})

        record = await self._accounts.teams.update(tenant, team, change)
        view = await self._desk.team(record)
        body = {**view, "updated_users": [{"user_id": user} for user in added], "updated_team_memberships": [], **named(unsupported)}
        await exchange.answer(200, orjson.dumps(body))

    async def member_delete(self, exchange: Exchange) -> None:
        """Takes a member out and ends their keys of this team."""
        _, fields, tenant = await self._desk.take(exchange)
        team = fields.required("team_id")
        user = fields.required("user_id")
        fields.finish()

        def change(old: TeamRecord) -> TeamRecord:
            if user not in old.members:
                raise NotFound("the user is no member of this team")
            return replace(old, members={name: role for name, role in old.members.items() if name != user})

        record = await self._accounts.teams.update(tenant, team, change)
        ended = await self._end_keys(tenant, lambda key: key.team == team and key.user == user)
        await exchange.answer(200, orjson.dumps({**await self._desk.team(record), "deleted_keys": ended}))

    async def info(self, exchange: Exchange) -> None:
        """A team with its keys."""
        (_, tenant), team = self._desk.asked(exchange), exchange.query("team_id")
        if not team:
            raise InvalidInput.field("team_id", "is needed")
        record = await self._accounts.teams.get(tenant, team)
        keys = [await self._desk.key(key) for key in await self._accounts.keys.list(tenant) if key.team == team]
        view = await self._desk.team(record)
        await exchange.answer(200, orjson.dumps({"team_id": team, "team_info": view, "keys": keys, "team_memberships": []}))

    async def list(self, exchange: Exchange) -> None:
        """Teams of the tenant, or those of one member."""
        (_, tenant), user = self._desk.asked(exchange), exchange.query("user_id")
        records = [record for record in await self._accounts.teams.list(tenant) if not user or user in record.members]
        await exchange.answer(200, orjson.dumps([await self._desk.team(record) for record in records]))

    async def _end_keys(self, tenant: str, wanted: Any) -> Iterable[str]:
        ended = []
        for record in await self._accounts.keys.list(tenant):
            if wanted(record):
                await _end(self._accounts, record)
                ended.append(record.key_id)
        return ended


async def _end(accounts: Accounts, record: KeyRecord) -> None:
    try:
        await accounts.keys.delete(record.key_id, record.tenant)
    except NotFound:
        return  # somebody else ended it first


def _changed(fields: Fields, old: TeamRecord) -> TeamRecord:
    found = changed_in_common(fields, old, "team")
    if any([fields.given("members"), fields.given("admins"), fields.given("members_with_roles")]):
        members = dict.fromkeys(fields.texts("members"), "user") | dict.fromkeys(fields.texts("admins"), "admin")
        found["members"] = members | _members(fields, "members_with_roles", fields.objects("members_with_roles"))
    return replace(old, **found)


def _members(fields: Fields, name: str, items: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    found = {}
    for item in items:
        user, role = item.get("user_id"), item.get("role", "user")
        if not isinstance(user, str) or not user:
            fields.wrong(name, "needs a user_id; members are not found by their e-mail address")
        elif role not in ("user", "admin"):
            fields.wrong(name, "role must be user or admin")
        else:
            found[user] = role
        if unknown := set(item) - {"user_id", "role", "user_email"}:
            fields.wrong(name, f"has {len(unknown)} unknown fields")
    return found
