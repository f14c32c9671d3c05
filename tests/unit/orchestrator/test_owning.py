"""Who looks after a run: what the sweeper and the worker do when something else hangs, was paused or was lost."""

import asyncio
from types import SimpleNamespace

import orjson
import pytest

from services.common import testing
from services.common.errors import UpstreamFailed
from services.orchestrator.adapters.store import Store
from services.orchestrator.driving import Owned
from services.orchestrator.ports import Message, ModelFinished
from services.orchestrator.records import Limits, RunRef
from services.orchestrator.sweeper import Sweeper
from services.orchestrator.testing.runs import CRASHES, accept, done, new_ref
from services.orchestrator.testing.turn_world import agent
from services.orchestrator.turn import model_step
from services.orchestrator.turn.state import TurnState
from services.orchestrator.worker import Worker


class HangingOutbox:
    """Delivers nothing, as to a memory service that does not answer."""

    def __init__(self):
        self.asked = []

    async def deliver(self, ref):
        self.asked.append(ref)
        await asyncio.Event().wait()


async def ended_with_outbox(store, ref):
    claim = await store.claim(ref, 60, CRASHES)
    terminal = done()
    terminal = type(terminal)(terminal.status, terminal.result, terminal.event, terminal.data, b"{}")
    await store.write(ref, claim.record.epoch, 1, "", [], mode="f", terminal=terminal)


@pytest.fixture
async def sweeping(valkey):
    store, outbox = Store(valkey, "one"), HangingOutbox()
    settings = SimpleNamespace(track="stable", sweep_s=0.02, other_track_after_s=60.0)
    sweeper = Sweeper(settings, store, SimpleNamespace(owns=lambda ref: False), outbox)
    task = asyncio.create_task(sweeper.run())
    yield store, outbox
    task.cancel()
    await asyncio.wait([task])


async def test_a_memory_service_that_hangs_holds_up_no_run(sweeping):
    store, outbox = sweeping
    stuck, free = new_ref(), new_ref()
    assert await accept(store, stuck, slots=1) == "new"
    await ended_with_outbox(store, stuck)
    await testing.eventually_async(lambda: outbox.asked, "the sweeper delivers")
    assert await accept(store, free, slots=1) == "new", "a run that has ended holds no slot"
    assert await store.next_ready("stable", 5.0) == free


async def test_a_run_that_cannot_be_looked_at_does_not_keep_the_others_from_it(sweeping, valkey):
    store, _ = sweeping
    broken, free = new_ref(), new_ref()
    await valkey.set(f"t:{{acme/{broken.thread_id}}}:run:{broken.run_id}", "no hash")
    await store.note(broken, 0.0)
    assert await accept(store, free) == "new"
    assert await store.next_ready("stable", 5.0) == free


async def test_a_run_at_work_here_is_not_claimed_a_second_time():
    ref = RunRef("acme", "t", "r")
    worker = Worker(*[None] * 7)
    owned = worker.owned[ref] = Owned(ref, None)
    assert worker.take(ref)
    assert (worker.owned, worker._background) == ({ref: owned}, set())


class LateLoss:
    """Models that lose their first answer after a while."""

    def __init__(self, after_s):
        self.after_s, self.calls = after_s, 0

    async def stream(self, call):
        self.calls += 1
        if self.calls == 1:
            await asyncio.sleep(self.after_s)
            raise UpstreamFailed("lost", reason="UNREACHABLE")
        yield ModelFinished(Message("assistant", ""), "stop", {})


async def test_a_long_answer_that_is_lost_is_asked_for_again(monkeypatch):
    monkeypatch.setattr(model_step, "PATIENCE_S", 0.05)
    models = LateLoss(after_s=0.2)
    turn = SimpleNamespace(
        state=TurnState(started_step=1), spec=SimpleNamespace(limits=Limits(), append_only=False, temperature=None, max_tokens=None),
        agent=agent(), tools=[], messages=[], delivered="",
        ref=RunRef("acme", "t", "r"), services=SimpleNamespace(models=models), check_time=lambda: None, enter_call=lambda: None,
    )  # fmt: skip
    await model_step.model_step(turn, model_step.Asked([], []))
    assert models.calls == 2


class Recorder:
    """Notes what is asked of it, as whatever part it stands for."""

    def __init__(self):
        self.asked = []

    async def cancel(self, run_id, principal):
        self.asked.append((run_id, principal.user))

    async def settle(self, ref):
        self.asked.append(("settled", ref))

    def noticed(self, ref, last_seq):
        pass


async def test_children_of_a_run_that_is_given_up_are_asked_to_end(valkey):
    store, ref, children = Store(valkey, "one"), new_ref(), Recorder()
    assert await accept(store, ref) == "new"
    claim = await store.claim(ref, 0.01, 1)
    known = {"0": {"run_id": "at-work"}, "1": {"run_id": "ended", "status": "failed"}, "over": {"run_id": "ended-too"}}
    state = orjson.dumps({"usage": {}, "parts": {"children": known}})
    await store.write(ref, claim.record.epoch, 1, "", [], mode="c", state=state)

    async def expired():
        return (await store.inspect(ref))[0] == "free"

    await testing.eventually_async(expired, "the lease has run out")
    settings, outbox = SimpleNamespace(lease_s=1.0, crash_budget=1, max_active_runs=1), Recorder()
    worker = Worker(settings, store, Recorder(), None, SimpleNamespace(children=children), outbox, None)
    assert worker.take(ref)
    await testing.eventually_async(lambda: outbox.asked, "the run is given up")
    assert children.asked == [("at-work", "ana")]
