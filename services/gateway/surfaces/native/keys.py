"""API keys of the tenant: made, shown, rotated and ended by callers of the API, none of whom gets more than they have."""

import base64
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Annotated

import structlog
from fastapi import APIRouter, Query
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from services.common.accounts import Asked, DoneBefore, KeyRecord, LimitSet, digest_of
from services.common.audit import CHANGED, ENDED, MADE, ROTATED
from services.common.errors import InvalidInput, PermissionDenied
from services.common.idempotency import fingerprint
from services.common.identity import Principal
from services.common.limits import TierPolicy
from services.common.rpc import context as call_context
from services.gateway.edge.admission import credential
from services.gateway.edge.exchange import exchange
from services.gateway.edge.keyed import REPLAYED, request_print
from services.gateway.edge.route import idempotency_key, needs
from services.gateway.surfaces.native import keys_reach as reach
from services.gateway.surfaces.native import shapes
from services.gateway.surfaces.native.keys_models import KeyCreate, KeyOut, KeyPage, KeyRotate, KeySecretOut, KeyUpdate, key
from services.gateway.surfaces.native.models import After, IdPath, Limit
from services.gateway.surfaces.native.routing import answers, native_router
from services.gateway.surfaces.wiring import Wiring

READ, WRITE = "keys:read", "keys:write"
# No cache may keep an answer that has a secret in it.
_SECRET = {"cache-control": "no-store"}
User = Annotated[str, Query(max_length=128, description="Keys of this user alone.")]
log = structlog.get_logger("bulkhead.keys")


class ApiKeys:
    """/v1/keys"""

    def __init__(self, wiring: Wiring) -> None:
        self._keys = wiring.accounts.keys
        self._audit = wiring.key_audit
        self._policies = wiring.policies
        self._policy_set = wiring.settings.policy_set

    def router(self) -> APIRouter:
        """Routes."""
        router = native_router("keys")
        one = "/v1/keys/{key_id}"
        made = answers(KeySecretOut, 201, "Made; the secret is in this answer and in no other.")
        router.add_api_route("/v1/keys", self.create, methods=["POST"], status_code=201, responses=made)
        router.add_api_route("/v1/keys", self.list, methods=["GET"], responses=answers(KeyPage))
        router.add_api_route(one, self.get, methods=["GET"], responses=answers(KeyOut))
        router.add_api_route(one, self.update, methods=["PATCH"], responses=answers(KeyOut))
        router.add_api_route(one, self.delete, methods=["DELETE"], status_code=204, responses=answers(None, 204, "Ended."))
        router.add_api_route(f"{one}/rotate", self.rotate, methods=["POST"], responses=answers(KeySecretOut))
        return router

    @needs(WRITE, body="json")
    async def create(self, request: Request, body: KeyCreate) -> Response:
        """Makes a key that may do nothing that the caller may not, and not for longer. Its secret is told this once.

        With an idempotency key that was used before, the key is answered as it is, and `secret` is null.
        """
        who = call_context.principal()
        own = await self._keys.current(who.key_id) if who.key_id else None
        maker = reach.maker_of(who, own, time.time())
        record = KeyRecord(
            "", who.tenant, body.user or who.user, who.team, body.tier or who.tier, tuple(dict.fromkeys(body.scopes)), name=body.name,
            expires_at=body.expires_at.timestamp() if body.expires_at else maker.ends_at, limits=LimitSet(models=maker.limits.models),
            made_by=who.key_id,
        )  # fmt: skip
        record.check()

        def allow(own: KeyRecord | None, record: KeyRecord) -> None:
            if body.expires_at is not None and record.expires_at <= time.time():
                raise InvalidInput.field("expires_at", "must lie ahead")
            if record.user != who.user:
                who.require(reach.ADMIN)
            tiers = self._tiers()
            reach.require_tier(record.tier, who, tiers)
            reach.require_reach(reach.maker_of(who, own, time.time()), record, tiers)

        secret: str | None = None
        asked = _asked(request, who, body, allow)
        try:
            issued = await self._keys.create(record, asked=asked)
            record, secret = issued.record, issued.secret
            log.info("key_made", tenant=who.tenant, key_id=record.key_id, made_by=who.key_id)
        except DoneBefore as done:
            record = await self._again(request, who, done)
        await self._note(request, MADE, record, asked)
        headers = {**_SECRET, **shapes.location("/v1/keys", record.key_id)}
        return shapes.reply({**key(record), "secret": secret}, 201, headers)

    @needs(READ)
    async def list(self, request: Request, user: User = "", limit: Limit = 100, after: After = "") -> Response:
        """The caller's keys, oldest first, without their secrets; with `admin` those of the whole tenant."""
        who, start = call_context.principal(), _position(after)
        seen = [one for one in await self._keys.list(who.tenant) if _sees(who, one) and (not user or one.user == user)]
        rest = [one for one in seen if _place(one) > start] if start else seen
        shown = rest[:limit]
        return shapes.page(request, map(key, shown), _cursor(shown[-1]) if len(rest) > limit else "")

    @needs(READ)
    async def get(self, request: Request, key_id: IdPath) -> Response:
        """One key, without its secret."""
        return shapes.reply(key(await self._seen(call_context.principal(), key_id)))

    @needs(WRITE, body="json")
    async def update(self, request: Request, key_id: IdPath, body: KeyUpdate) -> Response:
        """Renames a key, or ends it earlier. What a key may do is never changed: make another one."""
        who = call_context.principal()
        # 0 would be never.
        ends_at = max(1.0, body.expires_at.timestamp()) if body.expires_at is not None else 0.0

        def change(old: KeyRecord) -> KeyRecord:
            if ends_at and old.expires_at and ends_at > old.expires_at:
                raise PermissionDenied("a key is not prolonged: make another one", reason="KEY_OUTLASTS_ITSELF")
            return replace(old, name=old.name if body.name is None else body.name, expires_at=ends_at or old.expires_at)

        asked = _asked(request, who, body, _hold(who))
        try:
            record = await self._keys.update(key_id, who.tenant, change, asked=asked)
        except DoneBefore as done:
            record = await self._again(request, who, done)
        await self._note(request, CHANGED, record, asked)
        return shapes.reply(key(record))

    @needs(WRITE)
    async def delete(self, request: Request, key_id: IdPath) -> Response:
        """Ends a key, with each of its secrets, at once and in every replica. A key may end itself."""
        who = call_context.principal()
        asked = _asked(request, who, None, _hold(who))
        try:
            record = await self._keys.delete(key_id, who.tenant, asked=asked)
            log.info("key_ended", tenant=who.tenant, key_id=key_id, ended_by=who.key_id)
            await self._note(request, ENDED, record, asked)
        except DoneBefore:
            exchange(request).answer(REPLAYED, "true")
        return Response(status_code=204)

    @needs(WRITE, body="json")
    async def rotate(self, request: Request, key_id: IdPath, body: KeyRotate | None = None) -> Response:
        """Makes a new secret for the same key, and tells it this once. The one until now ends with the overlap, at once without.

        Without an overlap earlier secrets end as well, whatever overlap they had. With an idempotency key that was used before, the key is
        answered as it is, and `secret` is null.
        """
        who, body = call_context.principal(), body or KeyRotate()

        def allow(own: KeyRecord | None, record: KeyRecord) -> None:
            reach.require_reach(reach.maker_of(who, own, time.time()), record, self._tiers())

        grace = timedelta(milliseconds=body.overlap_ms) if body.overlap_ms else None
        secret: str | None = None
        asked = _asked(request, who, body, allow)
        try:
            issued = await self._keys.rotate(key_id, who.tenant, grace=grace, asked=asked)
            record, secret = issued.record, issued.secret
            log.info("key_rotated", tenant=who.tenant, key_id=key_id, rotated_by=who.key_id)
        except DoneBefore as done:
            record = await self._again(request, who, done)
        await self._note(request, ROTATED, record, asked)
        return shapes.reply({**key(record), "secret": secret}, headers=_SECRET)

    async def _note(self, request: Request, action: str, record: KeyRecord, asked: Asked) -> None:
        # Of a request that comes again: its first may have ended between the change and the record.
        about = exchange(request)
        await self._audit.append(call_context.principal(), action, record, request_id=about.request_id, once=asked.once)

    async def _seen(self, who: Principal, key_id: str) -> KeyRecord:
        record = await self._keys.find(key_id, who.tenant)
        reach.require_seen(who, record)
        return record

    async def _again(self, request: Request, who: Principal, done: DoneBefore) -> KeyRecord:
        exchange(request).answer(REPLAYED, "true")
        return await self._seen(who, done.key_id)

    def _tiers(self) -> Mapping[str, TierPolicy]:
        return self._policies.current.sets[self._policy_set]


def _hold(who: Principal) -> Callable[[KeyRecord | None, KeyRecord], None]:
    def allow(own: KeyRecord | None, record: KeyRecord) -> None:
        reach.require_hold(own.principal() if own is not None else who, record)

    return allow


def _asked(request: Request, who: Principal, body: BaseModel | None, allow: Callable[[KeyRecord | None, KeyRecord], None]) -> Asked:
    """The request as accounts look at it. Its idempotency key is of the user and route."""
    wanted = body.model_dump(mode="json", exclude_defaults=True) if body is not None else {}
    once = idempotency_key(request)
    route = f"{request.method} {request.scope['route'].path}"
    return Asked(
        who.tenant, allow, who.key_id, digest_of(credential(exchange(request).headers)) if who.key_id else "",
        fingerprint(route, who.user, once) if once else "", request_print(request.scope["path"], b"", wanted),
    )  # fmt: skip


def _sees(who: Principal, record: KeyRecord) -> bool:
    return record.user == who.user or not who.missing([reach.ADMIN])


def _place(record: KeyRecord) -> tuple[float, str]:
    return record.created_at, record.key_id


def _cursor(record: KeyRecord) -> str:
    return base64.urlsafe_b64encode(f"{record.created_at!r} {record.key_id}".encode()).decode()


def _position(after: str) -> tuple[float, str] | None:
    if not after:
        return None
    try:
        moment, _, key_id = base64.b64decode(after, altchars=b"-_", validate=True).decode("ascii").partition(" ")
        if math.isfinite(place := float(moment)):
            return place, key_id
    except ValueError:
        pass
    raise InvalidInput.field("after", "must be the next_after of an earlier page")
