"""From the end of a run to deliveries: once for each run, before anybody forgets the run.

The end itself is the entry of the outbox: it is written in one step with the run's result, and the run stays in the sweeper's list
until this has been done. What is made here has names that follow from the run's, so that a second time changes nothing.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

import structlog
from opentelemetry.metrics import get_meter

from services.common.errors import Overloaded
from services.orchestrator.records import RunRef
from services.orchestrator.run_store import RunStore
from services.orchestrator.webhooks.payload import messages_of
from services.orchestrator.webhooks.ports import WebhookStore
from services.orchestrator.webhooks.records import DeliveryRef

# Each process knows the tenants that ever had an endpoint, so that the runs of all others cost nothing.
REFRESH_S = 0.25
# What it knows counts for this long; later it asks. Whoever makes a tenant's first endpoint waits as long before the endpoint counts.
KNOWN_FOR_S = 0.5
log = structlog.get_logger("bulkhead.webhooks")
_made = get_meter("bulkhead.orchestrator").create_counter(
    "bulkhead_webhook_messages_total", description="Messages about ended runs that were made, by event type."
)


class Announcing:
    """Makes the deliveries of ended runs."""

    def __init__(self, runs: RunStore, webhooks: WebhookStore, wake: Callable[[], None]) -> None:
        """`wake` is called when there is something to deliver at once."""
        self._runs, self._webhooks, self._wake = runs, webhooks, wake
        self._tenants: frozenset[str] = frozenset()
        self._known_until = 0.0

    async def watch(self) -> None:
        """Keeps the known tenants fresh, forever."""
        while True:
            with suppress(Overloaded):
                await self._refresh()
            await asyncio.sleep(REFRESH_S)

    async def _refresh(self) -> None:
        asked = time.monotonic()
        found = await self._webhooks.tenants(len(self._tenants))
        if found is not None:
            self._tenants = frozenset(found)
        self._known_until = asked + KNOWN_FOR_S

    def certainly_silent(self, tenant: str) -> bool:
        """Whether nobody is to be told of the tenant's runs, as far as is known without asking."""
        return tenant not in self._tenants and time.monotonic() < self._known_until

    async def announce(self, ref: RunRef) -> None:
        """Makes the deliveries of a run that has ended, unless that was done. Raises Overloaded."""
        if self.certainly_silent(ref.tenant):
            return
        if ref.tenant not in self._tenants and not await self._webhooks.enlisted(ref.tenant):
            return
        record, endpoints = await asyncio.gather(self._runs.run(ref), self._webhooks.endpoints(ref.tenant))
        if record is None or not record.ended:
            return
        noted: list[DeliveryRef] = []
        for message in messages_of(ref, record):
            wanted = [e.endpoint_id for e in endpoints if e.wants(message.event_type, record.ended_ms)]
            if not wanted:
                continue
            if await self._webhooks.fan_out(ref.tenant, message, wanted):
                _made.add(1, {"event_type": message.event_type})
                log.info("webhook_message_made", run_id=ref.run_id, message_id=message.message_id, endpoints=len(wanted))
            noted += [DeliveryRef(ref.tenant, message.message_id, endpoint_id) for endpoint_id in wanted]
        if not noted:
            return
        # Also where they were made before: whoever made them may not have come to this.
        await self._webhooks.note(noted, 0.0)
        self._wake()
