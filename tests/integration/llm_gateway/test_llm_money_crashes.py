"""The money race with real processes that are killed: two gateways on one store, SIGKILL in the middle of calls, again and again."""

import asyncio

import pytest

from tests.integration.llm_gateway.money_race import Race, killable_site


async def crashing_race(identities, state_url, folder, seeds, calls: int, odds: float) -> tuple[int, int, int]:
    """Races with gateways that are killed and come back; answers kills, lines booked as lost, and lines."""
    kills, lost, lines = 0, 0, 0
    async with killable_site(identities, state_url, folder) as (site, fleet):
        back: set[asyncio.Task] = set()

        async def mischief(chance: float) -> None:
            nonlocal kills
            ready = [replica for replica in fleet if replica.ready]
            if chance < odds and len(ready) == len(fleet):
                kills += 1
                victim = ready[kills % len(ready)]
                victim.kill()
                task = asyncio.create_task(victim.start())
                back.add(task)
                task.add_done_callback(back.discard)

        site.mischief = mischief
        for seed in seeds:
            race = Race(site, seed, calls=calls, name=f"crash{seed}")
            await race.prepare()
            await race.run()
            await asyncio.gather(*back)
            await race.settle(crashed=True)
            found = await race.check()
            lines += found["lines"]
            lost += sum(1 for line in await race.lines() if line["status"] == "lost")
    return kills, lost, lines


async def test_a_killed_gateway_takes_no_money_along(identities, state_url, tmp_path):
    kills, _, lines = await crashing_race(identities, state_url, tmp_path, range(3), 60, 0.06)
    assert kills
    assert lines > 20


@pytest.mark.system
@pytest.mark.timeout(600)
async def test_gateways_that_are_killed_all_the_time_never_pass_a_cap(identities, state_url, tmp_path):
    kills, lost, lines = await crashing_race(identities, state_url, tmp_path, range(100, 130), 120, 0.05)
    assert kills > 20
    assert lost
    assert lines > 500
