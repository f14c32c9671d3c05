"""Anthropic's Message Batches: what a batch is, and how its requests are checked."""

import asyncio
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from services.simulator.refusals import Refused

MAX_REQUESTS = 100_000
_CUSTOM_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_WINDOW_S = 24 * 3_600


@dataclass(frozen=True, slots=True)
class Request:
    """One request of a batch."""

    custom_id: str
    params: Mapping[str, Any]


@dataclass(slots=True)
class MessageBatch:
    """One batch; `key` is what its creator brought, times are epochs. Its counts are told once it has ended, as Anthropic does."""

    id: str
    requests: Sequence[Request]
    key: str
    created_s: float = field(default_factory=time.time)
    cancelled_s: float | None = None
    ended_s: float | None = None
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("succeeded", "errored", "canceled", "expired"), 0))
    results: list[bytes] = field(default_factory=list)
    cancel_asked: asyncio.Event = field(default_factory=asyncio.Event)

    def cancel(self) -> None:
        """Ask it to end before its next request."""
        self.cancelled_s = self.cancelled_s or time.time()
        self.cancel_asked.set()

    def as_dict(self, results_url: str) -> dict[str, Any]:
        """Anthropic's message batch."""
        ended = self.ended_s is not None
        counts = self.counts if ended else dict.fromkeys(self.counts, 0)
        return {
            "id": self.id,
            "type": "message_batch",
            "processing_status": "ended" if ended else "canceling" if self.cancelled_s else "in_progress",
            "request_counts": {"processing": 0 if ended else len(self.requests), **counts},
            "created_at": _told(self.created_s),
            "expires_at": _told(self.created_s + _WINDOW_S),
            "ended_at": _told(self.ended_s),
            "cancel_initiated_at": _told(self.cancelled_s),
            "archived_at": None,
            "results_url": results_url if ended else None,
        }


def parse_requests(body: Mapping[str, Any]) -> Sequence[Request]:
    """Check the requests of a new batch; raises Refused (400). What they ask for is checked when they are answered."""
    given = body.get("requests")
    if given is None:
        raise Refused("requests: Field required")
    if not isinstance(given, list) or not 0 < len(given) <= MAX_REQUESTS:
        raise Refused(f"requests: List should have 1 to {MAX_REQUESTS} items")
    found: dict[str, Request] = {}
    for index, item in enumerate(given):
        custom_id = item.get("custom_id") if isinstance(item, dict) else None
        if not isinstance(custom_id, str) or not _CUSTOM_ID.fullmatch(custom_id):
            raise Refused(f"requests.{index}.custom_id: String should match pattern '^[a-zA-Z0-9_-]{{1,64}}$'")
        if custom_id in found:
            raise Refused(f"requests.{index}.custom_id: '{custom_id}' is used twice")
        if not isinstance(item.get("params"), dict):
            raise Refused(f"requests.{index}.params: Field required")
        found[custom_id] = Request(custom_id, item["params"])
    return list(found.values())


def _told(epoch_s: float | None) -> str | None:
    return None if epoch_s is None else datetime.fromtimestamp(epoch_s, UTC).isoformat().replace("+00:00", "Z")
