"""/key/*: keys of a tenant, for administrators. A key's holder may ask for its own record."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

import orjson

from services.common.accounts import KeyRecord
from services.common.audit import BLOCKED, CHANGED, ENDED, MADE, ROTATED, UNBLOCKED
from services.common.errors import InvalidInput, NotFound, PermissionDenied
from services.common.identity import Principal
from services.llm_gateway.model_port.admin_access import ADMIN
from services.llm_gateway.model_port.admin_desk import AdminDesk
from services.llm_gateway.model_port.admin_fields import Fields, changed_in_common, check, named, read_limits
from services.llm_gateway.model_port.admin_query import flag_of, number_of
from services.llm_gateway.model_port.admin_views import key_view
from services.llm_gateway.model_port.exchange import Exchange
from services.llm_gateway.model_port.routing import Route
from services.llm_gateway.request_rules import SCOPE

MOST_PAGE = 100
MOST_AT_ONCE = 100
NEVER = "-1"
_KINDS = {"default": (SCOPE,), "llm_api": (SCOPE,), "management": (ADMIN,)}


class KeyRoutes:
    """Requests and answers in LiteLLM's shape. `key` in a request is a secret, a key id, or the SHA-256 of a secret."""

    def __init__(self, desk: AdminDesk) -> None:
        self._desk = desk
        self._keys = desk.keys
        self._accounts = desk.accounts

    def routes(self) -> list[Route]:
        """All of them."""
        return [
            Route("POST", "/key/generate", self.generate, scope=ADMIN),
            Route("POST", "/key/update", self.update, scope=ADMIN),
            Route("POST", "/key/delete", self.delete, scope=ADMIN),
            Route("POST", "/key/block", partial(self._set_blocked, True), scope=ADMIN),
            Route("POST", "/key/unblock", partial(self._set_blocked, False), scope=ADMIN),
            Route("POST", "/key/regenerate", self.regenerate, scope=ADMIN),
            Route("POST", "/key/{key}/regenerate", self.regenerate, scope=ADMIN),
            Route("GET", "/key/info", self.info, scope=None),
            Route("GET", "/key/list", self.list, scope=ADMIN),
        ]

    async def generate(self, exchange: Exchange) -> None:
        """A new key; its secret is shown this once."""
        principal, fields, tenant = await self._desk.take(exchange)
        record = KeyRecord(
            "",
            tenant,
            fields.text("user_id") or principal.user,
            fields.text("team_id") or "",
            self._keys.tier(principal, fields.text("tier")),
            _scopes(fields),
            name=fields.text("key_alias") or "",
            expires_at=expiry_of(fields),
            limits=read_limits(fields),
            metadata=fields.mapping("metadata"),
            blocked=fields.flag("blocked"),
        )
        if fields.text("key") is not None:
            fields.wrong("key", "secrets are made here and cannot be chosen")
        check(fields, record, "key")
        unsupported = fields.finish()
        principal.require(*record.scopes)
        issued = await self._accounts.keys.create(record, strict=True)
        await self._desk.audit.append(principal, MADE, issued.record)
        await exchange.answer(200, orjson.dumps(_issued(issued.secret, issued.record, unsupported)))

    async def update(self, exchange: Exchange) -> None:
        """Changes what the body names; null takes a limit, an end or a name away."""
        principal, fields, tenant = await self._desk.take(exchange)
        reference = fields.required("key")
        change = self._change(principal, fields, tenant)
        unsupported = fields.finish()
        key_id = await self._accounts.keys.find_id(reference, tenant)
        record = await self._accounts.keys.update(key_id, tenant, change, strict=True)
        await self._desk.audit.append(principal, CHANGED, record)
        await exchange.answer(200, orjson.dumps({"key": key_id, **await self._desk.key(record), **named(unsupported)}))

    def _change(self, principal: Principal, fields: Fields, tenant: str) -> Callable[[KeyRecord], KeyRecord]:
        """What the body makes of a key. It runs on the record as it is at that moment, so the body is read once before, to tell what is
        wrong with it.
        """
        check(fields, _changed(fields, KeyRecord("", tenant, principal.user)), "key")

        def change(old: KeyRecord) -> KeyRecord:
            self._keys.require_reach(principal, old)
            new = _changed(fields, old)
            principal.require(*new.scopes)
            return replace(new, tier=self._keys.tier(principal, new.tier))

        return change

    async def delete(self, exchange: Exchange) -> None:
        """Ends keys at once, in every process. All must be there before any is ended."""
        principal, fields, tenant = await self._desk.take(exchange)
        references, names = fields.texts("keys"), fields.texts("key_aliases")
        if not references and not names:
            fields.wrong("keys", "keys or key_aliases is needed")
        if len(references) + len(names) > MOST_AT_ONCE:
            fields.wrong("keys", f"must be at most {MOST_AT_ONCE}")
        fields.finish()
        found = [await self._accounts.keys.find_id(reference, tenant) for reference in references]
        found += [await self._accounts.keys.find_name(name, tenant) for name in names]
        for key_id in dict.fromkeys(found):
            await self._desk.audit.append(principal, ENDED, await self._accounts.keys.delete(key_id, tenant))
        await exchange.answer(200, orjson.dumps({"deleted_keys": found}))

    async def _set_blocked(self, blocked: bool, exchange: Exchange) -> None:
        """A blocked key answers 401 until it is unblocked."""
        principal, fields, tenant = await self._desk.take(exchange)
        reference = fields.required("key")
        fields.finish()

        def change(old: KeyRecord) -> KeyRecord:
            # Anybody may stop a key of theirs; to let it go on is to give what it holds.
            if not blocked:
                self._keys.require_reach(principal, old)
            return replace(old, blocked=blocked)

        key_id = await self._accounts.keys.find_id(reference, tenant)
        record = await self._accounts.keys.update(key_id, tenant, change)
        await self._desk.audit.append(principal, BLOCKED if blocked else UNBLOCKED, record)
        await exchange.answer(200, orjson.dumps({"key": key_id, **await self._desk.key(record)}))

    async def regenerate(self, exchange: Exchange) -> None:
        """A new secret for a key, with changes where the body names any. The old one lives on for `grace_period`."""
        principal, fields, tenant = await self._desk.take(exchange)
        reference = exchange.parameters.get("key") or fields.required("key")
        fields.given("key")
        grace = fields.period("grace_period")
        change = self._change(principal, fields, tenant)
        unsupported = fields.finish()
        if fields.text("key_alias") is not None:
            raise InvalidInput.field("key_alias", "a new secret does not rename the key; use /key/update")
        key_id = await self._accounts.keys.find_id(reference, tenant)
        lasting = None if grace is None else timedelta(seconds=grace.seconds)
        issued = await self._accounts.keys.rotate(key_id, tenant, grace=lasting, change=change)
        await self._desk.audit.append(principal, ROTATED, issued.record)
        await exchange.answer(200, orjson.dumps(_issued(issued.secret, issued.record, unsupported)))

    async def info(self, exchange: Exchange) -> None:
        """One key: any of the tenant for administrators, its own for everybody else."""
        assert exchange.principal is not None
        principal, reference = exchange.principal, exchange.query("key")
        if reference is None and self._keys.is_master(principal):
            raise InvalidInput.field("key", "is needed")
        administrates = not principal.missing([ADMIN])
        tenant = self._keys.tenant(principal, exchange.query("tenant")) if administrates else principal.tenant
        try:
            key_id = principal.key_id if reference is None else await self._accounts.keys.find_id(reference, tenant, to_change=False)
        except NotFound:
            # Whoever may see no other key learns nothing of which there are.
            if not administrates:
                raise PermissionDenied.scopes([ADMIN]) from None
            raise
        if key_id != principal.key_id:
            principal.require(ADMIN)
        record = await self._accounts.keys.find(key_id, tenant)
        await exchange.answer(200, orjson.dumps({"key": key_id, "info": await self._desk.key(record)}))

    async def list(self, exchange: Exchange) -> None:
        """Ids of keys, or whole records with return_full_object, a page at a time."""
        _, tenant = self._desk.asked(exchange)
        page, size = number_of(exchange, "page", 1, 10**6), number_of(exchange, "size", 10, MOST_PAGE)
        full = flag_of(exchange, "return_full_object", default=False)
        wanted = {
            name: value
            for name, parameter in (("user", "user_id"), ("team", "team_id"), ("name", "key_alias"))
            if (value := exchange.query(parameter))
        }
        records = await self._accounts.keys.list(tenant)
        found = [record for record in records if all(getattr(record, name) == value for name, value in wanted.items())]
        shown = found[(page - 1) * size : page * size]
        keys: Sequence[Any] = [record.key_id for record in shown]
        if full:
            keys = [await self._desk.key(record) for record in shown]
        body = {"keys": keys, "total_count": len(found), "current_page": page, "total_pages": -(-len(found) // size)}
        await exchange.answer(200, orjson.dumps(body))


def _issued(secret: str, record: KeyRecord, unsupported: Sequence[str]) -> dict[str, Any]:
    return {"key": secret, **key_view(record), **named(unsupported)}


def _scopes(fields: Fields) -> tuple[str, ...]:
    kind = fields.text("key_type") or "default"
    if fields.given("scopes"):
        if fields.given("key_type"):
            fields.wrong("key_type", "cannot stand beside scopes")
        return fields.texts("scopes")
    if kind not in _KINDS:
        fields.wrong("key_type", f"must be one of {', '.join(_KINDS)}")
        return ()
    return _KINDS[kind]


def expiry_of(fields: Fields) -> float:
    """When a key ends that lives for `duration`, in Unix seconds; 0 for never."""
    if fields.text("duration") in (None, NEVER):
        return 0.0
    period = fields.period("duration")
    return time.time() + period.seconds if period is not None else 0.0


def _changed(fields: Fields, old: KeyRecord) -> KeyRecord:
    """The record with what the body names. Notes what is wrong in `fields`."""
    found = changed_in_common(fields, old, "key")
    if fields.given("user_id"):
        found["user"] = fields.required("user_id")
    if fields.given("team_id"):
        found["team"] = fields.text("team_id") or ""
    if fields.given("tier"):
        found["tier"] = fields.required("tier")
    if fields.given("scopes") or fields.given("key_type"):
        found["scopes"] = _scopes(fields)
    if fields.given("duration"):
        found["expires_at"] = expiry_of(fields)
    return replace(old, **found)
