"""Batches whose gateways are killed, stopped, drained and doubled. Verdicts are taken from the output, the ledger and the simulator."""

import asyncio
import signal
from collections import Counter

import pytest

from services.common import testing

# Processes, kills and stores that stand still: minutes, not seconds.
pytestmark = pytest.mark.system

LINES = 240
LOCAL = {"provider": False}


def numbered(line, count: int = LINES) -> list[dict]:
    """Requests that all differ, so that the simulator's log tells them apart."""
    return [line(f"c{n}", f"say exactly: number {n}") for n in range(count)]


def whole(answers: list[dict], count: int = LINES) -> None:
    """Each line once, in order, with its own answer."""
    assert [answer["custom_id"] for answer in answers] == [f"c{n}" for n in range(count)]
    for number, answer in enumerate(answers):
        assert answer["response"]["body"]["choices"][0]["message"]["content"] == f"number {number}"


async def progressed(g, batch, count: int) -> None:
    async def enough():
        return (await g.client.batches.retrieve(batch.id)).request_counts.completed >= count

    await testing.eventually_async(enough, f"{count} lines are answered")


async def same_bills(g, sim, lost_at_most: int = 0) -> Counter:
    """The ledger says what the simulator says; reservations of a killed process are booked once they expire, which is later."""
    log = [entry for entry in await sim.log() if entry["status"] == 200]
    asked = Counter(entry["asked"] for entry in log)
    billed = sum(entry["billed_nanousd"] for entry in log)
    ledger = await g.lines()
    open_ = await g.store.hlen("llm:{acme}:open")
    assert open_ <= lost_at_most
    assert len(ledger) <= len(log) <= len(ledger) + open_
    assert sum(entry["cost_nanousd"] for entry in ledger) <= billed
    if not open_:
        assert sum(entry["cost_nanousd"] for entry in ledger) == billed
    return asked


async def test_a_gateway_killed_in_the_middle_is_gone_on_with_and_every_line_stands_once(processes, line, sim):
    await sim.order("first_token_delay=20")
    g, process = await processes(**LOCAL)
    batch = await g.begun(numbered(line))
    await progressed(g, batch, 40)
    process.kill()
    second, _ = await processes(**LOCAL)
    done = await second.ended(batch)
    assert done.status == "completed"
    assert done.request_counts.model_dump() == {"total": LINES, "completed": LINES, "failed": 0}
    answers, errors = await second.outputs(done)
    whole(answers)
    assert errors == []
    asked = await same_bills(second, sim, lost_at_most=8)
    # Only lines that were in flight, or not yet on the disk, were asked twice.
    assert len(asked) == LINES
    assert sum(asked.values()) <= LINES + 2 * 8
    assert max(asked.values()) <= 2


async def test_two_replicas_share_the_batches_and_each_batch_has_one_holder(processes, line, sim):
    await sim.order("first_token_delay=10")
    one, first = await processes(**LOCAL)
    two, second = await processes(**LOCAL)

    def claims() -> list[int]:
        return [process.output().count('"batch_claimed"') + process.output().count("batch_claimed ") for process in (first, second)]

    batches: list = []
    # One look may find several; whose turn it is is chance.
    while len(batches) < 6 or (min(claims()) < 1 and len(batches) < 60):
        batches.append(await one.begun(numbered(line, 40)))
    for batch in batches:
        done = await two.ended(batch)
        answers, _ = await two.outputs(done)
        whole(answers, 40)
    assert sum(claims()) == len(batches)
    assert min(claims()) >= 1
    assert len(await sim.log()) == len(batches) * 40
    await same_bills(one, sim)


async def two_of_them(processes, line, **rules):
    """A batch, the gateway that holds it with its process, and the other one."""
    pairs = [await processes(**{**LOCAL, **rules}) for _ in range(2)]
    batch = await pairs[0][0].begun(numbered(line))
    await testing.eventually_async(lambda: any("batch_claimed" in process.output() for _, process in pairs), "somebody holds the batch")
    holding = next(pair for pair in pairs if "batch_claimed" in pair[1].output())
    other = next(pair for pair in pairs if pair is not holding)
    await progressed(other[0], batch, 20)
    return batch, holding, other


async def test_a_replica_takes_over_within_the_lease_and_the_one_that_comes_back_writes_nothing(processes, line, sim):
    await sim.order("first_token_delay=50")
    batch, (_, stopped), (other, running) = await two_of_them(processes, line)
    stopped.signal(signal.SIGSTOP)
    began = asyncio.get_running_loop().time()
    await testing.eventually_async(lambda: "batch_claimed" in running.output(), "the other takes over")
    assert asyncio.get_running_loop().time() - began < 15  # a lease of 3 s and a loaded machine
    stopped.signal(signal.SIGCONT)
    done = await other.ended(batch)
    assert done.status == "completed"
    answers, _ = await other.outputs(done)
    whole(answers)
    await testing.eventually_async(lambda: "batch_lease_lost" in stopped.output(), "the zombie notices")
    assert "batch_ended" not in stopped.output()
    # The lines that were in flight when it was stopped came back to nobody; what they cost is booked all the same.
    asked = await same_bills(other, sim, lost_at_most=8)
    assert sum(asked.values()) <= LINES + 3 * 8
    assert len((await other.client.files.list(purpose="batch_output")).data) == 1
    await testing.eventually_async(lambda: not list(other.folder.glob("files/*/running/*")), "the work is tidied up")


async def test_a_drained_gateway_hands_over_at_once_and_no_line_is_asked_twice(processes, line, sim):
    await sim.order("first_token_delay=50")
    batch, (_, leaving), (other, _) = await two_of_them(processes, line, lease_s=60.0)
    leaving.signal(signal.SIGTERM)
    assert await asyncio.to_thread(leaving.wait) == 0
    assert "batch_ended" not in leaving.output()
    # A lease of a minute would not have run out by now.
    done = await other.ended(batch)
    answers, _ = await other.outputs(done)
    whole(answers)
    assert max((await same_bills(other, sim)).values()) == 1


async def test_many_crashes_lose_and_double_nothing(processes, line, sim):
    await sim.order("first_token_delay=30")
    g, process = await processes(**{**LOCAL, "lease_s": 0.6})
    batch = await g.begun(numbered(line))
    for wanted in (20, 80, 150):
        await progressed(g, batch, wanted)
        process.kill()
        g, process = await processes(**{**LOCAL, "lease_s": 0.6})
    done = await g.ended(batch)
    answers, _ = await g.outputs(done)
    whole(answers)
    await same_bills(g, sim, lost_at_most=3 * 8)


async def test_a_store_that_is_away_for_a_while_stops_nothing_for_good(processes, line, sim):
    await sim.order("first_token_delay=20")
    g, _ = await processes(**LOCAL)
    batch = await g.begun(numbered(line, 100))
    await progressed(g, batch, 10)
    # CLIENT PAUSE holds every command back, as a store does that has stopped.
    await g.store.execute_command("CLIENT", "PAUSE", 4_000, "ALL")
    done = await g.ended(batch)
    answers, _ = await g.outputs(done)
    whole(answers, 100)
