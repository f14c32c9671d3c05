"""The clients of `make chaos`: threads of every kind through replicas that come and go, watched, and judged when they are over."""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from scripts.chaos_callers import Callers
from scripts.chaos_people import asked, followed
from scripts.chaos_talks import Talk, doubled, plain, planned, steered, supervised
from services.common import testing
from services.common.errors import BulkheadError, NotFound
from services.orchestrator.testing.counting import scripted
from services.orchestrator.testing.fakes import Gate
from services.orchestrator.testing.oracle import LOG_GAP, TERMINAL, Effect, History, Seen, Violation, violations

# Longer than any replica stands still, so that what a zombie writes is judged as well.
JUDGED_AFTER_S = 9.0
# An owner that hears nothing of a cancel is replaced after its lease; until then it may end the run in its own way.
CANCEL_REACHES_MS = 5_000
# Whoever follows a thread is shown its end within this.
SHOWN_WITHIN_S = 15.0
KINDS: Mapping[str, Callable[[Talk], Awaitable[None]]] = {
    "plain": plain, "asked": asked, "steered": steered, "supervised": supervised, "followed": followed, "planned": planned,
    "doubled": doubled,
}  # fmt: skip
PLAIN = {"plain": 1}
# How often each kind is chosen.
MIX = {"plain": 6, "asked": 4, "steered": 3, "supervised": 3, "followed": 2, "planned": 2, "doubled": 3}
# Of these the next owner tells something at once; others may find that they wait, and tell nothing.
MEASURED = frozenset({"plain", "steered", "planned"})


class Pause(Gate):
    """Holds a model in the middle of its answer for a moment."""

    async def passed(self) -> None:
        """After a moment."""
        await asyncio.sleep(random.uniform(0.0, 0.4))


@dataclass
class Load(Callers):
    """All clients, and what became of what they asked for. `mix`: how often they choose each of KINDS."""

    mix: Mapping[str, int] = field(default_factory=lambda: PLAIN)
    asking: bool = True
    # As of History.
    none_given_up: bool = False
    # Times that the log of a thread skipped ahead.
    gaps: int = 0
    taken_over: Counter = field(default_factory=Counter)
    talks: Counter = field(default_factory=Counter)
    # How each acknowledged run has ended.
    ends: dict[str, int] = field(default_factory=dict)
    logs: Callable[[str, list[pb.Event]], None] = lambda run_id, events: None

    def __post_init__(self) -> None:
        self.behind.models.gate, self.behind.models.reply = Pause(), scripted
        self.behind.tools.gate, self.behind.tools.pause_s = Gate(), 0.05
        self._judging: set[asyncio.Task] = set()
        # Each kind is there at least once.
        self._first = list(self.mix)

    async def keep_asking(self) -> None:
        """One client: a thread after the other, each judged some time after its end."""
        while self.asking:
            kind = self._first.pop() if self._first else random.choices(list(self.mix), list(self.mix.values()))[0]
            talk = Talk(self, kind)
            self.talks[kind] += 1
            try:
                await KINDS[kind](talk)
            except BulkheadError as error:
                self.broken.append(Violation("client", talk.thread_id, f"it was told {error.reason}: {error.message}"))
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

    async def _judge(self, talk: Talk) -> None:
        await asyncio.sleep(JUDGED_AFTER_S)
        try:
            # Otherwise nobody was promised anything, and there may be no thread.
            if talk.accepted:
                await self._look(talk)
        finally:
            for _, task in talk.watching:
                task.cancel()
            self.behind.models.calls.clear()
            for run_id in talk.run_ids:
                self.behind.tools.forget(run_id)

    async def _look(self, talk: Talk) -> None:
        log = await self._log(talk.thread_id)
        for seen, task in talk.watching:
            await self._shown(talk, log, seen, task)
        if talk.watching:
            # What they were shown may have been written since.
            log = await self._log(talk.thread_id)
        self.gaps += sum(event.type == LOG_GAP for event in log)
        runs = {run_id: await self.record(run_id) for run_id in talk.accepted}
        self._note(talk, log, runs)
        effects = self._effects(*talk.run_ids)
        children = await self._children(talk, log, runs)
        history = History(
            talk.thread_id, log=log, runs=runs, accepted=frozenset(talk.accepted), cancels=talk.cancels, effects=effects,
            seen=[*talk.seen, *(seen for seen, _ in talk.watching)], decisions=talk.decisions, guarded=talk.guarded, steers=talk.steers,
            stops=talk.stops, said=talk.said, refused=talk.refused, children=children, ending=talk.ending,
            none_given_up=self.none_given_up,
        )  # fmt: skip
        self.broken += violations(history, CANCEL_REACHES_MS)

    async def _shown(self, talk: Talk, log: list[pb.Event], seen: Seen, task: asyncio.Task) -> None:
        """Returns when a watcher of the thread has been shown the end of the log, or was not for too long."""
        last = max((event.seq for event in log if not seen.types or event.type in seen.types or event.type == LOG_GAP), default=0)

        def shown() -> bool:
            return not last or task.done() or bool(seen.events and seen.events[-1].seq >= last)

        try:
            await testing.eventually_async(shown, f"{last} is shown", SHOWN_WITHIN_S)
        except AssertionError:
            self.broken.append(Violation("A6", "", f"whoever watches {talk.thread_id} for {sorted(seen.types)} was not shown {last}"))
        if task.done() and (error := task.exception()):
            self.broken.append(Violation("client", "", f"whoever watches {talk.thread_id} was told {error!r}"))
        task.cancel()
        await asyncio.wait([task])
        seen.ended = True

    def _note(self, talk: Talk, log: list[pb.Event], runs: Mapping[str, pb.Run]) -> None:
        for run_id, run in runs.items():
            self.ends[run_id] = run.status
            self.statuses[pb.RunStatus.Name(run.status).removeprefix("RUN_STATUS_").lower()] += 1
            self.taken_over["runs"] += run.attempt > 1
            self.taken_over["times"] += max(0, run.attempt - 1)
            if talk.kind in MEASURED:
                self.logs(run_id, [event for event in log if event.run_id == run_id])

    async def _children(self, talk: Talk, log: list[pb.Event], runs: Mapping[str, pb.Run]) -> dict[str, pb.Run]:
        """Judges the threads of child runs; answers their records."""
        told = History(talk.thread_id, log=log, runs=runs)
        finished = {data["run_id"] for _, data in told.told("child_run_finished")}
        found = {}
        for event, data in told.told("child_run_started"):
            child, parent = data["run_id"], runs.get(event.run_id)
            talk.run_ids.append(child)
            try:
                found[child] = run = await self.record(child)
            except NotFound:
                # Its parent ended before it was made.
                if child in finished or told.succeeded(event.run_id):
                    self.broken.append(Violation("A1", child, f"{event.run_id} has asked for it, and it has no record"))
                continue
            # Whoever ends before its child asks for its end first.
            left = parent is not None and parent.status in TERMINAL.values() and child not in finished
            cancels = {child: parent.ended_at.ToMilliseconds()} if left and parent is not None else {}
            await self.judge_alone(run, cancels)
            self.answered["child runs"] += 1
        return found

    async def judge_alone(self, run: pb.Run, cancels: Mapping[str, int]) -> None:
        """Judges a thread with one run, which nobody watched."""
        history = History(
            run.thread_id, log=await self._log(run.thread_id), runs={run.run_id: run}, accepted=frozenset({run.run_id}),
            effects=self._effects(run.run_id), cancels=cancels, ending=frozenset(cancels),
        )  # fmt: skip
        self.ends[run.run_id] = run.status
        self.broken += violations(history, CANCEL_REACHES_MS)

    async def record(self, run_id: str) -> pb.Run:
        """The record of a run. Raises NotFound."""
        return (await self.anywhere(lambda client: client.runs.GetRun(pb.GetRunRequest(run_id=run_id)))).run

    async def _log(self, thread_id: str) -> list[pb.Event]:
        return await self.anywhere(lambda client: client.log(thread_id=thread_id))

    def _effects(self, *run_ids: str) -> list[Effect]:
        return [effect for run_id in run_ids for effect in self.behind.tools.effects.get(run_id, ())]
