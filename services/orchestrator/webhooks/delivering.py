"""Sends messages until they arrive, by whichever process has a delivery, under an id that makes a second arrival harmless."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import structlog
from opentelemetry.metrics import get_meter

from services.common import tasks
from services.common.errors import Overloaded
from services.orchestrator.webhooks import signing
from services.orchestrator.webhooks.ports import Sender, SendFailed, WebhookStore
from services.orchestrator.webhooks.records import Attempt, DeliveryRef, Due, Endpoint, Taken
from services.orchestrator.webhooks.targets import checked, parsed

TIMEOUT_S = 15.0
# Past the timeout, so that nobody sends beside a process that is only slow.
LEASE_S = 30.0
LOOK_EVERY_S = 0.25
MOST_AT_ONCE = 64
# A receiver that hangs must not take all the room.
MOST_OF_ENDPOINT = 8
BUSY_WAIT_S = 1.0
GONE = 410
log = structlog.get_logger("bulkhead.webhooks")
_tries = get_meter("bulkhead.orchestrator").create_counter(
    "bulkhead_webhook_tries_total", description="Tries to deliver a message to a webhook, by outcome."
)


def wait_before(retries_s: Sequence[float], failed: int, age_s: float) -> float | None:
    """Seconds until the next try after `failed` tries in `age_s` seconds; None after the last.

    Full jitter over the interval between the dates of the schedule, and not over the time since the last try: what was lost by early
    tries is not taken from the time that a receiver has to come back.
    """
    if failed > len(retries_s):
        return None
    earliest = max(0.0, sum(retries_s[: failed - 1]) - age_s)
    return earliest + random.uniform(0.0, retries_s[failed - 1])  # noqa: S311 - jitter


class Delivering:
    """Takes what is due and sends it."""

    def __init__(self, store: WebhookStore, sender: Sender, retries_s: Sequence[float], allow_private: bool) -> None:
        self._store, self._sender, self._retries_s, self._allow_private = store, sender, retries_s, allow_private
        self._tasks: set[asyncio.Task] = set()
        self._of_endpoint: Counter[tuple[str, str]] = Counter()
        self._woken = asyncio.Event()
        self._draining = False

    def wake(self) -> None:
        """Something is due now."""
        self._woken.set()

    async def run(self) -> None:
        """Delivers until `drain`; a store that is away is tried again."""
        while not self._draining:
            self._woken.clear()
            try:
                room = MOST_AT_ONCE - len(self._tasks)
                found = await self._store.due(room, LEASE_S) if room else []
            except Overloaded:
                found = []
            for due in found:
                self._start(due)
            if not found or len(self._tasks) >= MOST_AT_ONCE:
                await self._pause()

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(LOOK_EVERY_S * random.uniform(0.8, 1.2)):  # noqa: S311 - keeps replicas apart
                await self._woken.wait()
        except TimeoutError:
            return

    def _start(self, due: Due) -> None:
        task = asyncio.create_task(self.deliver(due), name=f"webhook {due.ref.delivery_id}")
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task) -> None:
        self._tasks.discard(task)
        self._woken.set()
        if not task.cancelled() and (error := task.exception()) and not isinstance(error, Overloaded):
            log.error("webhook_failed", task=task.get_name(), exc_info=error)

    async def deliver(self, due: Due) -> None:
        """Tries a delivery that is due. Raises Overloaded; it is due again when the lease has run out."""
        endpoint = (due.ref.tenant, due.ref.endpoint_id)
        if self._of_endpoint[endpoint] >= MOST_OF_ENDPOINT:
            await self._store.leave(due, BUSY_WAIT_S)
            return
        self._of_endpoint[endpoint] += 1
        try:
            taken = await self._store.take(due.ref, LEASE_S)
            if taken.verdict == "early":
                await self._store.leave(due, taken.wait_s)
            elif taken.verdict == "taken":
                await self._try(due, taken)
            else:
                await self._store.leave(due, None)
        finally:
            self._of_endpoint[endpoint] -= 1
            if not self._of_endpoint[endpoint]:
                del self._of_endpoint[endpoint]

    async def _try(self, due: Due, taken: Taken) -> None:
        assert taken.endpoint is not None
        attempt: Attempt | None = None
        status, wait_s = "dropped", None
        if not taken.endpoint.disabled:
            attempt = await self._sent(due.ref, taken)
            status, wait_s = self._outcome(taken, attempt)
        if attempt is not None and attempt.code == GONE:
            await self._disable(due.ref, taken)
        _tries.add(1, {"outcome": "retried" if status == "pending" else status})
        code, error = (attempt.code, attempt.error) if attempt is not None else (0, "")
        log.info(
            "webhook_tried", delivery_id=due.ref.delivery_id, status=status, attempt=taken.attempt, code=code, error=error,
        )  # fmt: skip
        # Where another process has it by now, that one goes on with it.
        if await self._store.record(due.ref, taken.attempt, attempt, status, wait_s or 0.0):
            await self._store.leave(due, wait_s)

    def _outcome(self, taken: Taken, attempt: Attempt) -> tuple[str, float | None]:
        """The delivery's status after a try, and how long it waits for the next."""
        if 200 <= attempt.code < 300:
            return "delivered", None
        if attempt.code == GONE:
            return "failed", None
        wait_s = wait_before(self._retries_s, taken.round_attempt, taken.round_age_s + attempt.duration_ms / 1000)
        return ("failed" if wait_s is None else "pending"), wait_s

    async def _sent(self, ref: DeliveryRef, taken: Taken) -> Attempt:
        endpoint, began, at = taken.endpoint, time.monotonic(), time.time()
        assert endpoint is not None
        headers = signing.headers(ref.message_id, int(at), taken.body, endpoint.signing(taken.now_ms))
        code, error = 0, ""
        try:
            # What may be sent to is a setting, which may have changed since the endpoint was made.
            target = parsed(endpoint.url, self._allow_private)
            async with asyncio.timeout(TIMEOUT_S):
                addresses = await checked(self._sender, target, self._allow_private)
            left_s = TIMEOUT_S - (time.monotonic() - began)
            code = await self._sender.post(endpoint.url, addresses, headers, taken.body, left_s)
        except SendFailed as failed:
            error = failed.error
        except TimeoutError:
            error = "timeout"
        except ValueError:
            error = "address_refused"
        return Attempt(int(at * 1000), int((time.monotonic() - began) * 1000), code, error)

    async def _disable(self, ref: DeliveryRef, taken: Taken) -> None:
        endpoint: Endpoint | None = taken.endpoint
        while endpoint is not None and not endpoint.disabled:
            if await self._store.replace(ref.tenant, endpoint, replace(endpoint, disabled="GONE", disabled_ms=taken.now_ms)):
                log.warning("webhook_disabled", webhook_id=ref.endpoint_id, reason="GONE")
                return
            endpoint = await self._store.endpoint(ref.tenant, ref.endpoint_id)

    async def drain(self, grace_s: float) -> None:
        """Takes nothing more and lets tries end; what is left is sent again by another process."""
        self._draining = True
        self._woken.set()
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=grace_s)

    async def close(self) -> None:
        """Ends what is left."""
        await tasks.end(self._tasks)
