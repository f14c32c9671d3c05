"""What the clients of `make chaos` do with a thread: runs that ask people, that are steered, that ask other agents, that follow a workflow,
that plan, that cut each other off. All that they are told is kept for the oracle."""

import asyncio
import random
import time
import uuid
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from scripts.chaos_callers import Callers, together
from scripts.chaos_wishes import delegating, marked, planning, wish
from services.common.errors import BulkheadError, Conflict, NotFound
from services.orchestrator.testing.harness import data_of, follow_through
from services.orchestrator.testing.oracle import Decided, Seen, Violation

ENDS_WITHIN_S = 120.0
CANCELLED_SHARE = 0.15
ALL_CANCELLED_SHARE, STOPPED_SHARE = 0.25, 0.3
FILTERED_SHARE, THREAD_WATCHED_SHARE, REPEATED_SHARE = 0.4, 0.4, 0.3
# What watchers choose from, some of it rare.
TYPES = (
    "message_delta", "message_completed", "tool_call_started", "tool_call_completed", "step_completed", "run_queued", "run_finished",
    "run_cancelled", "interrupt_raised", "interrupt_resolved", "steer_received", "steer_applied", "child_run_finished", "plan_updated",
    "attempt_superseded",
)  # fmt: skip
POLICIES = (pb.ON_BUSY_ENQUEUE, pb.ON_BUSY_REJECT, pb.ON_BUSY_INTERRUPT, pb.ON_BUSY_ROLLBACK, pb.ON_BUSY_STEER)
CUTS_OFF = (pb.ON_BUSY_INTERRUPT, pb.ON_BUSY_ROLLBACK)
Beside = Callable[["Talk", str], Awaitable[None]]


@dataclass
class Talk:
    """One thread with its runs, and all that is known of them outside of the store."""

    callers: Callers
    kind: str = "plain"
    thread_id: str = field(default_factory=lambda: f"th-{uuid.uuid4().hex[:12]}")
    run_ids: list[str] = field(default_factory=list)
    accepted: set[str] = field(default_factory=set)
    cancels: dict[str, int] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)
    decisions: list[Decided] = field(default_factory=list)
    guarded: set[tuple[str, str]] = field(default_factory=set)
    steers: dict[str, dict[int, str]] = field(default_factory=lambda: defaultdict(dict))
    stops: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    said: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)
    # Runs whose end somebody has asked for, whatever the answer was.
    ending: set[str] = field(default_factory=set)
    # Of the whole thread, until it is judged.
    watching: list[tuple[Seen, asyncio.Task]] = field(default_factory=list)

    async def run(self, agent: str, text: str, run_id: str, *beside: Beside, on_busy: int = 0) -> None:
        """Asks for a run, watches it to its end, cancels it now and then, and does what belongs beside it meanwhile."""
        request = pb.CreateRunRequest(
            agent=agent, thread_id=self.thread_id, run_id=run_id, idempotency_key=f"key-{run_id}", on_busy=on_busy,
            input=[pb.InputMessage(role="user", text=text)],
        )  # fmt: skip
        self.run_ids.append(run_id)
        self.said.add(text)
        self.callers.active[run_id] = self.thread_id
        try:
            async with asyncio.timeout(ENDS_WITHIN_S):
                if not await self._made(request, text):
                    return
                doing = [self._to_its_end(run_id), *(each(self, run_id) for each in beside)]
                doing += [self._watch(run_id, _some_types())] if random.random() < FILTERED_SHARE else []
                doing += [self._cancel(run_id)] if random.random() < CANCELLED_SHARE else []
                await together(*doing)
        except TimeoutError:
            # Whether it was lost, or only slow, its record tells.
            self.callers.statuses["not ended in time"] += 1
        except BulkheadError as error:
            self.callers.broken.append(Violation("client", run_id, f"it was told {error.reason}: {error.message}"))
        finally:
            self.callers.active.pop(run_id, None)
            self.callers.at_work.discard(run_id)

    async def _made(self, request: pb.CreateRunRequest, text: str) -> bool:
        """Whether a run was made. Otherwise it was refused for its busy thread, or its message steers another one."""
        run_id, before = request.run_id, set(self.accepted)
        try:
            answer = await self.callers.anywhere(lambda client: client.runs.CreateRun(request))
        except Conflict as error:
            if error.reason != "THREAD_BUSY":
                raise
            self.refused.add(run_id)
            return False
        if answer.steer_number:
            self.refused.add(run_id)
            self.steers[answer.run.run_id][answer.steer_number] = text
            return False
        self.accepted.add(run_id)
        self.callers.at_work.add(run_id)
        self.callers.acknowledged += 1
        if request.on_busy in CUTS_OFF:
            self._ended_by(before)
            # Also those that others have asked for meanwhile.
            self.ending |= set(self.run_ids) - {run_id}
        if not self.watching and random.random() < THREAD_WATCHED_SHARE:
            for types in random.choice(((frozenset(),), (_some_types(),), (frozenset(), _some_types()))):
                seen = Seen("", types=types)
                self.watching.append((seen, asyncio.create_task(follow_through(self.callers.clients(), seen, thread_id=self.thread_id))))
        return True

    def _ended_by(self, run_ids: set[str]) -> None:
        now_ms = int(time.time() * 1000)
        for run_id in run_ids:
            self.cancels.setdefault(run_id, now_ms)

    async def _to_its_end(self, run_id: str) -> None:
        await self._watch(run_id)
        self.callers.at_work.discard(run_id)

    async def _watch(self, run_id: str, types: frozenset[str] = frozenset()) -> None:
        seen = Seen(run_id, types=types)
        self.seen.append(seen)
        await follow_through(self.callers.clients(), seen)

    async def _cancel(self, run_id: str) -> None:
        await asyncio.sleep(random.uniform(0.0, 1.5))
        self.ending.add(run_id)
        await self.callers.anywhere(lambda client: client.runs.CancelRun(pb.CancelRunRequest(run_id=run_id)))
        self._ended_by({run_id})

    async def cancel_all(self) -> None:
        """Asks for the end of all runs of the thread."""
        before = set(self.accepted)
        request = pb.CancelRunsRequest(filter=pb.RunFilter(thread_id=self.thread_id), idempotency_key=uuid.uuid4().hex)
        try:
            while not (await self.callers.anywhere(lambda client: client.runs.CancelRuns(request))).done:
                pass
        except NotFound:
            # Nothing was said in it yet.
            return
        self._ended_by(before)
        self.ending |= set(self.run_ids)
        self.callers.answered["bulk cancels"] += 1

    def shown(self, run_id: str) -> list[pb.Event]:
        """What the run's first watcher has been shown so far."""
        return next((seen.events for seen in self.seen if seen.run_id == run_id), [])


def _some_types() -> frozenset[str]:
    return frozenset(random.sample(TYPES, random.randint(1, 4)))


async def steering(talk: Talk, run_id: str) -> None:
    """A user who has more to say."""
    for _ in range(random.choice((1, 1, 2, 3))):
        await asyncio.sleep(random.uniform(0.0, 0.8))
        text, key = wish(marked(run_id), steps=1), uuid.uuid4().hex
        talk.said.add(text)
        request = pb.SteerRunRequest(run_id=run_id, text=text, idempotency_key=key)
        try:
            number = (await talk.callers.anywhere(lambda client, r=request: client.runs.SteerRun(r))).number
        except Conflict as error:
            if error.reason != "RUN_ENDED":
                raise
            return
        talk.steers[run_id][number] = text
        talk.callers.answered["steers"] += 1
        if random.random() < REPEATED_SHARE:
            again = (await talk.callers.anywhere(lambda client, r=request: client.runs.SteerRun(r))).number
            if again != number:
                talk.callers.broken.append(Violation("A8", run_id, f"message {number} is {again} when it is sent again"))


async def stopping(talk: Talk, run_id: str) -> None:
    """A user who has read enough, now and then."""
    if random.random() >= STOPPED_SHARE:
        return
    await asyncio.sleep(random.uniform(0.0, 1.5))
    request = pb.StopGenerationRequest(run_id=run_id, idempotency_key=uuid.uuid4().hex)
    try:
        number = (await talk.callers.anywhere(lambda client: client.runs.StopGeneration(request))).number
    except Conflict as error:
        if error.reason not in ("RUN_ENDED", "RUN_NOT_STARTED", "RUN_WAITING"):
            raise
        return
    talk.stops[run_id].add(number)
    talk.callers.answered["stops"] += 1


async def replanning(talk: Talk, run_id: str) -> None:
    """A user who changes the plan that was shown last."""
    await asyncio.sleep(random.uniform(0.2, 2.0))
    plans = [data_of(event) for event in talk.shown(run_id) if event.type == "plan_updated"]
    if not plans:
        return
    steps = [pb.PlanStep(title=f"{run_id} as the user has it", status="pending")]
    request = pb.UpdatePlanRequest(run_id=run_id, steps=steps, version=plans[-1]["version"], idempotency_key=uuid.uuid4().hex)
    try:
        await talk.callers.anywhere(lambda client: client.runs.UpdatePlan(request))
    except Conflict as error:
        if error.reason not in ("RUN_ENDED", "PLAN_CHANGED", "RUN_HAS_NO_PLAN"):
            raise
        return
    talk.callers.answered["plans"] += 1


async def plain(talk: Talk) -> None:
    """Runs with tools, one after the other."""
    ids = [marked() for _ in range(random.choice((1, 1, 2)))]
    await together(*(talk.run("quick", wish(run_id), run_id) for run_id in ids))


async def steered(talk: Talk) -> None:
    """A run whose user has more to say while it is at work, or stops what it says."""
    run_id = marked()
    await talk.run("quick", wish(run_id), run_id, steering, stopping)


async def supervised(talk: Talk) -> None:
    """A run that has other agents work for it."""
    run_id = marked()
    await talk.run("lead", delegating(run_id), run_id)


async def planned(talk: Talk) -> None:
    """A run with a plan, which its user changes now and then."""
    run_id = marked()
    await talk.run("planner", planning(run_id), run_id, replanning)


async def doubled(talk: Talk) -> None:
    """Runs that meet others in their thread, under every policy."""

    async def later(policy: int) -> None:
        await asyncio.sleep(random.uniform(0.0, 1.5))
        run_id = marked()
        await talk.run("quick", wish(run_id), run_id, on_busy=policy)

    async def all_ended() -> None:
        await asyncio.sleep(random.uniform(0.5, 2.0))
        await talk.cancel_all()

    first = marked()
    policies = random.choices(POLICIES, k=random.randint(1, 4))
    ended = [all_ended()] if random.random() < ALL_CANCELLED_SHARE else []
    await together(talk.run("quick", wish(first), first), *(later(policy) for policy in policies), *ended)
