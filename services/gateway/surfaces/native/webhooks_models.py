"""Bodies, answers and shapes of /v1/webhooks."""

from typing import Annotated, Any, Literal

from bulkhead.orchestrator.v1 import webhooks_pb2 as pb
from pydantic import Field

from services.gateway.surfaces.native.models import Body
from services.gateway.surfaces.native.outputs import Out
from services.gateway.surfaces.native.shapes import moment

MOST_OVERLAP_MS = 7 * 86_400_000
EventType = Literal["run.finished", "run.failed", "run.cancelled", "run.handed_off"]
_STATUS = {
    pb.DELIVERY_STATUS_PENDING: "pending",
    pb.DELIVERY_STATUS_DELIVERED: "delivered",
    pb.DELIVERY_STATUS_FAILED: "failed",
    pb.DELIVERY_STATUS_DROPPED: "dropped",
}


class WebhookCreate(Body):
    """A new endpoint."""

    url: Annotated[str, Field(min_length=1, max_length=2048, description="https, of a public host, without user and fragment.")]
    event_types: Annotated[list[EventType], Field(min_length=1, max_length=4)]
    description: Annotated[str, Field(max_length=256)] = ""


class WebhookRotate(Body):
    """How a secret is replaced."""

    overlap_ms: Annotated[int, Field(ge=0, le=MOST_OVERLAP_MS, description="How long the secret until now signs as well.")] | None = Field(
        None, description="Absent: 24 hours."
    )


class WebhookOut(Out):
    """An endpoint."""

    webhook_id: str
    url: str
    event_types: list[str]
    description: str
    created_at: str | None
    disabled_reason: str | None
    disabled_at: str | None
    earlier_secret_until: str | None


class WebhookSecretOut(WebhookOut):
    """An endpoint with its secret, which no other answer has."""

    secret: str


class WebhookPage(Out):
    """All endpoints of the tenant, oldest first."""

    data: list[WebhookOut]
    next_after: str | None


class AttemptOut(Out):
    """One try to deliver; without a `response_code` there was no answer, and `error` says why."""

    started_at: str | None
    duration_ms: int
    response_code: int | None
    error: str | None


class DeliveryOut(Out):
    """One message on its way to one endpoint."""

    delivery_id: str
    webhook_id: str
    message_id: str
    event_type: str
    run_id: str
    status: Literal["pending", "delivered", "failed", "dropped"]
    created_at: str | None
    next_attempt_at: str | None
    attempt_count: int
    attempts: list[AttemptOut]


class DeliveryPage(Out):
    """Deliveries, newest first."""

    data: list[DeliveryOut]
    next_after: str | None


def webhook(message: pb.Webhook) -> dict[str, Any]:
    """An endpoint."""
    return {
        "webhook_id": message.webhook_id,
        "url": message.url,
        "event_types": list(message.event_types),
        "description": message.description,
        "created_at": moment(message, "created_at"),
        "disabled_reason": message.disabled_reason or None,
        "disabled_at": moment(message, "disabled_at"),
        "earlier_secret_until": moment(message, "earlier_secret_until"),
    }


def delivery(message: pb.Delivery) -> dict[str, Any]:
    """One message on its way."""
    return {
        "delivery_id": message.delivery_id,
        "webhook_id": message.webhook_id,
        "message_id": message.message_id,
        "event_type": message.event_type,
        "run_id": message.run_id,
        "status": _STATUS[message.status],
        "created_at": moment(message, "created_at"),
        "next_attempt_at": moment(message, "next_attempt_at"),
        "attempt_count": message.attempt_count,
        "attempts": [_attempt(attempt) for attempt in message.attempts],
    }


def _attempt(message: pb.DeliveryAttempt) -> dict[str, Any]:
    return {
        "started_at": moment(message, "started_at"),
        "duration_ms": message.duration.ToMilliseconds(),
        "response_code": message.response_code or None,
        "error": message.error or None,
    }
