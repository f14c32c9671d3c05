"""Watchers get the log without gap or repetition, however batches arrive."""

import asyncio
import uuid
from types import SimpleNamespace

import pytest

from services.common import testing
from services.common.errors import Overloaded
from services.common.identity import Principal
from services.orchestrator.adapters.store import Store
from services.orchestrator.hub import MOST_BUFFERED, PAGE, Hub
from services.orchestrator.records import Draft, Event, Limits, RunRef, RunSpec
from services.orchestrator.testing.runs import done
from services.orchestrator.watching import Watching

SETTINGS = SimpleNamespace(watch_heartbeat_s=5.0, watch_max_age_s=60.0)


@pytest.fixture
async def log(valkey):
    """A run with an owner, and a hub that hears nothing by itself."""
    store = Store(valkey, "one")
    ref = RunRef("acme", uuid.uuid4().hex, uuid.uuid4().hex)
    spec = RunSpec(ref.thread_id, "a", "1", "d", [{"role": "user", "text": "x"}], Limits(), {"tenant": "acme", "user": "ana"})
    reservation = await store.reserve(ref, "ana", 0, "", "")
    await store.accept(ref, "ana", spec, "stable", reservation, "", (b"{}", b"{}"), 60.0)

    async def nothing(_):
        return None

    hub = Hub(store, nothing, nothing)
    worker = SimpleNamespace(owns=lambda ref: True, find=lambda *_: None)
    number = iter(range(1, 1000))

    async def write(count):
        written = await store.write(ref, 1, next(number), "", [Draft("warning", b"{}")] * count)
        return [event(ref, seq) for seq in range(written.first_seq, written.last_seq + 1)]

    return SimpleNamespace(store=store, ref=ref, hub=hub, watching=Watching(SETTINGS, store, hub, worker), write=write)


def event(ref, seq):
    return Event(seq, 1, ref.thread_id, ref.run_id, 1, "warning", b"{}", False, "")


async def take(events, count):
    """The numbers of the next events, at least `count` of them."""
    found = []
    while len(found) < count:
        found += [event.seq for event in await asyncio.wait_for(anext(events), 30)]
    return found


async def test_what_was_missed_is_read_and_what_is_known_is_dropped(log):
    events = log.watching.events(log.ref, of_run=True, after_seq=0, types=(), replay_only=False)
    assert await take(events, 2) == [1, 2]
    await log.write(3)
    known = await log.write(2)
    # The notice of 3 to 5 got lost; 6 and 7 come, then 6 again.
    log.hub.publish(log.ref, known)
    log.hub.publish(log.ref, known[:1])
    late = await log.write(1)
    log.hub.publish(log.ref, late)
    assert await take(events, 6) == [3, 4, 5, 6, 7, 8]
    await events.aclose()
    assert not log.hub.watched(log.ref)


async def test_batches_out_of_order_come_out_in_order(log):
    events = log.watching.events(log.ref, of_run=True, after_seq=0, types=(), replay_only=False)
    assert await take(events, 2) == [1, 2]
    first, second = await log.write(2), await log.write(2)
    log.hub.publish(log.ref, second)
    log.hub.publish(log.ref, first)
    assert await take(events, 4) == [3, 4, 5, 6]
    await events.aclose()


async def test_nothing_is_left_out_where_a_primary_that_is_replaced_answers(log, monkeypatch):
    events = log.watching.events(log.ref, of_run=True, after_seq=0, types=(), replay_only=False)
    assert await take(events, 2) == [1, 2]
    read = log.store.read

    async def as_it_was_before(*args):
        _, first, terminal, found = await read(*args)
        return 2, first, terminal, [event for event in found if event.seq <= 2]

    await log.write(1)
    known = await log.write(2)
    monkeypatch.setattr(log.store, "read", as_it_was_before)
    log.hub.publish(log.ref, known)
    with pytest.raises(Overloaded) as told:
        await take(events, 1)
    assert (told.value.reason, log.hub.watched(log.ref)) == ("LOG_BEHIND", False)
    # Who resumes while that goes on waits for what comes.
    events = log.watching.events(log.ref, of_run=True, after_seq=2, types=(), replay_only=False)
    waiting = asyncio.ensure_future(take(events, 3))
    await testing.eventually_async(lambda: log.hub.watched(log.ref), "it watches again")
    monkeypatch.setattr(log.store, "read", read)
    log.hub.noticed(log.ref, known[-1].seq)
    assert await waiting == [3, 4, 5]
    await events.aclose()


async def test_what_another_process_tells_of_during_a_read_is_read_too(log, monkeypatch):
    events = log.watching.events(log.ref, of_run=True, after_seq=0, types=(), replay_only=False)
    assert await take(events, 2) == [1, 2]
    read, told = log.store.read, []

    async def and_then_one_more(*args):
        found = await read(*args)
        if not told:
            # It is appended, and told of, when the store has answered and the answer has not come.
            told.extend(await log.write(1))
            log.hub.noticed(log.ref, told[-1].seq)
        return found

    (third,) = await log.write(1)
    monkeypatch.setattr(log.store, "read", and_then_one_more)
    log.hub.noticed(log.ref, third.seq)
    assert await take(events, 2) == [3, 4]


async def test_watchers_hear_that_what_comes_next_cannot_be_read(log, monkeypatch):
    events = log.watching.events(log.ref, of_run=True, after_seq=0, types=(), replay_only=False)
    assert await take(events, 2) == [1, 2]
    await log.write(1)
    (late,) = await log.write(1)
    read = log.store.read

    async def away(*_):
        raise Overloaded("the store of large results cannot be used", reason="RESULTS_UNAVAILABLE", retry_after_s=1.0)

    monkeypatch.setattr(log.store, "read", away)
    log.hub.noticed(log.ref, late.seq)
    with pytest.raises(Overloaded, match="large results") as told:
        await take(events, 1)
    assert (told.value.reason, told.value.retry_after_s) == ("RESULTS_UNAVAILABLE", 1.0)
    assert not log.hub.watched(log.ref)
    # Whoever resumes hears of it as well, and goes on where it was once that is back.
    with pytest.raises(Overloaded, match="large results"):
        await take(log.watching.events(log.ref, of_run=True, after_seq=2, types=(), replay_only=False), 1)
    monkeypatch.setattr(log.store, "read", read)
    events = log.watching.events(log.ref, of_run=True, after_seq=2, types=(), replay_only=False)
    assert await take(events, 2) == [3, 4]
    await events.aclose()


async def test_whoever_waits_for_an_end_hears_of_it_though_what_comes_before_cannot_be_read(log, monkeypatch):
    read, failed = log.store.read, asyncio.Event()

    async def away(ref, after_seq, most, of_run):
        if most == PAGE:
            failed.set()
            raise Overloaded("the store of large results cannot be used", reason="RESULTS_UNAVAILABLE")
        return await read(ref, after_seq, most, of_run)

    monkeypatch.setattr(log.store, "read", away)
    waiting = asyncio.create_task(log.watching.wait(Principal("acme", "ana"), log.ref.run_id))
    await testing.eventually_async(lambda: log.hub.watched(log.ref), "it waits")
    (late,) = await log.write(1)
    log.hub.noticed(log.ref, late.seq)
    await asyncio.wait_for(failed.wait(), 30)
    written = await log.store.write(log.ref, 1, 2, "", [], mode="f", terminal=done())
    log.hub.noticed(log.ref, written.last_seq)
    assert (await asyncio.wait_for(waiting, 30)).ended


async def test_a_slow_watcher_is_sent_away_and_the_writer_is_not_held_up(log):
    events = log.watching.events(log.ref, of_run=True, after_seq=0, types=(), replay_only=False)
    assert await take(events, 2) == [1, 2]
    await asyncio.wait_for(log.write(1), 30)
    many = [event(log.ref, seq) for seq in range(3, MOST_BUFFERED + 10)]
    log.hub.publish(log.ref, many)
    with pytest.raises(Overloaded) as caught:
        await take(events, 1)
    assert caught.value.reason == "WATCHER_TOO_SLOW"


async def test_an_old_watch_is_asked_to_come_back(log, monkeypatch):
    monkeypatch.setattr(SETTINGS, "watch_max_age_s", -1.0)
    events = log.watching.events(log.ref, of_run=True, after_seq=0, types=(), replay_only=False)
    with pytest.raises(Overloaded) as caught:
        await take(events, 3)
    assert caught.value.reason == "WATCH_EXPIRED"


async def test_closing_the_hub_ends_watches_that_are_open_and_that_come(log):
    watch = await log.hub.open(log.ref, True)
    log.hub.shut()
    late = await log.hub.open(log.ref, True)
    for each in (watch, late):
        with pytest.raises(Overloaded) as caught:
            await each.wait(1)
        assert caught.value.reason == "DRAINING"


async def test_nobody_is_followed_for_a_watcher_who_has_left(log):
    followed = []

    async def follow(ref):
        followed.append(ref)

    hub = Hub(log.store, follow, follow)
    watch = await hub.open(log.ref, True)
    hub.left(log.ref)
    await hub.close(log.ref, watch)
    await asyncio.gather(*hub._following)
    assert not followed, "nobody would ever end it"
    # Whoever is there still hears of it.
    await hub.open(log.ref, True)
    hub.left(log.ref)
    await asyncio.gather(*hub._following)
    assert followed == [log.ref]
