"""Faults that the control endpoint ordered, with whom they are meant for and how often they still apply."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from services.simulator import faults
from services.simulator.faults import Faults
from services.simulator.refusals import Refused

MAX_ORDERS = 1_000
ENDPOINTS = ("chat", "messages", "gemini", "embeddings", "rerank", "batch")
_MATCH_KEYS = frozenset(("model", "run", "contains", "endpoint"))


@dataclass(frozen=True, slots=True)
class Subject:
    """What an order is matched against. `labels` are the request's ids: request id, idempotency key, run id, user, metadata."""

    endpoint: str
    model: str
    asked: str
    labels: tuple[str, ...]


@dataclass(slots=True)
class Order:
    """One ordered fault. `remaining` None means until it is deleted; `skip` requests are let through first."""

    id: str
    match: Mapping[str, str]
    faults: Faults
    remaining: int | None
    skip: int
    applied: int = 0

    def fits(self, subject: Subject) -> bool:
        """Whether the order is meant for the request: every given key has to agree."""
        match = self.match
        return (
            match.get("endpoint", subject.endpoint) == subject.endpoint
            and match.get("model", subject.model) == subject.model
            and match.get("contains", "") in subject.asked
            and ("run" not in match or any(match["run"] in label for label in subject.labels))
        )

    def as_dict(self) -> dict[str, Any]:
        """The order as the control endpoint shows it."""
        return {
            "id": self.id,
            "match": dict(self.match),
            "fault": dict(self.faults),
            "times": self.remaining,
            "skip": self.skip,
            "applied": self.applied,
        }


class FaultBook:
    """The orders, oldest first. Used from one event loop only, so taking a turn needs no lock."""

    def __init__(self) -> None:
        self._orders: dict[str, Order] = {}
        self._made = 0

    def __len__(self) -> int:
        return len(self._orders)

    def add(self, body: Mapping[str, Any]) -> Order:
        """Keep an order `{match?, fault, times?, skip?}`; raises Refused (400) where it is not clear."""
        unknown = body.keys() - {"match", "fault", "times", "skip"}
        if unknown:
            raise Refused(f"Unknown fields: {', '.join(sorted(unknown))}.")
        match = body.get("match") or {}
        if not isinstance(match, dict) or match.keys() - _MATCH_KEYS or not all(isinstance(value, str) for value in match.values()):
            raise Refused(f"'match' must be an object of strings with any of: {', '.join(sorted(_MATCH_KEYS))}.", param="match")
        if match.get("endpoint") not in (None, *ENDPOINTS):
            raise Refused(f"'match.endpoint' must be one of: {', '.join(ENDPOINTS)}.", param="match")
        ordered = body.get("fault")
        if isinstance(ordered, str):
            parsed = faults.parse_text(ordered, "fault")
        elif isinstance(ordered, dict):
            parsed = faults.parse_mapping(ordered, "fault")
        else:
            raise Refused("'fault' must be a string such as 'status=503' or an object such as {\"status\": 503}.", param="fault")
        if not parsed:
            raise Refused("'fault' names no fault.", param="fault")
        times, skip = body.get("times"), body.get("skip", 0)
        if times is not None and (isinstance(times, bool) or not isinstance(times, int) or times < 1):
            raise Refused("'times' must be a whole number from 1, or left out.", param="times")
        if isinstance(skip, bool) or not isinstance(skip, int) or skip < 0:
            raise Refused("'skip' must be a whole number from 0.", param="skip")
        if len(self._orders) >= MAX_ORDERS:
            raise Refused(f"There are {MAX_ORDERS} faults on order already; delete some.", status=409)
        self._made += 1
        order = Order(f"fault-{self._made}", match, parsed, times, skip)
        self._orders[order.id] = order
        return order

    def take(self, subject: Subject) -> Faults:
        """The faults for this request: of the oldest order that fits and is not let through; counts it as applied."""
        for order in self._orders.values():
            if order.fits(subject):
                if order.skip:
                    order.skip -= 1
                    continue
                if order.remaining == 0:
                    continue
                if order.remaining is not None:
                    order.remaining -= 1
                order.applied += 1
                return order.faults
        return faults.NO_FAULTS

    def take_unread(self, fault: str, endpoint: str, labels: tuple[str, ...]) -> bool:
        """As `take`, for a fault that comes before the body is read: of the orders that ask for it and name no model and no text."""
        subject = Subject(endpoint, "", "", labels)
        for order in self._orders.values():
            if fault in order.faults and not {"model", "contains"} & order.match.keys() and order.fits(subject):
                if order.skip:
                    order.skip -= 1
                elif order.remaining != 0:
                    order.applied += 1
                    if order.remaining is not None:
                        order.remaining -= 1
                    return True
        return False

    def orders(self) -> Iterable[Order]:
        """All orders, spent ones too."""
        return self._orders.values()

    def remove(self, order_id: str | None = None) -> int:
        """Delete one order, or all; returns how many there were."""
        if order_id is None:
            count = len(self._orders)
            self._orders.clear()
            return count
        return 1 if self._orders.pop(order_id, None) else 0
