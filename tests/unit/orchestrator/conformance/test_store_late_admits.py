"""A slot that is given late, as what asked for it was long on its way."""

import asyncio

from services.orchestrator.records import Park, Schedule
from services.orchestrator.testing.runs import accept, done, new_ref

LEASE_S, CRASHES = 10, 100
LIMITED = Schedule(slots=1)


def test_a_slot_for_a_run_that_has_ended_meanwhile_goes_back(site):
    async def scenario():
        async with site.open() as backend:
            one, two, ref = backend.process("one"), backend.process("two"), new_ref()
            assert await accept(one, ref, slots=1) == "new"
            claim = await one.claim(ref, LEASE_S, CRASHES)
            await one.write(ref, claim.record.epoch, 1, "", [], mode="p", park=Park(0, 0))
            await one.post(ref, "decision", b"{}")
            seen = await one.inspect(ref)
            assert seen.state == "held"
            # What the first asks for now is on its way while the second has the run resumed, and works on it to its end.
            assert await two.admit(ref, LIMITED, seen.epoch)
            await two.enter(ref)
            again = await two.claim(ref, LEASE_S, CRASHES)
            await two.write(ref, again.record.epoch, 1, "", [], mode="f", terminal=done())
            await two.settle(ref)
            await one.admit(ref, LIMITED, seen.epoch)
            await backend.advance(5)
            assert ref in await two.due(10, 1), "somebody looks at it"
            assert (await two.inspect(ref)).state == "ended"
            await two.settle(ref)
            assert (await one.reserve(new_ref(), "ana", 1, "", "")).verdict == "new"

    asyncio.run(scenario())
