"""The ports of webhooks: their store, the outside world, and names of hosts."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from services.orchestrator.webhooks.records import Attempt, Delivery, DeliveryRef, Due, Endpoint, Message, Taken


class SendFailed(Exception):
    """No HTTP status came. `error`: timeout, unreachable, tls, address_refused, unknown_host or protocol."""

    def __init__(self, error: str) -> None:
        super().__init__(error)
        self.error = error


class WebhookStore(Protocol):
    """Raises Overloaded (STORE_UNAVAILABLE) while the store is away."""

    async def now_ms(self) -> int:
        """The store's clock."""
        ...

    async def enlist(self, tenant: str) -> None:
        """Has a tenant among those with endpoints, durably. It stays there for good."""
        ...

    async def enlisted(self, tenant: str) -> bool:
        """Whether a tenant is among those with endpoints."""
        ...

    async def tenants(self, known: int) -> list[str] | None:
        """All that are among those with endpoints; None when they are `known` in number."""
        ...

    async def endpoints(self, tenant: str) -> list[Endpoint]:
        """All endpoints of a tenant, oldest first."""
        ...

    async def endpoint(self, tenant: str, endpoint_id: str) -> Endpoint | None:
        """One endpoint."""
        ...

    async def add(self, tenant: str, endpoint: Endpoint, most: int) -> bool:
        """Keeps a new endpoint durably; False when the tenant has `most` already."""
        ...

    async def replace(self, tenant: str, before: Endpoint, after: Endpoint) -> bool:
        """Changes an endpoint durably, unless it is not `before` any more."""
        ...

    async def remove(self, tenant: str, endpoint_id: str) -> bool:
        """Removes an endpoint with its log; False when there is none."""
        ...

    async def fan_out(self, tenant: str, message: Message, endpoint_ids: Sequence[str]) -> bool:
        """Makes the deliveries of a message in one step; False, and nothing changes, when that was done before."""
        ...

    async def note(self, refs: Sequence[DeliveryRef], wait_s: float) -> None:
        """Has deliveries looked at in `wait_s`, durably: nothing else leads to them."""
        ...

    async def due(self, most: int, again_in_s: float) -> list[Due]:
        """Deliveries that are to be looked at now; they are due again in `again_in_s`."""
        ...

    async def leave(self, due: Due, wait_s: float | None) -> None:
        """Has a delivery looked at in `wait_s`, or never again, unless somebody has asked for another date since it was taken."""
        ...

    async def take(self, ref: DeliveryRef, lease_s: float) -> Taken:
        """Tries to have a delivery for this process; a try counts from here on."""
        ...

    async def record(self, ref: DeliveryRef, number: int, attempt: Attempt | None, status: str, wait_s: float) -> bool:
        """Ends try `number` of this process; False when another process has the delivery by now."""
        ...

    async def delivery(self, ref: DeliveryRef) -> Delivery | None:
        """One delivery."""
        ...

    async def deliveries(self, tenant: str, endpoint_id: str, before: int, size: int) -> list[tuple[Delivery | None, int]]:
        """(delivery, position) of an endpoint's log, newest first, below position `before` (0: from the newest). None: it has passed."""
        ...

    async def again(self, ref: DeliveryRef) -> bool:
        """Makes a delivery pending again, at once; False when there is none."""
        ...


class Sender(Protocol):
    """The outside world."""

    async def addresses(self, host: str, port: int) -> list[str]:
        """Addresses of a host, at least one. Raises SendFailed (unknown_host)."""
        ...

    async def post(self, url: str, addresses: Sequence[str], headers: Mapping[str, str], body: bytes, timeout_s: float) -> int:
        """The status of the answer of one of `addresses`, and no other, whatever the URL's host leads to. Raises SendFailed."""
        ...
