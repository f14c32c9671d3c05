"""Webhooks: endpoints of the tenant and what was delivered to them."""

from bulkhead.orchestrator.v1 import webhooks_pb2 as pb
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from services.gateway.edge.route import idempotency_key, needs
from services.gateway.surfaces.native import shapes
from services.gateway.surfaces.native.models import After, IdPath, Limit
from services.gateway.surfaces.native.routing import answers, native_router
from services.gateway.surfaces.native.webhooks_models import (
    DeliveryOut,
    DeliveryPage,
    WebhookCreate,
    WebhookOut,
    WebhookPage,
    WebhookRotate,
    WebhookSecretOut,
    delivery,
    webhook,
)
from services.gateway.surfaces.wiring import Wiring

READ, WRITE = "webhooks:read", "webhooks:write"
# No cache may keep an answer that has a secret in it.
_SECRET = {"cache-control": "no-store"}


class Webhooks:
    """/v1/webhooks"""

    def __init__(self, wiring: Wiring) -> None:
        self._webhooks = wiring.backends.webhooks

    def router(self) -> APIRouter:
        """Routes."""
        router = native_router("webhooks")
        one = "/v1/webhooks/{webhook_id}"
        made = answers(WebhookSecretOut, 201, "Made; the secret is in this answer and in no other.")
        router.add_api_route("/v1/webhooks", self.create, methods=["POST"], status_code=201, responses=made)
        router.add_api_route("/v1/webhooks", self.list, methods=["GET"], responses=answers(WebhookPage))
        router.add_api_route(one, self.get, methods=["GET"], responses=answers(WebhookOut))
        router.add_api_route(one, self.delete, methods=["DELETE"], status_code=204, responses=answers(None, 204, "Deleted."))
        router.add_api_route(f"{one}/rotate", self.rotate, methods=["POST"], responses=answers(WebhookSecretOut))
        router.add_api_route(f"{one}/deliveries", self.deliveries, methods=["GET"], responses=answers(DeliveryPage))
        again = answers(DeliveryOut, 202, "Pending; Location leads to the log.")
        router.add_api_route("/v1/deliveries/{delivery_id}/redeliver", self.redeliver, methods=["POST"], status_code=202, responses=again)
        return router

    @needs(WRITE, body="json")
    async def create(self, request: Request, body: WebhookCreate) -> Response:
        """Makes an endpoint. Every run of the tenant that ends from then on is told to it."""
        asked = pb.CreateWebhookRequest(
            url=body.url, event_types=body.event_types, description=body.description, idempotency_key=idempotency_key(request)
        )
        answer = await self._webhooks.CreateWebhook(asked)
        headers = {**_SECRET, **shapes.location("/v1/webhooks", answer.webhook.webhook_id)}
        return shapes.reply({**webhook(answer.webhook), "secret": answer.secret}, 201, headers)

    @needs(READ)
    async def list(self, request: Request) -> Response:
        """All endpoints of the tenant, oldest first, at most 20, without their secrets."""
        answer = await self._webhooks.ListWebhooks(pb.ListWebhooksRequest())
        return shapes.page(request, map(webhook, answer.webhooks), "")

    @needs(READ)
    async def get(self, request: Request, webhook_id: IdPath) -> Response:
        """One endpoint, without its secret."""
        answer = await self._webhooks.GetWebhook(pb.GetWebhookRequest(webhook_id=webhook_id))
        return shapes.reply(webhook(answer.webhook))

    @needs(WRITE)
    async def delete(self, request: Request, webhook_id: IdPath) -> Response:
        """Removes an endpoint with its log. What was not delivered is dropped."""
        await self._webhooks.DeleteWebhook(pb.DeleteWebhookRequest(webhook_id=webhook_id, idempotency_key=idempotency_key(request)))
        return Response(status_code=204)

    @needs(WRITE, body="json")
    async def rotate(self, request: Request, webhook_id: IdPath, body: WebhookRotate | None = None) -> Response:
        """Makes a new secret. The one until now signs beside it until the overlap ends."""
        asked = pb.RotateWebhookSecretRequest(webhook_id=webhook_id, idempotency_key=idempotency_key(request))
        if body is not None and body.overlap_ms is not None:
            asked.overlap.FromMilliseconds(body.overlap_ms)
        answer = await self._webhooks.RotateWebhookSecret(asked)
        return shapes.reply({**webhook(answer.webhook), "secret": answer.secret}, headers=_SECRET)

    @needs(READ)
    async def deliveries(self, request: Request, webhook_id: IdPath, limit: Limit = 100, after: After = "") -> Response:
        """The delivery log of an endpoint, newest first."""
        asked = pb.ListDeliveriesRequest(webhook_id=webhook_id, page_size=limit, page_token=after)
        answer = await self._webhooks.ListDeliveries(asked)
        return shapes.page(request, map(delivery, answer.deliveries), answer.next_page_token)

    @needs(WRITE)
    async def redeliver(self, request: Request, delivery_id: IdPath) -> Response:
        """Sends a message again at once, under the same webhook-id."""
        asked = pb.RedeliverRequest(delivery_id=delivery_id, idempotency_key=idempotency_key(request))
        found = (await self._webhooks.Redeliver(asked)).delivery
        return shapes.reply(delivery(found), 202, {"location": f"/v1/webhooks/{found.webhook_id}/deliveries"})
