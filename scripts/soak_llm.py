"""The money race of the LLM gateway for minutes: python -m scripts.soak_llm, with MINUTES=10 in the environment for another length.

Two gateways on one Valkey before the simulator. One of them is killed again and again, the other lives through it all, and its memory is
watched. Each round is a tenant of its own: budgets are looked at all the time, and afterwards the ledger is compared with the
simulator's billing log. Prints JSON, writes build/soak/llm.json, and exits with 1 where anything was wrong.
"""

import asyncio
import os
import sys
import tempfile
import time
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import psutil

from scripts.verdict import tell
from services.common import testing
from tests.integration.llm_gateway.fleet import Replica
from tests.integration.llm_gateway.money_race import Race, killable_site

RESULT = testing.ROOT / "build" / "soak" / "llm.json"
# Each round is a new tenant, and what is known of tenants is kept for a while: few long rounds, so that memory shows what calls cost.
CALLS, CALLERS, SCALE = 6000, 24, 150
KILL_EVERY_S = 20.0
SAMPLE_EVERY_S = 2.0
# Caches and pools fill in the beginning; what grows after that goes on growing.
WARM_SHARE = 0.3
MOST_GROWTH = 0.05
MOST_GROWTH_MB = 6.0


class Watch:
    """Memory of a process, and the kills of another."""

    def __init__(self, fleet: list[Replica]) -> None:
        self._steady, self._victim = fleet
        self._memory = psutil.Process(self._steady.process.pid) if self._steady.process else None
        self.samples_mb: list[float] = []
        self.kills = 0
        self._next = time.monotonic() + KILL_EVERY_S
        self._back: asyncio.Task | None = None

    async def sample(self) -> None:
        """Measures until it is cancelled."""
        assert self._memory is not None
        while True:
            self.samples_mb.append(self._memory.memory_info().rss / 2**20)
            await asyncio.sleep(SAMPLE_EVERY_S)

    async def mischief(self, _: float) -> None:
        """Kills when it is time."""
        if time.monotonic() < self._next or not self._victim.ready:
            return
        self._next = time.monotonic() + KILL_EVERY_S
        self.kills += 1
        self._victim.kill()
        self._back = asyncio.create_task(self._victim.start())

    async def whole(self) -> None:
        """Returns when both are up."""
        if self._back is not None:
            await self._back

    def memory(self) -> dict[str, Any]:
        """Whether the memory is flat: the middle of the samples after the beginning against their end."""
        kept = self.samples_mb[int(len(self.samples_mb) * WARM_SHARE) :]
        third = max(len(kept) // 3, 1)
        early, late = (sorted(part)[len(part) // 2] for part in (kept[:third], kept[-third:]))
        flat = late - early <= max(MOST_GROWTH * early, MOST_GROWTH_MB)
        return {"early_mb": round(early, 1), "late_mb": round(late, 1), "samples": len(self.samples_mb), "flat": flat}


async def soak(minutes: float) -> dict[str, Any]:
    """Races until the time is over. Raises AssertionError where the books are wrong."""
    tally: Counter = Counter()
    outcomes: Counter = Counter()
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bulkhead-soak-")))
        keys = folder / "keys"
        keys.mkdir()
        identities = testing.Identities(keys)
        state_url, _ = stack.enter_context(testing.valkey_server("state"))
        site, fleet = await stack.enter_async_context(killable_site(identities, state_url, folder))
        watch = Watch(fleet)
        site.mischief = watch.mischief
        sampler = asyncio.create_task(watch.sample())
        began, ends, seed = time.monotonic(), time.monotonic() + minutes * 60, 0
        while time.monotonic() < ends:
            race = Race(site, seed, calls=CALLS, callers=CALLERS, scale=SCALE, name=f"soak{seed}")
            kills = watch.kills
            await race.prepare()
            await race.run()
            await watch.whole()
            await race.settle(crashed=watch.kills > kills)
            tally.update(await race.check())
            outcomes.update(race.outcomes)
            seed += 1
        sampler.cancel()
        return {
            "minutes": round((time.monotonic() - began) / 60, 2), "rounds": seed, "calls": seed * CALLS, "kills": watch.kills,
            "books": dict(tally), "outcomes": dict(outcomes.most_common()), "rss": watch.memory(),
        }  # fmt: skip


def main() -> int:
    """Runs it; answers the exit status."""
    minutes = float(os.environ.get("MINUTES", "10"))
    try:
        found = {"ok": True, **asyncio.run(soak(minutes))}
    except AssertionError as error:
        found = {"ok": False, "error": str(error)[:4000]}
    found["ok"] = found["ok"] and found["rss"]["flat"]
    return tell(found, RESULT)


if __name__ == "__main__":
    sys.exit(main())
