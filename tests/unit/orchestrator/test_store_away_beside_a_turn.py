"""A store that is away for a moment where a turn asks it for something beside what it writes, and where an ended run is told of."""

import asyncio
from types import SimpleNamespace

import pytest

from services.common.errors import Overloaded
from services.common.identity import Minter, Verifier, generate_keys
from services.orchestrator.approvals.deciding import Choice
from services.orchestrator.outbox import Outbox
from services.orchestrator.testing.approving import Losing, calling, on_the_clock_of
from services.orchestrator.testing.runs import CRASHES, accept, done, new_ref
from services.orchestrator.testing.turn_world import agent
from services.orchestrator.turn import patience

AWAY = Overloaded("the store is away", reason="STORE_UNAVAILABLE", retry_after_s=1.0)


def test_a_question_is_put_when_the_store_is_back_and_costs_no_owner(site, tmp_path, monkeypatch):
    monkeypatch.setattr(patience, "AWAY_WAIT_S", 0.01)
    generate_keys(tmp_path, ["orchestrator"])
    minter, verifier = Minter.from_file(tmp_path / "orchestrator.pem", "orchestrator"), Verifier.from_file(tmp_path / "jwks.json")
    put, asked = Losing.raise_interrupts, []

    async def away_twice(store, *args):
        asked.append(args)
        if len(asked) < 3:
            raise AWAY
        return await put(store, *args)

    monkeypatch.setattr(Losing, "raise_interrupts", away_twice)

    async def scenario():
        async with site.open() as backend:
            with on_the_clock_of(backend):
                calls = [("wipe", {"n": 1})]
                world = calling(calls, agent(tools=("wipe",)), backend=backend, minter=minter, verifier=verifier)
                await world.begin()
                await world.own()
                record = await world.store.run(world.ref)
                assert (record.status, record.attempt, record.crashes, record.losses) == ("waiting", 1, 0, 0)
                assert await world.decide("ana", 0, Choice("approve")) == "done"
                status = await world.finish()
                assert (status, dict(world.effects), await world.judged(status)) == ("succeeded", {"r/1/0": [b'{"n":1}']}, [])

    asyncio.run(scenario())
    assert len(asked) == 3


async def test_a_run_that_has_ended_gives_its_slot_back_also_where_its_audit_record_cannot_be_written(store):
    async def refused(ref):
        raise AWAY

    first, second = new_ref(), new_ref()
    assert await accept(store, first, slots=1) == "new"
    assert await accept(store, second, slots=1) == "quota"
    epoch = (await store.claim(first, 60, CRASHES)).record.epoch
    await store.write(first, epoch, 1, "", [], mode="f", terminal=done())
    silent = SimpleNamespace(certainly_silent=lambda tenant: True)
    with pytest.raises(Overloaded):
        await Outbox(store, SimpleNamespace(), SimpleNamespace(), silent, refused).settle(first)
    assert await accept(store, second, slots=1) == "new"
