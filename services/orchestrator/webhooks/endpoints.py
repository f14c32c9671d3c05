"""What callers may do with webhooks: endpoints, their secrets, and what was delivered to them."""

import asyncio
import hashlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

import orjson

from services.common.errors import Conflict, FieldViolation, InvalidInput, NotFound, QuotaExceeded
from services.common.idempotency import IdempotencyStore, fingerprint, key_of, key_violations
from services.common.identity import Principal
from services.orchestrator.webhooks.announcing import KNOWN_FOR_S
from services.orchestrator.webhooks.ports import Sender, SendFailed, WebhookStore
from services.orchestrator.webhooks.records import ALL_EVENT_TYPES, Delivery, DeliveryRef, Endpoint
from services.orchestrator.webhooks.rotation import DEFAULT_OVERLAP, Secret, ending, made_by, mark_of, overlap_violations
from services.orchestrator.webhooks.signing import new_secret
from services.orchestrator.webhooks.targets import checked, parsed

MOST_ENDPOINTS = 20
MOST_DESCRIPTION = 256
# More signatures than these make the header too long for some receivers.
MOST_SECRETS = 4
RESOLVE_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class EndpointRequest:
    """What a caller asks for."""

    url: str
    event_types: Sequence[str]
    description: str = ""
    idempotency_key: str = ""

    def fingerprint(self) -> str:
        """Digest of all but the idempotency key."""
        return fingerprint("CreateWebhook", orjson.dumps([self.url, sorted(self.event_types), self.description]))


class Endpoints:
    """The use cases. Endpoints are the tenant's: each of its callers with the scope sees all of them."""

    def __init__(
        self, store: WebhookStore, sender: Sender, keys: IdempotencyStore, allow_private: bool, known_for_s: float = KNOWN_FOR_S
    ) -> None:
        self._store, self._sender, self._keys, self._allow_private, self._known_for_s = store, sender, keys, allow_private, known_for_s

    async def create(self, principal: Principal, request: EndpointRequest) -> tuple[Endpoint, str]:
        """Makes an endpoint; answers it and its secret.

        Raises InvalidInput, QuotaExceeded, IdempotencyMismatch, Conflict (also WEBHOOK_SECRET_REPLACED: the key has made one whose secret
        has ended since), Overloaded.
        """
        tenant = principal.tenant
        violations = [*await self._url(request.url), *_words(request), *key_violations(request.idempotency_key)]
        if violations:
            raise InvalidInput("the request is not valid", violations=violations)
        key = key_of(principal.user, request.idempotency_key)
        claim = await self._keys.begin(tenant, "CreateWebhook", key, request.fingerprint())
        by = mark_of(claim, request.fingerprint())
        if claim.answer is not None:
            endpoint = await self.get(principal, claim.answer.decode())
            return endpoint, _secret_of(endpoint, by, await self._store.now_ms())
        # A process that died after it had made the endpoint and before it could say so leaves it where this one finds it.
        name = hashlib.sha256(f"{tenant}\n{claim.key}\n{request.fingerprint()}".encode()).hexdigest() if key else uuid.uuid4().hex
        endpoint_id = f"whk_{name[:32]}"
        endpoint = await self._store.endpoint(tenant, endpoint_id)
        if endpoint is None:
            await self._store.enlist(tenant)
            if not await self._store.endpoints(tenant):
                # Every replica has heard by then that the tenant's runs are to be told. Who else enlisted it, and when, says nothing of
                # that; whoever has made an endpoint has waited.
                await asyncio.sleep(self._known_for_s)
            now_ms = await self._store.now_ms()
            types = [name for name in ALL_EVENT_TYPES if name in request.event_types]
            endpoint = Endpoint(endpoint_id, request.url, types, request.description, now_ms, (Secret(new_secret(), by=by),))
            if not await self._store.add(tenant, endpoint, MOST_ENDPOINTS):
                await self._keys.abandon(claim)
                raise QuotaExceeded(
                    f"the tenant has {MOST_ENDPOINTS} webhooks, which is the limit",
                    metadata={"policy": "webhooks", "limit": str(MOST_ENDPOINTS)},
                )
        await self._keys.finish(claim, endpoint_id.encode())
        return endpoint, _secret_of(endpoint, by, await self._store.now_ms())

    async def _url(self, url: str) -> list[FieldViolation]:
        try:
            target = parsed(url, self._allow_private)
            async with asyncio.timeout(RESOLVE_TIMEOUT_S):
                await checked(self._sender, target, self._allow_private)
        except ValueError as error:
            return [FieldViolation("url", str(error))]
        except TimeoutError:
            return [FieldViolation("url", "names a host that could not be looked up in time")]
        except SendFailed as failed:
            # Which address it was is not told: names of the inside are nobody's business.
            wrong = "names a host that is not known" if failed.error == "unknown_host" else "leads to an address that is not public"
            return [FieldViolation("url", wrong)]
        return []

    async def get(self, principal: Principal, endpoint_id: str) -> Endpoint:
        """One endpoint of the tenant. Raises NotFound, Overloaded."""
        endpoint = await self._store.endpoint(principal.tenant, endpoint_id)
        if endpoint is None:
            raise NotFound("there is no such webhook", reason="WEBHOOK_NOT_FOUND")
        return endpoint

    async def of_tenant(self, principal: Principal) -> list[Endpoint]:
        """All endpoints of the tenant, oldest first."""
        return await self._store.endpoints(principal.tenant)

    async def delete(self, principal: Principal, endpoint_id: str, key: str) -> None:
        """Removes an endpoint. Raises NotFound, InvalidInput, IdempotencyMismatch, Overloaded."""
        if violations := key_violations(key):
            raise InvalidInput("the request is not valid", violations=violations)
        key = key_of(principal.user, key)
        claim = await self._keys.begin(principal.tenant, "DeleteWebhook", key, fingerprint(endpoint_id), when_full=True)
        if claim.answer is not None:
            return
        if not await self._store.remove(principal.tenant, endpoint_id):
            await self._keys.abandon(claim)
            raise NotFound("there is no such webhook", reason="WEBHOOK_NOT_FOUND")
        await self._keys.finish(claim, b"1")

    async def rotate(self, principal: Principal, endpoint_id: str, overlap: timedelta | None, key: str) -> tuple[Endpoint, str]:
        """Makes a new secret, beside which the ones until now sign for `overlap`; answers the endpoint and the secret.

        Raises NotFound, InvalidInput, IdempotencyMismatch, Conflict (also WEBHOOK_SECRET_REPLACED as in `create`), Overloaded.
        """
        if violations := [*key_violations(key), *overlap_violations(overlap)]:
            raise InvalidInput("the request is not valid", violations=violations)
        lasts = DEFAULT_OVERLAP if overlap is None else overlap
        key = key_of(principal.user, key)
        print_ = fingerprint(endpoint_id, str(lasts.total_seconds()))
        claim = await self._keys.begin(principal.tenant, "RotateWebhookSecret", key, print_)
        by = mark_of(claim, print_)
        while True:
            after = before = await self._store.endpoint(principal.tenant, endpoint_id)
            if before is None or after is None:
                if claim.answer is None:
                    await self._keys.abandon(claim)
                raise NotFound("there is no such webhook", reason="WEBHOOK_NOT_FOUND")
            now_ms = await self._store.now_ms()
            # Made before, maybe by a process that died before it could say so: once more, and earlier ones would end too soon.
            if claim.answer is not None or (by and any(one.by == by for one in before.secrets)):
                break
            kept = ending(before.secrets, lasts, now_ms)[: MOST_SECRETS - 1]
            after = replace(before, secrets=(Secret(new_secret(), by=by), *kept))
            if await self._store.replace(principal.tenant, before, after):
                break
        if claim.answer is None:
            await self._keys.finish(claim, b"1")
        return after, _secret_of(after, by, now_ms)

    async def deliveries(self, principal: Principal, endpoint_id: str, before: int, size: int) -> list[tuple[Delivery | None, int]]:
        """The delivery log, newest first, as WebhookStore.deliveries. Raises NotFound, Overloaded."""
        await self.get(principal, endpoint_id)
        return await self._store.deliveries(principal.tenant, endpoint_id, before, size)

    async def redeliver(self, principal: Principal, delivery_id: str, key: str) -> Delivery:
        """Sends a message again. Raises NotFound, Conflict (out of service), InvalidInput, IdempotencyMismatch, Overloaded."""
        message_id, _, endpoint_id = delivery_id.partition(":")
        if violations := key_violations(key):
            raise InvalidInput("the request is not valid", violations=violations)
        endpoint = await self._store.endpoint(principal.tenant, endpoint_id)
        ref = DeliveryRef(principal.tenant, message_id, endpoint_id)
        if endpoint is None:
            raise NotFound("there is no such delivery", reason="DELIVERY_NOT_FOUND")
        if endpoint.disabled:
            raise Conflict("the webhook is out of service", reason="WEBHOOK_DISABLED")
        key = key_of(principal.user, key)
        claim = await self._keys.begin(principal.tenant, "Redeliver", key, fingerprint(delivery_id))
        if claim.answer is None:
            if not await self._store.again(ref):
                await self._keys.abandon(claim)
                raise NotFound("there is no such delivery", reason="DELIVERY_NOT_FOUND")
            await self._store.note([ref], 0.0)
            await self._keys.finish(claim, b"1")
        delivery = await self._store.delivery(ref)
        if delivery is None:
            raise NotFound("there is no such delivery", reason="DELIVERY_NOT_FOUND")
        return delivery


def _secret_of(endpoint: Endpoint, by: str, now_ms: int) -> str:
    """The secret that was made under a key, or the newest. Raises Conflict where it was replaced since."""
    # A version before this one kept no marks.
    marked = any(one.by for one in endpoint.secrets)
    secret = made_by(endpoint.secrets, by, now_ms) if by and marked else endpoint.secrets[0].secret
    if secret is None:
        raise Conflict("the secret that was made under this idempotency key has ended since", reason="WEBHOOK_SECRET_REPLACED")
    return secret


def _words(request: EndpointRequest) -> list[FieldViolation]:
    found = []
    if not request.event_types:
        found.append(FieldViolation("event_types", "must hold at least one type"))
    known = set(ALL_EVENT_TYPES)
    if set(request.event_types) - known or len(set(request.event_types)) != len(request.event_types):
        found.append(FieldViolation("event_types", f"must be different ones of {', '.join(sorted(known))}"))
    if len(request.description) > MOST_DESCRIPTION:
        found.append(FieldViolation("description", f"must be at most {MOST_DESCRIPTION} characters"))
    return found
