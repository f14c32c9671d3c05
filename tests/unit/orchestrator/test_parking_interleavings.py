"""Whatever is posted, cancelled and waited for, wherever processes are lost between two round trips to the store, and however its clock is
set back: every accepted run ends soon, or waits for a command that nobody sent; who is at work has its tenant's slot, and nobody else has.

Worker, sweeper and what parks a run are the real ones; what a run does is made up: it wants so many commands, or to wait, and then ends.
"""

import asyncio
from types import SimpleNamespace

import orjson
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from services.common.errors import Conflict, NotFound
from services.common.identity import Principal
from services.orchestrator.accepting import Accepting
from services.orchestrator.commanding import Commanding
from services.orchestrator.driving import Driver, Left
from services.orchestrator.records import Fenced, RunRef, Schedule
from services.orchestrator.sweeper import Sweeper
from services.orchestrator.testing.memory_store import MemoryStore
from services.orchestrator.testing.memory_store_state import Clock, MemoryState
from services.orchestrator.testing.runs import CANCELLED, QUEUED, done, spec
from services.orchestrator.turn.state import RunParked
from services.orchestrator.worker import Worker
from services.orchestrator.writer import RunWriter

SLOTS, RUNS = 1, 3
# What is left half-done is found by a lease that ends, a look for who waits for a slot, or one for who was woken.
SOON_S = 15
# How far the store's clock is set back, as where a replica takes over whose clock is another.
BACK_S = 3
SETTINGS = SimpleNamespace(
    track="stable", lease_s=3.0, crash_budget=1000, max_active_runs=2, other_track_after_s=60.0, store_patience_s=1.0, delta_batch_s=0.01
)
ANA = Principal("acme", "ana")


class Ticking(Clock):
    """No two steps of the store take place at the same time."""

    @property
    def now_ms(self):
        self._now += 1
        return self._now

    @now_ms.setter
    def now_ms(self, now_ms):
        self._now = now_ms


class Mortal:
    """The store as a process sees it until it dies, which is after so many round trips."""

    def __init__(self, store):
        self._store, self.left, self.dead = store, None, False

    def __getattr__(self, name):
        found = getattr(self._store, name)
        if not asyncio.iscoroutinefunction(found):
            return found

        async def call(*args, **options):
            await self._live()
            answer = await found(*args, **options)
            await self._live()
            return answer

        return call

    async def _live(self):
        if self.left is not None:
            self.left -= 1
            self.dead = self.dead or self.left < 0
        if self.dead:
            await asyncio.Event().wait()
        await asyncio.sleep(0)


class Hub:
    def watched(self, ref):
        return False

    def noticed(self, ref, last_seq):
        pass

    def left(self, ref):
        pass


class Outbox:
    def __init__(self, store):
        self._store = store

    async def settle(self, ref):
        await self._store.settle(ref)


class Process:
    """One process: what it is made of, and a driver that has runs do what the test says."""

    def __init__(self, world, name):
        self.world, store = world, MemoryStore(world.state, name)
        self.store, hub = Mortal(store), Hub()
        outbox = Outbox(self.store)
        self.worker = Worker(SETTINGS, self.store, hub, None, None, outbox, None)
        self.driver = Driver(SETTINGS, self.store, hub, None, None, outbox, None)
        self.worker._driver = self
        self.sweeper = Sweeper(SETTINGS, self.store, self.worker, outbox)
        self.commanding = Commanding(self.store, hub, self.worker)
        self.accepting = Accepting(SETTINGS, self.store, hub, self.worker, None, None)
        store.on_admitted = lambda refs: self.store.dead or self.worker.admitted(refs)

    async def drive(self, owned, claim):
        """As Driver.drive."""
        ref, record = owned.ref, owned.record
        writer = RunWriter(
            self.store, Hub(), ref, record.epoch, record.attempt, trace_id="", batch_s=0.01, patience_s=1.0, on_lost=lambda: None
        )
        wants, waits_ms = self.world.wants[ref.run_id]
        commands = await self.store.commands(ref, 0)
        until_ms = record.created_ms + waits_ms if waits_ms else 0
        ready = self.world.state.clock.now_ms >= until_ms if waits_ms else len(commands) >= wants
        try:
            if ready or record.cancel_requested:
                written = await writer.finish(done())
                return Left("succeeded", written)
            inbox = SimpleNamespace(inbox=len(commands))
            state = orjson.dumps({"usage": {}, "inbox": len(commands)})
            turn = SimpleNamespace(writer=writer, snapshot=lambda parked=False: state, unstored=list, state=inbox)
            return await self.driver._park(owned, turn, RunParked(until_ms))
        except Fenced:
            return Left("lost")

    def hear(self, owned):
        """As Driver.hear; what comes while a run is at work is found when it is parked."""
        return asyncio.sleep(0)

    async def work(self):
        """One round of what the process does forever."""
        while (ref := await self.store.next_waiting("stable")) is not None:
            if not self.worker.take(ref):
                await self.worker._put_back(ref)
                break
        for ref in await self.store.due(100, 1.0):
            await self.sweeper._look(ref)

    async def accept(self, run_id):
        ref = RunRef("acme", f"t-{run_id}", run_id)
        schedule = Schedule(slots=SLOTS)
        reservation = await self.store.reserve(ref, "ana", SLOTS, "", "", queued=100, schedule=schedule)
        taken = ("append_only", "as_dict", "schema", "answers")
        made = SimpleNamespace(**{name: getattr(spec(ref.thread_id), name) for name in taken}, schedule=schedule)
        accepted = await self.store.accept(ref, "ana", made, "stable", reservation, "", (QUEUED, CANCELLED), 0.0)
        if accepted.verdict == "new" and not reservation.held:
            await self.store.wake(ref, "stable", 0, schedule=schedule)

    async def post(self, run_id):
        try:
            await self.commanding.post(RunRef("acme", f"t-{run_id}", run_id), "child", b"{}")
        except (NotFound, Conflict):
            return

    async def cancel(self, run_id):
        try:
            await self.accepting.cancel_run(ANA, run_id, "")
        except NotFound:
            return


class World:
    """Two processes over one store, and what each run wants: so many commands, or to wait so many ms."""

    def __init__(self, wants):
        self.state = MemoryState(clock=Ticking())
        self.wants = {f"r{i}": each for i, each in enumerate(wants)}
        self.processes, self.tasks, self.made, self.back_s = [], [], 0, 0
        for place in range(2):
            self.processes.append(None)
            self.replace(place)

    def replace(self, place):
        self.made += 1
        self.processes[place] = Process(self, f"p{self.made}")

    async def play(self, actions):
        for name, place, value, yields in actions:
            process = self.processes[place]
            match name:
                case "die":
                    process.store.left = value
                case "advance":
                    self.state.clock.advance(value / 2)
                case "back":
                    self.state.clock.advance(-BACK_S)
                    self.back_s += BACK_S
                case "work":
                    self.begin(process.work())
                case _:
                    self.begin(getattr(process, name)(f"r{value % len(self.wants)}"))
            await self.pass_(yields)
            if process.store.dead:
                self.replace(place)

    def begin(self, work):
        self.tasks.append(asyncio.create_task(work))

    async def pass_(self, yields):
        for _ in range(yields):
            await asyncio.sleep(0)
            self.check()

    def runs(self):
        return {run_id: thread.runs[run_id] for thread in self.state.threads.values() for run_id in thread.runs}

    def check(self):
        slots = self.state.tenant("acme").slots
        assert len(slots) <= SLOTS, "no more slots than there are"
        for run_id, run in self.runs().items():
            assert run.status != "running" or run.cancel or run_id in slots, f"{run_id} is at work without a slot"

    def unsettled(self):
        """What is left to do."""
        found = [f"{run_id} has a slot" for run_id in self.state.tenant("acme").slots]
        found += [f"{member} waits for a slot" for member in self.state.tenant("acme").queue]
        for run_id, run in self.runs().items():
            wants, waits_ms = self.wants[run_id]
            waits = run.status == "waiting" and not run.cancel and not waits_ms and run.inbox < wants
            if not run.ended and not waits:
                found.append(f"{run_id} is {run.status} with held={run.held!r}, cancel={run.cancel}, {run.inbox} commands")
        return found

    async def end(self):
        """Nobody dies any more, and nobody asks for anything."""
        # What is to be looked at is so much later by a clock that was set back.
        self.state.clock.advance(self.back_s)
        for place, process in enumerate(self.processes):
            process.store.left = None
            if process.store.dead:
                self.replace(place)
        for _ in range(SOON_S * 2):
            for process in self.processes:
                self.begin(process.work())
                await self.pass_(80)
            if not self.unsettled():
                break
            self.state.clock.advance(0.5)
        for task in self.tasks:
            if task.done():
                task.result()
        assert not self.unsettled()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)


WANTS = st.lists(st.one_of(st.tuples(st.integers(0, 2), st.just(0)), st.tuples(st.just(0), st.sampled_from([1_500, 4_000]))),
    min_size=1, max_size=RUNS)  # fmt: skip
NAMES = st.sampled_from(["accept"] * 3 + ["post"] * 4 + ["work"] * 4 + ["cancel", "die", "die", "advance", "back"])
ACTIONS = st.lists(st.tuples(NAMES, st.integers(0, 1), st.integers(0, 9), st.sampled_from([0, 1, 2, 4, 8, 16])), min_size=5, max_size=40)


@settings(max_examples=400, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(wants=WANTS, actions=ACTIONS)
# Who posts is lost before it has the run resumed, and who parks it between putting off the next look and looking whether it was woken.
@example(
    wants=[(1, 0), (2, 0)],
    actions=[("work", 0, 0, 0), ("post", 0, 3, 4), ("die", 1, 0, 2), ("die", 1, 1, 8), ("post", 1, 0, 0), ("die", 0, 3, 8)],
)
def test_every_accepted_run_ends_or_waits_for_a_command_that_nobody_sent(wants, actions):
    async def scenario():
        world = World(wants)
        for run_id in world.wants:
            await world.processes[0].accept(run_id)
        await world.play(actions)
        await world.end()

    asyncio.run(scenario())
