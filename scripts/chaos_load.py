"""The clients of `make chaos`: runs with tools, watched through replicas that come and go, cancelled now and then, judged when over."""

import asyncio
import random
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from services.common.errors import BulkheadError
from services.orchestrator.testing.counting import ONCE, REPEATABLE, calls, script, scripted
from services.orchestrator.testing.fakes import Fakes, Gate
from services.orchestrator.testing.harness import LOST, Client, follow_through
from services.orchestrator.testing.oracle import LOG_GAP, History, Seen, Violation, violations
from services.orchestrator.testing.replicas import Replica

# A call to a replica that stands still is given up after this.
CALL_S = 4.0
ENDS_WITHIN_S = 120.0
# Longer than any replica stands still, so that what a zombie writes is judged as well.
JUDGED_AFTER_S = 9.0
# An owner that hears nothing of a cancel is replaced after its lease; until then it may end the run in its own way.
CANCEL_REACHES_MS = 5_000
CANCELLED_SHARE = 0.15


class Pause(Gate):
    """Holds a model in the middle of its answer for a moment."""

    async def passed(self) -> None:
        """After a moment."""
        await asyncio.sleep(random.uniform(0.0, 0.4))


@dataclass
class Talk:
    """One thread with its runs, and all that is known of them outside of the store."""

    thread_id: str
    run_ids: list[str] = field(default_factory=list)
    accepted: set[str] = field(default_factory=set)
    cancels: dict[str, int] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)


@dataclass
class Load:
    """All clients, and what became of what they asked for."""

    replicas: list[Replica]
    behind: Fakes
    asking: bool = True
    active: dict[str, str] = field(default_factory=dict)
    # Of these, the runs that were acknowledged; and how many ever were.
    at_work: set[str] = field(default_factory=set)
    acknowledged: int = 0
    # Times that the log of a thread skipped ahead.
    gaps: int = 0
    statuses: Counter = field(default_factory=Counter)
    taken_over: Counter = field(default_factory=Counter)
    broken: list[Violation] = field(default_factory=list)
    logs: Callable[[str, list[pb.Event]], None] = lambda run_id, events: None

    def __post_init__(self) -> None:
        self.behind.models.gate, self.behind.models.reply = Pause(), scripted
        self.behind.tools.gate, self.behind.tools.pause_s = Gate(), 0.05
        self._judging: set[asyncio.Task] = set()

    def clients(self) -> list[Client]:
        """Every replica, in no order."""
        return [replica.client for replica in random.sample(self.replicas, len(self.replicas))]

    async def anywhere(self, ask: Callable[[Client], Awaitable[Any]]) -> Any:
        """The answer of the first replica that gives one, however long that takes."""
        while True:
            for client in self.clients():
                try:
                    with client.calling(timeout_s=CALL_S):
                        return await ask(client)
                except BulkheadError as error:
                    if error.code.name not in (*LOST, "RESOURCE_EXHAUSTED"):
                        raise
            await asyncio.sleep(0.1)

    async def keep_asking(self) -> None:
        """One client: a thread after the other, each judged some time after its end."""
        while self.asking:
            talk = Talk(f"th-{uuid.uuid4().hex[:12]}")
            await asyncio.gather(*(self._one(talk) for _ in range(random.choice((1, 1, 2)))))
            task = asyncio.create_task(self._judge(talk))
            self._judging.add(task)
            task.add_done_callback(self._judged)

    def _judged(self, task: asyncio.Task) -> None:
        self._judging.discard(task)
        if error := task.exception():
            self.broken.append(Violation("judge", "", repr(error)))

    async def judged(self) -> None:
        """Returns when every thread was judged."""
        while self._judging:
            await asyncio.wait(set(self._judging))

    async def _one(self, talk: Talk) -> None:
        run_id = f"r{uuid.uuid4().hex[:12]}"
        talk.run_ids.append(run_id)
        self.active[run_id] = talk.thread_id
        request = pb.CreateRunRequest(
            agent="quick", thread_id=talk.thread_id, run_id=run_id, idempotency_key=f"key-{run_id}",
            input=[pb.InputMessage(role="user", text=_wish(run_id))],
        )  # fmt: skip
        seen = Seen(run_id)
        try:
            async with asyncio.timeout(ENDS_WITHIN_S):
                await self.anywhere(lambda client: client.runs.CreateRun(request))
                talk.accepted.add(run_id)
                self.at_work.add(run_id)
                self.acknowledged += 1
                talk.seen.append(seen)
                watching = follow_through(self.clients(), seen)
                if random.random() < CANCELLED_SHARE:
                    await asyncio.gather(watching, self._cancel(talk, run_id))
                else:
                    await watching
        except TimeoutError:
            # Whether it was lost, or only slow, its record tells.
            self.statuses["not ended in time"] += 1
        except BulkheadError as error:
            self.broken.append(Violation("client", run_id, f"it was told {error.reason}: {error.message}"))
        finally:
            del self.active[run_id]
            self.at_work.discard(run_id)

    async def _cancel(self, talk: Talk, run_id: str) -> None:
        await asyncio.sleep(random.uniform(0.0, 1.5))
        await self.anywhere(lambda client: client.runs.CancelRun(pb.CancelRunRequest(run_id=run_id)))
        talk.cancels[run_id] = int(time.time() * 1000)

    async def _judge(self, talk: Talk) -> None:
        await asyncio.sleep(JUDGED_AFTER_S)
        if not talk.accepted:
            # Nobody was promised anything, and there may be no thread.
            return
        log = await self.anywhere(lambda client: client.log(thread_id=talk.thread_id))
        self.gaps += sum(event.type == LOG_GAP for event in log)
        runs: dict[str, pb.Run] = {}
        for run_id in talk.accepted:
            runs[run_id] = await self.anywhere(lambda client, r=run_id: client.get(r))
            self.statuses[pb.RunStatus.Name(runs[run_id].status).removeprefix("RUN_STATUS_").lower()] += 1
            self.taken_over["runs"] += runs[run_id].attempt > 1
            self.taken_over["times"] += max(0, runs[run_id].attempt - 1)
            self.logs(run_id, [event for event in log if event.run_id == run_id])
        effects = [effect for run_id in talk.run_ids for effect in self.behind.tools.effects.get(run_id, ())]
        history = History(
            talk.thread_id, log=log, runs=runs, accepted=frozenset(talk.accepted), cancels=talk.cancels, effects=effects, seen=talk.seen
        )
        self.broken += violations(history, CANCEL_REACHES_MS)
        self.behind.models.calls.clear()
        for run_id in talk.run_ids:
            self.behind.tools.forget(run_id)


def _words(least: int, most: int) -> str:
    return " ".join(f"w{i}" for i in range(random.randint(least, most)))


def _wish(run_id: str) -> str:
    """A script of up to three steps with tools, and an answer."""
    steps = []
    for step in range(random.randint(0, 3)):
        wanted = [(random.choice((ONCE, REPEATABLE)), f"{run_id}.{step}.{i}") for i in range(random.choice((1, 1, 2, 3)))]
        steps.append(calls(*wanted, say=_words(0, 6)))
    return script(*steps, _words(3, 20))
