"""What webhooks keep: endpoints, messages and their deliveries, free of any store or transport."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson

from services.orchestrator.records import RunRef, decode_ref, encode_ref
from services.orchestrator.webhooks.rotation import Secret, valid

# By how a run ended.
EVENT_TYPES: Mapping[str, str] = {"succeeded": "run.finished", "failed": "run.failed", "cancelled": "run.cancelled"}
# Beside the former, where the run ended in human hands.
HANDED_OFF = "run.handed_off"
ALL_EVENT_TYPES = (*EVENT_TYPES.values(), HANDED_OFF)
ENDPOINT_SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where messages of a tenant go. `secrets`: the newest first. `disabled` names why nothing is sent any more."""

    endpoint_id: str
    url: str
    event_types: Sequence[str]
    description: str
    created_ms: int
    secrets: Sequence[Secret] = field(repr=False)
    disabled: str = ""
    disabled_ms: int = 0
    # As it was stored, maybe by a later version with more fields: what a change is compared with.
    raw: bytes = field(default=b"", compare=False, repr=False)

    def encode(self) -> bytes:
        """JSON."""
        return orjson.dumps(
            {
                "schema_version": ENDPOINT_SCHEMA, "id": self.endpoint_id, "url": self.url, "event_types": list(self.event_types),
                "description": self.description, "created_ms": self.created_ms, "secrets": [list(s) for s in self.secrets],
                "disabled": self.disabled, "disabled_ms": self.disabled_ms,
            }
        )  # fmt: skip

    @classmethod
    def decode(cls, raw: bytes) -> "Endpoint":
        """The inverse of `encode`; unknown fields are ignored, so that N reads what N+1 wrote."""
        data = orjson.loads(raw)
        return cls(
            data["id"], data["url"], tuple(data["event_types"]), data["description"], data["created_ms"],
            tuple(Secret(*s[:3]) for s in data["secrets"]), data["disabled"], data["disabled_ms"], raw,
        )  # fmt: skip

    def signing(self, now_ms: int) -> list[str]:
        """The secrets that sign at this time, the newest first."""
        return valid(self.secrets, now_ms)

    def wants(self, event_type: str, ended_ms: int) -> bool:
        """Whether it is told of a run that ended so and then. What ended before the endpoint was made is none of its business."""
        return not self.disabled and event_type in self.event_types and ended_ms >= self.created_ms


class DeliveryRef(NamedTuple):
    """Where a delivery is."""

    tenant: str
    message_id: str
    endpoint_id: str

    @property
    def delivery_id(self) -> str:
        """As callers name it, within their tenant."""
        return f"{self.message_id}:{self.endpoint_id}"

    def encode(self) -> str:
        """As encode_ref."""
        return encode_ref(*self)

    @classmethod
    def decode(cls, text: str) -> "DeliveryRef":
        """The inverse of `encode`. Raises ValueError."""
        return cls(*decode_ref(text, 2))


class Due(NamedTuple):
    """A delivery that somebody should look at, and the date at which it is due again: nobody else's is the same."""

    ref: DeliveryRef
    at_ms: int


@dataclass(frozen=True, slots=True)
class Message:
    """What is sent, the same bytes at each try."""

    message_id: str
    event_type: str
    run_id: str
    body: bytes
    # Whose run it was.
    user: str = ""


class Attempt(NamedTuple):
    """One try: when, how long (ms), the HTTP status (0: none) or why there is none."""

    at_ms: int
    duration_ms: int
    code: int
    error: str = ""


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message on its way to an endpoint. Statuses: pending, delivered, failed, dropped."""

    ref: DeliveryRef
    event_type: str
    run_id: str
    status: str
    created_ms: int
    next_ms: int
    attempt_count: int
    attempts: Sequence[Attempt] = field(default=())


@dataclass(frozen=True, slots=True)
class Taken:
    """What came of taking a delivery: taken, early (`wait_s` is left), ended or none.

    `round_attempt` counts tries since the message was made or sent again, this one included, and `round_age_s` is the time since.
    """

    verdict: str
    wait_s: float = 0.0
    endpoint: Endpoint | None = None
    body: bytes = b""
    attempt: int = 0
    round_attempt: int = 0
    round_age_s: float = 0.0
    now_ms: int = 0


def message_id_of(ref: RunRef, about: str = "") -> str:
    """The webhook-id of a run's end, or of what else it tells `about`: the same whoever makes the message, and however often."""
    name = "\n".join((ref.tenant, ref.thread_id, ref.run_id, *([about] if about else [])))
    return f"msg_{hashlib.sha256(name.encode()).hexdigest()[:32]}"


def decode_attempt(raw: bytes) -> Attempt:
    """The inverse of `encode_attempt`."""
    found: list[Any] = orjson.loads(raw)
    return Attempt(*found[:4])


def encode_attempt(attempt: Attempt) -> bytes:
    """JSON."""
    return orjson.dumps(list(attempt))
