"""Webhooks in Valkey. Functions of a library of their own; one call is one atomic step under one hash tag."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta

import redis.asyncio as redis

from services.common.errors import Overloaded
from services.orchestrator.adapters.decode import text
from services.orchestrator.adapters.sealing import Sealing
from services.orchestrator.adapters.store_due import DueStore
from services.orchestrator.adapters.store_keys import deliveries_key, delivery_key, endpoints_key, message_key, messages_key, tenant_prefix
from services.orchestrator.records import RunRef
from services.orchestrator.webhooks.records import (
    Attempt,
    Delivery,
    DeliveryRef,
    Due,
    Endpoint,
    Message,
    Taken,
    decode_attempt,
    encode_attempt,
)  # fmt: skip

# Messages outlive their last try by a day, so that they can be sent again.
KEPT = timedelta(days=4)
MOST_LOG_ENTRIES = 1_000
MOST_TRIES_KEPT = 32
MESSAGE, ENDPOINT = "webhook", "webhook_endpoint"
DUE = "wh:{wh0}:due"
TENANTS = "wh:{wh0}:tenants"


class ValkeyWebhooks(DueStore):
    """WebhookStore on Valkey."""

    def __init__(self, client: redis.Redis, instance: str, replicas: int = 0, sealing: Sealing | None = None) -> None:
        """As StoreBase; `instance` proves that a try is this process's, `sealing` is as of Store."""
        super().__init__(client, instance, replicas, ("webhook", "due"))
        self.sealing = sealing or Sealing()

    async def enlist(self, tenant: str) -> None:
        """As WebhookStore.enlist."""
        await self._durable("webhook_enlist_v1", [TENANTS], [tenant])

    async def enlisted(self, tenant: str) -> bool:
        """As WebhookStore.enlisted."""
        return bool(await self._ask(self._client.sismember(TENANTS, tenant)))

    async def tenants(self, known: int) -> list[str] | None:
        """As WebhookStore.tenants."""
        if int(await self._ask(self._client.scard(TENANTS))) == known:
            return None
        return [text(tenant) for tenant in await self._ask(self._client.smembers(TENANTS))]

    async def endpoints(self, tenant: str) -> list[Endpoint]:
        """As WebhookStore.endpoints."""
        found = [await self._endpoint(tenant, raw) for raw in await self._ask(self._client.hvals(endpoints_key(tenant)))]
        return sorted(found, key=lambda endpoint: (endpoint.created_ms, endpoint.endpoint_id))

    async def endpoint(self, tenant: str, endpoint_id: str) -> Endpoint | None:
        """As WebhookStore.endpoint."""
        raw = await self._ask(self._client.hget(endpoints_key(tenant), endpoint_id))
        return await self._endpoint(tenant, raw) if raw else None

    async def add(self, tenant: str, endpoint: Endpoint, most: int) -> bool:
        """As WebhookStore.add."""
        args = [endpoint.endpoint_id, await self._packed(tenant, endpoint), most]
        return bool(await self._durable("webhook_add_v1", [endpoints_key(tenant)], args))

    async def replace(self, tenant: str, before: Endpoint, after: Endpoint) -> bool:
        """As WebhookStore.replace."""
        args = [before.endpoint_id, before.raw, await self._packed(tenant, after)]
        return bool(await self._durable("webhook_replace_v1", [endpoints_key(tenant)], args))

    async def remove(self, tenant: str, endpoint_id: str) -> bool:
        """As WebhookStore.remove."""
        keys = [endpoints_key(tenant), deliveries_key(tenant, endpoint_id)]
        return bool(await self._durable("webhook_remove_v1", keys, [endpoint_id]))

    async def fan_out(self, tenant: str, message: Message, endpoint_ids: Sequence[str]) -> bool:
        """As WebhookStore.fan_out."""
        keys = [message_key(tenant, message.message_id), f"{tenant_prefix(tenant)}:hook-n", messages_key(tenant, message.user)]
        for endpoint_id in endpoint_ids:
            keys += [delivery_key(tenant, message.message_id, endpoint_id), deliveries_key(tenant, endpoint_id)]
        (body,) = await self.sealing.seal(RunRef(tenant, "-", message.run_id), [(MESSAGE, message.body)], message.user)
        args = [message.message_id, message.event_type, message.run_id, body, _kept_ms(), MOST_LOG_ENTRIES, *endpoint_ids]
        return bool(await self._durable("webhook_fan_out_v1", keys, args))

    async def note(self, refs: Sequence[DeliveryRef], wait_s: float) -> None:
        """As WebhookStore.note."""
        await self._durable("webhook_note_v1", [DUE], [int(wait_s * 1000), *(ref.encode() for ref in refs)])

    async def due(self, most: int, again_in_s: float) -> list[Due]:
        """As WebhookStore.due."""
        at_ms, found = await self._take_due(DUE, most, again_in_s)
        return [Due(DeliveryRef.decode(reference), at_ms) for reference in found]

    async def leave(self, due: Due, wait_s: float | None) -> None:
        """As WebhookStore.leave."""
        await self._leave_due(DUE, due.ref.encode(), due.at_ms, wait_s)

    async def take(self, ref: DeliveryRef, lease_s: float) -> Taken:
        """As WebhookStore.take."""
        keys = [delivery_key(*ref), message_key(ref.tenant, ref.message_id), endpoints_key(ref.tenant)]
        args = [ref.endpoint_id, self._instance, int(lease_s * 1000)]
        verdict, *rest = await self._ask(self._library.batched("webhook_take_v1", keys, args))
        verdict = text(verdict)
        if verdict != "taken":
            return Taken(verdict, int(rest[0]) / 1000 if rest else 0.0)
        _, stored, sealed, attempt, round_attempt, age_ms, now_ms = rest
        endpoint = await self._endpoint(ref.tenant, stored)
        body = await self.sealing.open(ref.tenant, MESSAGE, sealed)
        if body is None:
            # Its run's user was erased.
            return Taken("ended")
        return Taken(
            verdict, 0.0, endpoint, body, int(attempt), int(round_attempt), int(age_ms) / 1000, int(now_ms)
        )  # fmt: skip

    async def _packed(self, tenant: str, endpoint: Endpoint) -> bytes:
        """As it is stored. Its secrets are the tenant's and no user's."""
        (packed,) = await self.sealing.seal(RunRef(tenant, "-", "-"), [(ENDPOINT, endpoint.encode())], "")
        return packed

    async def _endpoint(self, tenant: str, stored: bytes) -> Endpoint:
        opened = await self.sealing.open(tenant, ENDPOINT, stored)
        if opened is None:
            raise Overloaded("the keys of the tenant's webhooks are gone", reason="ENVELOPE_KEY_MISSING", retry_after_s=60.0)
        return replace(Endpoint.decode(opened), raw=stored)

    async def record(self, ref: DeliveryRef, number: int, attempt: Attempt | None, status: str, wait_s: float) -> bool:
        """As WebhookStore.record."""
        tried = encode_attempt(attempt) if attempt is not None else b""
        args = [self._instance, number, tried, status, int(wait_s * 1000), MOST_TRIES_KEPT]
        return bool(await self._ask(self._library.batched("webhook_record_v1", [delivery_key(*ref)], args)))

    async def delivery(self, ref: DeliveryRef) -> Delivery | None:
        """As WebhookStore.delivery."""
        return _delivery(ref, await self._ask(self._client.hgetall(delivery_key(*ref))))

    async def deliveries(self, tenant: str, endpoint_id: str, before: int, size: int) -> list[tuple[Delivery | None, int]]:
        """As WebhookStore.deliveries."""
        top = f"({before}" if before else "+inf"
        key = deliveries_key(tenant, endpoint_id)
        found = await self._ask(self._client.zrevrangebyscore(key, top, "-inf", start=0, num=size, withscores=True))
        refs = [DeliveryRef(tenant, text(message_id), endpoint_id) for message_id, _ in found]
        pipeline = self._client.pipeline(transaction=False)
        for ref in refs:
            pipeline.hgetall(delivery_key(*ref))
        records = await self._ask(pipeline.execute()) if refs else []
        return [(_delivery(ref, fields), int(score)) for ref, fields, (_, score) in zip(refs, records, found, strict=True)]

    async def again(self, ref: DeliveryRef) -> bool:
        """As WebhookStore.again."""
        keys = [delivery_key(*ref), message_key(ref.tenant, ref.message_id)]
        return bool(await self._durable("webhook_again_v1", keys, [_kept_ms()]))


def _kept_ms() -> int:
    return int(KEPT.total_seconds() * 1000)


def _delivery(ref: DeliveryRef, fields: Mapping[bytes, bytes]) -> Delivery | None:
    if b"status" not in fields:
        return None
    tries = {int(name[4:]): value for name, value in fields.items() if name.startswith(b"try:")}
    return Delivery(
        ref, fields[b"type"].decode(), fields[b"run"].decode(), fields[b"status"].decode(), int(fields[b"created_ms"]),
        int(fields[b"next_ms"]), int(fields[b"attempts"]), tuple(decode_attempt(tries[number]) for number in sorted(tries)),
    )  # fmt: skip
