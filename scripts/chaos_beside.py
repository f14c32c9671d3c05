"""What goes on beside the clients of `make chaos`: a webhook that is told of every end, and a schedule that makes runs."""

import asyncio
import random
import uuid
from collections import defaultdict
from itertools import pairwise

import orjson
from bulkhead.orchestrator.v1 import orchestrator_pb2, webhooks_pb2
from bulkhead.orchestrator.v1 import schedules_pb2 as pb
from google.protobuf.duration_pb2 import Duration

from scripts.chaos_load import Load
from services.common import testing
from services.common.errors import NotFound
from services.orchestrator.testing.counting import ONCE, REPEATABLE, calls, script
from services.orchestrator.testing.oracle import TERMINAL, Violation
from services.orchestrator.testing.receivers import Received, Receiver

TYPES = {"run.finished": "run_finished", "run.failed": "run_failed", "run.cancelled": "run_cancelled"}
SETTINGS = {"webhook_allow_private": True, "webhook_retries_s": (0.2, 0.4, 0.8, 1.5, 3.0, 5.0, 8.0), "schedule_least_interval_s": 1.0}
FAILING_SHARE = 0.1
TOLD_WITHIN_S, ENDS_WITHIN_S = 60.0, 60.0
INTERVAL_MS = 2_000
# A schedule keeps the outcomes of its last 500 ticks, which are read long before there are others.
MOST_TICKS, READ_EVERY_S = 1_000, 60.0


class Hook:
    """An endpoint that now and then refuses what it is sent."""

    def __init__(self, load: Load, receiver: Receiver) -> None:
        self._load, self._receiver, self._secret = load, receiver, ""
        receiver.answer = lambda _: (503 if random.random() < FAILING_SHARE else 204, {}, b"")

    async def begin(self) -> None:
        """Asks to be told of every end."""
        request = webhooks_pb2.CreateWebhookRequest(url=self._receiver.url(), event_types=[*TYPES], idempotency_key=uuid.uuid4().hex)
        self._secret = (await self._load.anywhere(lambda client: client.webhooks.CreateWebhook(request))).secret

    async def judge(self) -> None:
        """Every run's end was told, as one message with one content, by its name and with the signature."""
        ends = {run_id: status for run_id, status in self._load.ends.items() if status in TERMINAL.values()}
        got: dict[str, list[Received]] = defaultdict(list)

        def all_told() -> bool:
            got.clear()
            for received in self._receiver.got:
                got[received.data["run_id"]].append(received)
            return set(ends) <= set(got)

        try:
            await testing.eventually_async(all_told, "every end is told", TOLD_WITHIN_S, every_s=0.2)
        except AssertionError:
            self._load.broken += [Violation("webhook", run_id, "its end was never told") for run_id in sorted(set(ends) - set(got))]
        for run_id, messages in got.items():
            names, bodies = {message.message_id for message in messages}, {message.body for message in messages}
            if len(names) > 1 or len(bodies) > 1:
                self._load.broken.append(Violation("webhook", run_id, f"its end was told as {len(names)} messages: {sorted(bodies)}"[:600]))
            kind = orjson.loads(messages[0].body)["type"]
            if run_id in ends and TERMINAL[TYPES[kind]] != ends[run_id]:
                self._load.broken.append(Violation("webhook", run_id, f"its end was told as {kind}"))
            if not all(message.signed_by(self._secret) for message in messages):
                self._load.broken.append(Violation("webhook", run_id, "a message about its end is not signed"))
        self._load.answered["webhook deliveries"] = len(self._receiver.got)


class Clock:
    """A schedule of short runs."""

    def __init__(self, load: Load, every_s: float = READ_EVERY_S) -> None:
        self._load, self._every_s, self._id, self._first_ms = load, every_s, "", 0
        self._ticks: list[pb.ScheduleTick] = []
        self._reading: asyncio.Task | None = None

    async def begin(self) -> None:
        """Has it made; what it does is read until it ends."""
        definition = pb.ScheduleDefinition(
            timing=pb.ScheduleTiming(interval=Duration(seconds=INTERVAL_MS // 1000)), agent="quick", thread_policy=pb.THREAD_POLICY_NEW,
            overlap_policy=pb.OVERLAP_POLICY_SKIP,
            input=[orchestrator_pb2.InputMessage(role="user", text=script(calls((ONCE, "tick"), (REPEATABLE, "tock")), "it is time"))],
        )  # fmt: skip
        request = pb.CreateScheduleRequest(definition=definition, idempotency_key=uuid.uuid4().hex)
        made = (await self._load.anywhere(lambda client: client.schedules.CreateSchedule(request))).schedule
        self._id, self._first_ms = made.schedule_id, made.next_tick_at.ToMilliseconds()
        self._reading = asyncio.create_task(self._keep_reading())

    async def _keep_reading(self) -> None:
        while True:
            await self._read()
            await asyncio.sleep(self._every_s)

    async def _read(self) -> None:
        request = pb.ListScheduleTicksRequest(schedule_id=self._id, page_size=MOST_TICKS)
        found = list((await self._load.anywhere(lambda client: client.schedules.ListScheduleTicks(request))).ticks)
        if found:
            found.sort(key=lambda tick: tick.tick_at.ToMilliseconds())
            oldest_ms = found[0].tick_at.ToMilliseconds()
            # What is kept is told as it is now.
            self._ticks = [tick for tick in self._ticks if tick.tick_at.ToMilliseconds() < oldest_ms] + found

    async def end(self) -> None:
        """Lets it make no more."""
        if self._reading is not None:
            self._reading.cancel()
            # Where it had failed, ticks are missing, which is found.
            await asyncio.wait([self._reading])
        request = pb.PauseScheduleRequest(schedule_id=self._id, idempotency_key=uuid.uuid4().hex)
        await self._load.anywhere(lambda client: client.schedules.PauseSchedule(request))

    async def judge(self) -> None:
        """Each tick since the first was decided once, in its order, and made one run at most, which broke no promise."""
        await self._read()
        ticks = self._ticks
        if ticks and ticks[0].tick_at.ToMilliseconds() > self._first_ms:
            self._load.broken.append(Violation("schedule", ticks[0].run_id, "the oldest tick that was read is not the first"))
        for before, tick in pairwise(ticks):
            passed_ms = tick.tick_at.ToMilliseconds() - before.tick_at.ToMilliseconds()
            # What was missed together is told as one.
            if passed_ms != INTERVAL_MS and (passed_ms < INTERVAL_MS or pb.TICK_RESULT_MISSED not in (tick.result, before.result)):
                self._load.broken.append(Violation("schedule", tick.run_id, f"{passed_ms} ms lie between two ticks"))
        fired = [tick.run_id for tick in ticks if tick.result == pb.TICK_RESULT_FIRED]
        if len(set(fired)) != len(fired):
            self._load.broken.append(Violation("schedule", "", "two ticks made the same run"))
        for run_id in fired:
            await self._judge(run_id)
        self._load.answered["ticks of a schedule"] = len(ticks)
        self._load.answered["runs of a schedule"] = len(fired)

    async def _judge(self, run_id: str) -> None:
        async def ended() -> orchestrator_pb2.Run | None:
            run = await self._load.record(run_id)
            return run if run.status in TERMINAL.values() else None

        try:
            run = await testing.eventually_async(ended, f"{run_id} ends", ENDS_WITHIN_S, every_s=0.2)
        except (AssertionError, NotFound) as error:
            self._load.broken.append(Violation("A1", run_id, f"the run of a tick: {error!r}"))
            return
        await self._load.judge_alone(run, {})
