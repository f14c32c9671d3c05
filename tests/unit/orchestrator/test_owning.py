"""Who looks after a run: what the sweeper and the worker do when something else hangs, was paused or was lost."""

import asyncio
from dataclasses import replace
from types import SimpleNamespace

import orjson
import pytest
from structlog.testing import capture_logs

from services.common import testing
from services.common.errors import UpstreamFailed
from services.orchestrator.adapters.store import Store
from services.orchestrator.driving import Owned
from services.orchestrator.ports import Message, ModelFinished
from services.orchestrator.records import Limits, RunRef, RunSpec
from services.orchestrator.sweeper import Sweeper
from services.orchestrator.testing.runs import CANCELLED, CRASHES, accept, done, new_ref
from services.orchestrator.testing.turn_world import agent
from services.orchestrator.turn import model_step
from services.orchestrator.turn.guardrails import AllowAll
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
    sweeper = Sweeper(settings, store, SimpleNamespace(owns=lambda ref: False, has_room=lambda: False), outbox)
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


@pytest.mark.parametrize("crashes", [0, 1])
async def test_a_run_is_told_to_be_taken_over_where_its_last_owner_was_lost_and_not_whenever_it_goes_on(valkey, crashes):
    store, ref = Store(valkey, "one"), new_ref()
    assert await accept(store, ref) == "new"
    record = (await store.claim(ref, 60, CRASHES)).record
    worker = Worker(*[None] * 7)
    with capture_logs() as told:
        worker._register(ref, replace(record, losses=1, crashes=crashes))
    assert [line["event"] for line in told] == ["run_taken_over"] * crashes


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
        state=TurnState(started_step=1), spec=RunSpec("t", "a", "1", "d", [], Limits(), {}),
        agent=agent(), tools=[], messages=[], delivered="",
        ref=RunRef("acme", "t", "r"), services=SimpleNamespace(models=models, guardrails=AllowAll()), hashed=None,
        check_time=lambda: None, enter_call=lambda: None,
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


class Posted(Recorder):
    """Notes what it delivers, and does so only where the entry is left to it."""

    def __init__(self, store):
        super().__init__()
        self._store = store

    async def deliver(self, ref):
        entry, _ = await self._store.outbox_claim(ref, 30.0)
        self.asked.append(orjson.loads(entry))
        await self._store.outbox_done(ref, True)
        await self._store.settle(ref)


KNOWN = {"0": {"run_id": "at-work"}, "1": {"run_id": "ended", "status": "failed"}, "over": {"run_id": "ended-too"}}


@pytest.fixture
async def about_to_be_given_up(backend, store, other):
    """Whose next claim gives the run up, with children at work; and what a worker on the other process tells."""
    ref, children, outbox = new_ref(), Recorder(), Posted(other)
    assert await accept(store, ref) == "new"

    async def lost(**parts):
        claim = await store.claim(ref, 1.0, 1)
        state = orjson.dumps({"usage": {}, "parts": {"children": KNOWN, **parts}})
        await store.write(ref, claim.record.epoch, 1, "", [], mode="c", state=state)
        await backend.advance(2.0)
        return ref

    settings = SimpleNamespace(lease_s=1.0, crash_budget=1, max_active_runs=1, track="stable", other_track_after_s=60.0)
    worker = Worker(settings, other, Recorder(), None, SimpleNamespace(children=children), outbox, None)
    return lost, worker, Sweeper(settings, other, worker, outbox), children, outbox


async def test_children_of_a_run_that_is_given_up_are_asked_to_end(about_to_be_given_up):
    lost, worker, _, children, outbox = about_to_be_given_up
    ref = await lost()
    assert worker.take(ref)
    await testing.eventually_async(lambda: outbox.asked, "the run is given up")
    assert (children.asked, outbox.asked) == ([("at-work", "ana")], [("settled", ref)])


async def test_so_they_are_where_who_gave_it_up_was_lost_right_behind_it(about_to_be_given_up, store):
    lost, _, sweeper, children, outbox = about_to_be_given_up
    ref = await lost()
    assert (await store.claim(ref, 1.0, 1)).verdict == "failed"
    for _ in range(2):
        await sweeper._look(ref)
    assert (children.asked, outbox.asked) == ([("at-work", "ana")] * 2, [("settled", ref)] * 2)


async def test_so_they_are_where_a_cancelled_run_was_given_up_by_a_replica_with_a_smaller_budget(about_to_be_given_up, store, backend):
    lost, worker, sweeper, children, _ = about_to_be_given_up
    worker.settings.crash_budget = 3
    ref = await lost()
    await store.cancel(ref, "", CANCELLED, "")
    assert (await store.claim(ref, 1.0, 1)).verdict == "claimed"
    await backend.advance(2.0)
    assert (await store.claim(ref, 1.0, 1)).verdict == "failed"
    await sweeper._look(ref)
    assert children.asked == [("at-work", "ana")]


@pytest.mark.parametrize("by", ["worker", "sweeper"])
async def test_a_memory_reset_that_was_postponed_outlives_the_run_that_is_given_up(about_to_be_given_up, store, by):
    lost, worker, sweeper, children, outbox = about_to_be_given_up
    ref = await lost(ladder={"forget_before_ms": 42})
    if by == "worker":
        assert worker.take(ref)
    else:
        assert (await store.claim(ref, 1.0, 1)).verdict == "failed"
        await sweeper._look(ref)
    await testing.eventually_async(lambda: outbox.asked, "the entry is delivered")
    (entry,) = outbox.asked
    assert (entry["forget_before_ms"], entry["kept"], entry["principal"]["user"]) == (42, False, "ana")
    assert children.asked == [("at-work", "ana")]
    # Once: whoever comes later finds it delivered.
    await sweeper._look(ref)
    assert outbox.asked == [entry, ("settled", ref)]


async def test_an_entry_that_was_left_is_delivered_where_who_left_it_was_lost(about_to_be_given_up, store):
    lost, worker, sweeper, _, outbox = about_to_be_given_up
    ref = await lost(ladder={"forget_before_ms": 42})
    assert (await store.claim(ref, 1.0, 1)).verdict == "failed"
    assert await worker.wind_up(ref)
    assert (await store.inspect(ref)).state == "outbox"
    # Whoever looked before that one was done delivers as well, and does not forget the run.
    assert await worker.wind_up(ref)
    await sweeper._look(ref)
    await testing.eventually_async(lambda: outbox.asked, "the entry is delivered")
    assert not await worker.wind_up(ref)
