"""Writes that wait for a store that is away: spread, so that it is not asked by all at once when it is back, and within their patience."""

import asyncio

import pytest

from services.common.errors import Overloaded
from services.orchestrator import writer as writers
from services.orchestrator.records import RunRef, Written
from services.orchestrator.writer import RETRY_FIRST_S, RETRY_MOST_S, RunWriter

WRITERS, TRIES = 30, 4


class Away:
    """A store that is away for the first `tries` of each writer."""

    def __init__(self, tries):
        self.tries, self.asked = tries, {}

    async def write(self, ref, *args, **fields):
        asked = self.asked.setdefault(ref.run_id, [])
        asked.append(asyncio.get_running_loop().time())
        if len(asked) <= self.tries:
            raise Overloaded("the state store is away", reason="STORE_UNAVAILABLE")
        return Written(1, 1, 0, "")


class Hub:
    def watched(self, ref):
        return False


def writer(store, number, patience_s=60.0):
    ref = RunRef("acme", "t", f"r{number}")
    return RunWriter(store, Hub(), ref, 1, 1, trace_id="", batch_s=0.01, patience_s=patience_s, on_lost=lambda: None)


@pytest.fixture
def waits(monkeypatch):
    """How long writers have wanted to wait."""
    wanted = []

    class Waiting:
        def __getattr__(self, name):
            return getattr(asyncio, name)

        async def sleep(self, seconds):
            wanted.append(seconds)
            await asyncio.sleep(seconds)

    monkeypatch.setattr(writers, "asyncio", Waiting())
    return wanted


async def test_writers_that_found_the_store_away_together_do_not_come_back_together(waits):
    store = Away(TRIES)
    made = [writer(store, number) for number in range(WRITERS)]
    for one in made:
        one.emit("warning", {})
    await asyncio.gather(*(one.flush() for one in made))
    # The first wait of each is of the same length otherwise, and so is each that follows.
    for turn in range(TRIES):
        of_turn = sorted(
            seconds for seconds in waits if RETRY_FIRST_S * 2**turn / 2 <= seconds <= min(RETRY_FIRST_S * 2**turn, RETRY_MOST_S)
        )
        assert len(set(of_turn)) > WRITERS / 2
    # A store that is back is asked within half a second, well within a lease.
    assert max(waits) <= RETRY_MOST_S
    assert {len(asked) for asked in store.asked.values()} == {TRIES + 1}


async def test_nobody_waits_for_longer_than_its_patience(waits):
    one = writer(Away(1_000), 0, patience_s=0.3)
    one.emit("warning", {})
    with pytest.raises(Overloaded):
        await one.flush()
    assert one.lost
    assert sum(waits) <= 0.3
