"""Never past a cap, never a line too many or too few: random races of a served gateway, one tenant a seed."""

from collections import Counter
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from services.common.valkey import connect
from tests.integration.llm_gateway.conftest import served, simulated
from tests.integration.llm_gateway.money_race import SETTINGS, Race, Site, models, order_faults

pytestmark = pytest.mark.asyncio(loop_scope="module")
QUICK = range(25)
SEEDS = [*QUICK, *(pytest.param(seed, marks=pytest.mark.system) for seed in range(len(QUICK), 425))]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(identities, _state_server, tmp_path_factory) -> AsyncIterator[Site]:
    async with simulated() as sim:
        folder = tmp_path_factory.mktemp("race")
        async with served(models(sim.url), identities, _state_server, folder, sim, **SETTINGS) as stack:
            state = connect(_state_server, timeout_s=20.0)
            await order_faults(sim)
            yield Site(lambda: [stack.url], lambda: [stack.llm], sim, state, identities, stack.http)
            await state.aclose()


@pytest.fixture(scope="module")
def tallies() -> dict[int, Counter]:
    """What the race of each seed has met."""
    return {}


@pytest.mark.parametrize("seed", SEEDS)
async def test_no_race_passes_a_cap_or_leaves_the_books_wrong(site, tallies, seed):
    await raced(site, tallies, seed)


async def test_the_races_met_what_they_were_made_for(site, tallies):
    for seed in set(QUICK) - tallies.keys():
        await raced(site, tallies, seed)
    tally = sum(tallies.values(), Counter())
    for name in ("ok", "budget_exceeded", "left", "cached"):
        assert tally[f"saw:{name}"] > 3, tally
    assert tally["served"] > 500
    assert tally["estimated"] > 20
    assert tally["booked_nanousd"] > tally["cap_nanousd"] / 4


async def raced(site: Site, tallies: dict[int, Counter], seed: int) -> None:
    race = Race(site, seed)
    await race.prepare()
    await race.run()
    await race.settle()
    found = await race.check()
    assert sum(race.outcomes.values()) == race.calls
    tallies[seed] = Counter({**found, **{f"saw:{name}": count for name, count in race.outcomes.items()}})
