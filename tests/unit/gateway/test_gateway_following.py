"""A log is followed without gap or repetition, however often whoever serves it breaks off."""

import asyncio
import time
from contextlib import aclosing, suppress

import pytest
from bulkhead.orchestrator.v1.orchestrator_pb2 import Event
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.errors import Cancelled, Gone, NotFound, Overloaded
from services.gateway import following
from services.gateway.following import Follower
from services.gateway.ports import Subject

RUN = Subject(run_id="r")


class Log:
    """An EventSource over a list; each opening breaks as the plan says: (events before it breaks, how, events repeated)."""

    def __init__(self, count, plan=()):
        kinds = ["message_delta"] * (count - 1) + ["run_finished"]
        self.events = [Event(seq=n + 1, run_id="r", type=kind) for n, kind in enumerate(kinds)]
        self.plan = list(plan)
        self.opened = []

    async def open(self, subject, after, *, types=(), replay_only=False):
        self.opened.append(after)
        length, how, repeated = self.plan.pop(0) if self.plan else (len(self.events), None, 0)
        start = max(0, after - repeated)
        for event in self.events[start : start + length]:
            yield []
            yield [event]
        if how == "silent":
            await asyncio.sleep(60)
        if how is not None and how != "end":
            raise {"overloaded": Overloaded, "cancelled": Cancelled, "gone": Gone, "missing": NotFound}[how]("broken")


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(following, "FIRST_PAUSE_S", 0.0001)
    monkeypatch.setattr(following, "LONGEST_PAUSE_S", 0.001)


async def seqs(follower, subject=RUN, after=0, **options):
    return [event.seq async for event in follower.follow(subject, after, **options)]


BREAKS = st.lists(st.tuples(st.integers(0, 6), st.sampled_from(["overloaded", "cancelled", "end"]), st.integers(0, 4)), max_size=12)


@given(count=st.integers(1, 30), plan=BREAKS, after=st.integers(0, 10))
@settings(max_examples=150, deadline=None)
def test_what_comes_is_the_log_after_the_cursor(count, plan, after):
    log = Log(count, plan)
    after = min(after, count - 1)
    assert asyncio.run(seqs(Follower(log), after=after)) == list(range(after + 1, count + 1))


async def test_a_run_ends_with_its_own_terminal_event():
    log = Log(3)
    log.events.insert(1, Event(seq=2, run_id="other", type="run_finished"))
    for number, event in enumerate(log.events):
        event.seq = number + 1
    assert await seqs(Follower(log)) == [1, 2, 3, 4]
    assert log.opened == [0]


async def test_a_silent_stream_is_opened_again():
    log = Log(4, [(2, "silent", 0)])
    assert await seqs(Follower(log, silence_s=0.05)) == [1, 2, 3, 4]
    assert log.opened == [0, 2]


async def test_a_replay_ends_where_the_log_ends():
    log = Log(3)
    assert await seqs(Follower(log), Subject(thread_id="t"), replay_only=True) == [1, 2, 3]
    assert await seqs(Follower(Log(5, [(2, "overloaded", 0)])), Subject(thread_id="t"), replay_only=True) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(("how", "error"), [("gone", Gone), ("missing", NotFound)])
async def test_a_refusal_is_not_repeated(how, error):
    log = Log(3, [(1, how, 0)])
    with pytest.raises(error):
        await seqs(Follower(log))
    assert len(log.opened) == 1


async def test_the_search_for_a_server_of_the_log_is_bounded():
    log = Log(3, [(0, "overloaded", 0)] * 100_000)
    begun = time.monotonic()
    with pytest.raises(Overloaded):
        await seqs(Follower(log, reconnect_s=0.1))
    assert time.monotonic() - begun < 30
    assert len(log.opened) > 3


@pytest.mark.parametrize("subject", [RUN, Subject(thread_id="t")])
async def test_a_run_is_followed_up_to_its_end_and_not_to_what_comes_with_it(subject):
    log = Log(3)
    log.events.append(Event(seq=4, type="log_gap"))
    log.events.append(Event(seq=5, run_id="another", type="run_finished"))

    async def together(subject, after, **options):
        yield log.events
        await asyncio.sleep(60)

    log.open = together
    shown = []
    with suppress(TimeoutError):
        async with asyncio.timeout(0.2), aclosing(Follower(log).batches(subject)) as batches:
            async for batch in batches:
                shown += [event.seq for event in batch]
            shown.append("ended")
    assert shown == ([1, 2, 3, "ended"] if subject == RUN else [1, 2, 3, 4, 5])
