"""Bodies, answers and shapes of /v1/keys."""

import time
from typing import Annotated, Any

from google.protobuf.timestamp_pb2 import Timestamp
from pydantic import Field, StringConstraints

from services.common.accounts import KeyRecord
from services.gateway.surfaces.native.models import Body, Moment
from services.gateway.surfaces.native.outputs import Out
from services.gateway.surfaces.native.shapes import rfc3339

MOST_OVERLAP_MS = 7 * 86_400_000
MOST_SCOPES = 64
Scope = Annotated[str, StringConstraints(pattern=r"^[!-~]{1,128}$")]
Text = Annotated[str, Field(max_length=256, description="Printable characters; need not be unique.")]


class KeyCreate(Body):
    """A new key of the caller's tenant and team."""

    scopes: Annotated[list[Scope], Field(max_length=MOST_SCOPES, description="What the key may do; the caller must hold each.")]
    name: Text = ""
    user: Annotated[str, Field(min_length=1, max_length=128)] | None = Field(
        None, description="Whom the key acts for. Absent: the caller. Anybody else takes `admin`."
    )
    tier: Annotated[str, Field(min_length=1, max_length=128)] | None = Field(
        None, description="Absent: the caller's. Another one must allow nothing that the caller's does not."
    )
    expires_at: Moment | None = Field(
        None, description="RFC 3339 with a time zone, not after the end of the caller's key. Absent: that end. By a token: within 30 days."
    )


class KeyUpdate(Body):
    """What is to be changed; what is absent stays."""

    name: Text | None = None
    expires_at: Moment | None = Field(None, description="Earlier than it is. The past ends the key now.")


class KeyRotate(Body):
    """How a secret is replaced."""

    overlap_ms: Annotated[int, Field(ge=0, le=MOST_OVERLAP_MS, description="How long the secret until now works beside the new one.")] = 0


class KeyOut(Out):
    """An API key. `hint` is the end of its secret."""

    key_id: str
    name: str
    user: str
    team: str | None
    tier: str
    scopes: list[str]
    hint: str
    created_at: str
    expires_at: str | None
    blocked: bool
    made_by: str | None
    earlier_secret_until: str | None


class KeySecretOut(KeyOut):
    """An API key with its secret, which no other answer has: `null` where the idempotency key was used before."""

    secret: str | None


class KeyPage(Out):
    """Keys, oldest first."""

    data: list[KeyOut]
    next_after: str | None


def key(record: KeyRecord) -> dict[str, Any]:
    """An API key, without its secret."""
    earlier = max(record.earlier.values(), default=0.0)
    return {
        "key_id": record.key_id,
        "name": record.name,
        "user": record.user,
        "team": record.team or None,
        "tier": record.tier,
        "scopes": list(record.scopes),
        "hint": record.hint,
        "created_at": _moment(record.created_at),
        "expires_at": _moment(record.expires_at) if record.expires_at else None,
        "blocked": record.blocked,
        "made_by": record.made_by or None,
        "earlier_secret_until": _moment(earlier) if earlier > time.time() else None,
    }


def _moment(seconds: float) -> str:
    found = Timestamp()
    found.FromMicroseconds(round(seconds * 1e6))
    return rfc3339(found)
