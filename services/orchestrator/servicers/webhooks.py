"""WebhookService."""

from bulkhead.orchestrator.v1 import webhooks_pb2 as pb
from bulkhead.orchestrator.v1 import webhooks_pb2_grpc as rpc

from services.common.rpc.context import principal
from services.orchestrator.servicer import page, page_token
from services.orchestrator.webhooks.endpoints import EndpointRequest, Endpoints
from services.orchestrator.webhooks.records import Delivery, Endpoint

READ, WRITE = "webhooks:read", "webhooks:write"
_STATUS = {
    "pending": pb.DELIVERY_STATUS_PENDING, "delivered": pb.DELIVERY_STATUS_DELIVERED, "failed": pb.DELIVERY_STATUS_FAILED,
    "dropped": pb.DELIVERY_STATUS_DROPPED,
}  # fmt: skip


def webhook_message(endpoint: Endpoint) -> pb.Webhook:
    """An endpoint as it travels: without its secrets."""
    message = pb.Webhook(
        webhook_id=endpoint.endpoint_id, url=endpoint.url, event_types=endpoint.event_types, description=endpoint.description,
        disabled_reason=endpoint.disabled,
    )  # fmt: skip
    message.created_at.FromMilliseconds(endpoint.created_ms)
    if endpoint.disabled_ms:
        message.disabled_at.FromMilliseconds(endpoint.disabled_ms)
    if until_ms := max(secret.until_ms for secret in endpoint.secrets):
        message.earlier_secret_until.FromMilliseconds(until_ms)
    return message


def delivery_message(delivery: Delivery) -> pb.Delivery:
    """A delivery as it travels."""
    ref = delivery.ref
    message = pb.Delivery(
        delivery_id=ref.delivery_id, webhook_id=ref.endpoint_id, message_id=ref.message_id, event_type=delivery.event_type,
        run_id=delivery.run_id, status=_STATUS[delivery.status], attempt_count=delivery.attempt_count,
    )  # fmt: skip
    message.created_at.FromMilliseconds(delivery.created_ms)
    if delivery.status == "pending":
        message.next_attempt_at.FromMilliseconds(delivery.next_ms)
    for attempt in delivery.attempts:
        tried = message.attempts.add(response_code=attempt.code, error=attempt.error)
        tried.started_at.FromMilliseconds(attempt.at_ms)
        tried.duration.FromMilliseconds(attempt.duration_ms)
    return message


class WebhookServicer(rpc.WebhookServiceServicer):
    """Webhooks of the caller's tenant."""

    def __init__(self, endpoints: Endpoints) -> None:
        self._endpoints = endpoints

    async def CreateWebhook(self, request, context):
        """Makes an endpoint."""
        caller = principal()
        caller.require(WRITE)
        asked = EndpointRequest(request.url, tuple(request.event_types), request.description, request.idempotency_key)
        endpoint, secret = await self._endpoints.create(caller, asked)
        return pb.CreateWebhookResponse(webhook=webhook_message(endpoint), secret=secret)

    async def ListWebhooks(self, request, context):
        """All endpoints."""
        caller = principal()
        caller.require(READ)
        return pb.ListWebhooksResponse(webhooks=[webhook_message(e) for e in await self._endpoints.of_tenant(caller)])

    async def GetWebhook(self, request, context):
        """One endpoint."""
        caller = principal()
        caller.require(READ)
        return pb.GetWebhookResponse(webhook=webhook_message(await self._endpoints.get(caller, request.webhook_id)))

    async def DeleteWebhook(self, request, context):
        """Removes an endpoint."""
        caller = principal()
        caller.require(WRITE)
        await self._endpoints.delete(caller, request.webhook_id, request.idempotency_key)
        return pb.DeleteWebhookResponse()

    async def RotateWebhookSecret(self, request, context):
        """Makes a new secret."""
        caller = principal()
        caller.require(WRITE)
        overlap = request.overlap.ToTimedelta() if request.HasField("overlap") else None
        endpoint, secret = await self._endpoints.rotate(caller, request.webhook_id, overlap, request.idempotency_key)
        return pb.RotateWebhookSecretResponse(webhook=webhook_message(endpoint), secret=secret)

    async def ListDeliveries(self, request, context):
        """The delivery log of an endpoint, newest first."""
        caller = principal()
        caller.require(READ)
        size, before = page(request.page_size, request.page_token)
        found = await self._endpoints.deliveries(caller, request.webhook_id, before, size + 1)
        token = page_token(found[size - 1][1]) if len(found) > size else ""
        deliveries = [delivery_message(delivery) for delivery, _ in found[:size] if delivery is not None]
        return pb.ListDeliveriesResponse(deliveries=deliveries, next_page_token=token)

    async def Redeliver(self, request, context):
        """Sends a message again."""
        caller = principal()
        caller.require(WRITE)
        delivery = await self._endpoints.redeliver(caller, request.delivery_id, request.idempotency_key)
        return pb.RedeliverResponse(delivery=delivery_message(delivery))
