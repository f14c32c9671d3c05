"""What is still to be stored when a process ends."""

import asyncio

import structlog

from services.common.errors import Overloaded
from services.tool_executor.claims import Claims
from services.tool_executor.outcomes import CallResult, Outcome
from services.tool_executor.ports import Entry

ENTRY = Entry("acme", "k", "print", "order", "1.0.0", False, False, "token", 1.0)
RESULT = CallResult(Outcome.DONE, b"1", version="1.0.0", attempts=1)


class Ledger:
    """A ledger that stores when it is let, after refusing a number of times."""

    def __init__(self, refusals=0):
        self.open = asyncio.Event()
        self.refusals = refusals
        self.stored = []

    async def finish(self, entry, meta, output, *, free):
        if self.refusals:
            self.refusals -= 1
            raise Overloaded("away")
        await self.open.wait()
        self.stored.append((entry, meta, output, free))
        return True


async def test_closing_waits_for_what_is_being_stored():
    ledger = Ledger()
    claims = Claims(ledger)
    claims.in_background(claims.finish(ENTRY, RESULT))
    closing = asyncio.create_task(claims.close(timeout_s=30))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not closing.done()
    ledger.open.set()
    await closing
    assert ledger.stored == [(ENTRY, RESULT.meta(), b"1", False)]


async def test_closing_does_not_wait_for_ever_and_says_what_is_lost():
    claims = Claims(Ledger())
    claims.in_background(claims.finish(ENTRY, RESULT))
    with structlog.testing.capture_logs() as lines:
        await claims.close(timeout_s=0.05)
    assert [(line["event"], line["count"]) for line in lines] == [("tool_outcomes_lost", 1)]


async def test_a_result_that_cannot_be_stored_is_tried_again(monkeypatch):
    monkeypatch.setattr("services.tool_executor.claims.STORE_EVERY_S", 0.01)
    ledger = Ledger(refusals=3)
    ledger.open.set()
    claims = Claims(ledger)
    await claims.finish(ENTRY, RESULT)
    assert not ledger.stored
    await claims.close(timeout_s=30)
    assert len(ledger.stored) == 1


async def test_it_is_given_up_aloud(monkeypatch):
    monkeypatch.setattr("services.tool_executor.claims.STORE_EVERY_S", 0.01)
    monkeypatch.setattr("services.tool_executor.claims.STORE_FOR_S", 0.05)
    claims = Claims(Ledger(refusals=10**6))
    with structlog.testing.capture_logs() as lines:
        await claims.finish(ENTRY, RESULT)
        await claims.close(timeout_s=30)
    assert [line["event"] for line in lines] == ["tool_outcome_not_stored_yet", "tool_outcome_not_stored"]
