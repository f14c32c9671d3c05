"""Kills, stops and cuts off orchestrators at random under load: `make chaos`, until KILLS=1000 SIGKILLs, over RUNS=24 threads at a time.

Three replicas, each behind a proxy of its own before one Valkey (AOF), with the product's own lease, heartbeat and sweep. Faults: SIGKILL,
SIGSTOP longer than the lease, a store that is cut off for longer and for shorter than the lease, a network that swallows everything, and
kill and restart of the store; FAULTS=kill takes those that it names, and no others; without `kill` among them KILLS counts all. STORE=set
puts a primary with two replicas and a sentinel in the place of the one Valkey: `store` then strikes the primary, and no proxy can cut. One
replica is left alone at any time. MIX=plain,asked takes clients of these kinds alone. Each thread is judged by the oracle some seconds
after its end. Takeovers are measured from the SIGKILL of an owner; where each other replica was struck before the next owner's first event,
they are told apart (`beset`), and nothing is promised of them. SIGINT ends the strikes early. Says on stderr every minute how far it is.
Prints JSON, writes build/chaos/chaos.json, and exits with 1 where any promise was broken, a replica logged an error, takeovers took longer
than is promised, or it ended before it had shown anything.
"""

import asyncio
import math
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Set
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import orjson
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from scripts import chaos_beside
from scripts.bench.machine import percentile
from scripts.chaos_beside import Clock, Hook
from scripts.chaos_load import MIX, Load
from scripts.chaos_store import Members, Single, Store
from scripts.verdict import tell
from services.common import testing
from services.common.valkey import UNAVAILABLE, connect
from services.orchestrator.adapters.store_keys import waiting_keys
from services.orchestrator.testing.counting import CountingTools
from services.orchestrator.testing.fakes import Fakes, fakes
from services.orchestrator.testing.harness import root_keys, write_config
from services.orchestrator.testing.oracle import Violation
from services.orchestrator.testing.receivers import receiver
from services.orchestrator.testing.replicas import Replica

RESULT = testing.ROOT / "build" / "chaos" / "chaos.json"
REPLICAS = 3
FAULTS = {"kill": 62, "stop": 12, "cut": 10, "blink": 8, "freeze": 4, "store": 4}
PRIMARY_FAULTS = {"kill": 62, "stop": 12, "store": 10}
# What there is to strike, and how.
STORES: Mapping[str, tuple[Callable[[Path], Store], Mapping[str, int]]] = {"single": (Single, FAULTS), "set": (Members, PRIMARY_FAULTS)}
# How long each lasts; a lease is 3 s, and only a blink is shorter.
LASTS_S = {"kill": (0.0, 0.0), "stop": (3.5, 6.0), "cut": (3.5, 6.0), "blink": (0.1, 1.5), "freeze": (3.5, 6.0)}
PAUSE_S = (0.2, 1.2)
TOLD_EVERY_S = 60.0
# A reservation that never became a run is given up after 15 s.
RESIDUE_S = 40.0
# A run is given up after so many lost owners: more than chance brings about.
CRASH_BUDGET = 50
# What is promised of the time from the loss of an owner to the first event of the next one, where there is another one all that time.
TAKEOVER_P99_MS = 5_000
# Of so many, not every takeover has each other replica struck meanwhile.
MANY_KILLS = 20
SETTINGS = {
    "lease_s": 3.0, "heartbeat_s": 1.0, "sweep_s": 0.5, "watch_heartbeat_s": 1.0, "crash_budget": CRASH_BUDGET, "log_level": "WARNING",
}  # fmt: skip


class Strike(NamedTuple):
    """An owner was lost: when, how, in which attempt of the run, and which replica it was."""

    at_ms: int
    fault: str
    attempt: int
    replica: str


@dataclass
class Absence:
    """A replica was struck, from when to when, in ms."""

    replica: str
    began_ms: float
    ended_ms: float = math.inf


class Chaos:
    """The faults, and what they did to owners."""

    def __init__(self, replicas: list[Replica], load: Load, store: Store) -> None:
        self._replicas, self._load, self._store = replicas, load, store
        self._store_struck = False
        self._struck: set[Replica] = set()
        self._mending: set[asyncio.Task] = set()
        self.faults: Counter = Counter()
        self.strikes: dict[str, list[Strike]] = defaultdict(list)
        # Of owners that were killed: where another replica was there all the time, and where each of those was struck meanwhile.
        self.takeovers_ms: list[int] = []
        self.beset_ms: list[int] = []
        self._absences: list[Absence] = []
        self.enough = False
        load.logs = self._measure

    def struck(self, faults: Mapping[str, int]) -> int:
        """How many there were of what KILLS counts."""
        return self.faults["kill"] if "kill" in faults else self.faults.total()

    async def keep_telling(self, kills: int, faults: Mapping[str, int]) -> None:
        """Says on stderr how far it is, again and again."""
        began = time.monotonic()
        while True:
            await asyncio.sleep(TOLD_EVERY_S)
            minutes, load = (time.monotonic() - began) / 60, self._load
            strikes = f"{self.struck(faults)} of {kills} strikes" + (f", {self.faults.total()} of all kinds" if "kill" in faults else "")
            told = f"{strikes}; {load.statuses.total()} runs judged; {len(load.broken)} promises broken"
            print(f"after {minutes:.1f} min: {told}", file=sys.stderr, flush=True)

    async def rage(self, kills: int, faults: Mapping[str, int]) -> None:
        """Strikes until there were so many kills, or faults where none of them is one, each as often as its weight says, or until it is
        enough; then waits until all is well."""
        while self.struck(faults) < kills and not self.enough:
            await asyncio.sleep(random.uniform(*PAUSE_S))
            fault = random.choices(list(faults), list(faults.values()))[0]
            well = [replica for replica in self._replicas if replica not in self._struck]
            if len(well) < 2 or (fault == "store" and self._store_struck):
                continue
            self.faults[fault] += 1
            task = asyncio.create_task(self._strike_store() if fault == "store" else self._strike(random.choice(well), fault))
            self._mending.add(task)
            task.add_done_callback(self._mending.discard)
            # Marked before the next choice is made.
            await asyncio.sleep(0)
        while self._mending:
            await asyncio.gather(*self._mending)

    async def _strike(self, replica: Replica, fault: str) -> None:
        self._struck.add(replica)
        at_ms = int(time.time() * 1000)
        absence = Absence(replica.name, at_ms)
        self._absences.append(absence)
        replica.strike("cut" if fault == "blink" else fault)
        if fault != "blink":
            await self._note_owners(replica, fault, at_ms)
        await asyncio.sleep(random.uniform(*LASTS_S[fault]))
        await self._bring_back(replica, fault)
        absence.ended_ms = time.time() * 1000
        self._struck.discard(replica)

    async def _strike_store(self) -> None:
        self._store_struck = True
        await self._store.strike()
        self._store_struck = False

    async def _bring_back(self, replica: Replica, fault: str) -> None:
        try:
            await replica.back()
        except AssertionError as error:
            self._load.broken.append(Violation("replica", replica.name, f"after {fault} {error}\n{replica.process.output()[-600:]}"))
            replica.process.kill()
            await replica.back()

    async def _note_owners(self, replica: Replica, fault: str, at_ms: int) -> None:
        """Whose owner was lost: the records still name it, for the lease lasts longer than this takes."""
        runs = list(self._load.active.items())
        async with aclosing(connect(self._store.url)) as client:
            pipeline = client.pipeline(transaction=False)
            for run_id, thread_id in runs:
                pipeline.hmget(f"t:{{acme/{thread_id}}}:run:{run_id}", "owner", "status", "attempt")
            try:
                found = await pipeline.execute()
            except UNAVAILABLE:
                # The store was struck at the same time: these owners are not measured.
                return
        for (run_id, _), (owner, status, attempt) in zip(runs, found, strict=True):
            if status == b"running" and owner.startswith(f"{replica.name}-".encode()):
                self.strikes[run_id].append(Strike(at_ms, fault, int(attempt), replica.name))

    async def nothing_left(self) -> None:
        """Every place of a tenant is free again and nothing waits, once the sweepers have looked at all that was left half-done."""
        slots, queue, *_ = waiting_keys("acme")
        left: list[int] = []
        end = time.monotonic() + RESIDUE_S
        async with aclosing(connect(self._store.url)) as client:
            while time.monotonic() < end:
                left = [await client.zcard(slots), await client.zcard(queue)]
                if not any(left):
                    return
                await asyncio.sleep(0.5)
            members = await client.zrange(slots, 0, 4) + await client.zrange(queue, 0, 4)
        self._load.broken.append(
            Violation("residue", "", f"{left[0]} places are held and {left[1]} runs wait after all is over: {members}")
        )

    def _measure(self, run_id: str, events: list[pb.Event]) -> None:
        """From each kill of an owner to the next one's first event, where nothing else befell the run meanwhile."""
        first: dict[int, Strike] = {}
        for strike in self.strikes.pop(run_id, []):
            # Its next life, struck in turn, still finds the record that names the one before.
            first.setdefault(strike.attempt, strike)
        strikes = list(first.values())
        for strike in strikes:
            following = [event.occurred_at.ToMilliseconds() for event in events if event.attempt > strike.attempt]
            if strike.fault != "kill" or not following:
                continue
            other = [(s.at_ms, s.at_ms) for s in strikes if s.attempt > strike.attempt] + self._store.struck_ms
            if not any(began <= following[0] and strike.at_ms <= ended for began, ended in other):
                there = another_there({replica.name for replica in self._replicas}, self._absences, strike, following[0])
                (self.takeovers_ms if there else self.beset_ms).append(following[0] - strike.at_ms)


def another_there(replicas: Set[str], absences: Iterable[Absence], strike: Strike, until_ms: int) -> bool:
    """Whether another replica than the one that was struck was there from then on, until that date."""
    away = {absence.replica for absence in absences if absence.began_ms <= until_ms and strike.at_ms <= absence.ended_ms}
    return bool(replicas - away - {strike.replica})


async def chaos(
    kills: int, concurrent: int, faults: Mapping[str, int], mix: Mapping[str, int], make_store: Callable[[Path], Store]
) -> dict[str, Any]:
    """Runs it with faults and clients of these kinds; answers what came of it."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bulkhead-chaos-")))
        (folder / "keys").mkdir()
        (folder / "store").mkdir()
        identities = testing.Identities(folder / "keys")
        store = make_store(folder / "store")
        stack.callback(store.end)
        behind = await stack.enter_async_context(fakes(identities, made=Fakes(tools=CountingTools())))
        config = write_config(folder / "config")
        settings = {**SETTINGS, "envelope_keys_file": root_keys(folder), **chaos_beside.SETTINGS, **store.settings}
        replicas = [Replica(f"r{i}", identities, behind, config, folder, store.url, **settings) for i in range(REPLICAS)]
        await asyncio.gather(*(stack.enter_async_context(replica.there()) for replica in replicas))
        load = Load(replicas, behind, mix=mix)
        mischief = Chaos(replicas, load, store)
        hook, clock = Hook(load, await stack.enter_async_context(receiver())), Clock(load)
        await hook.begin()
        await clock.begin()
        began = time.monotonic()
        clients = [asyncio.create_task(load.keep_asking()) for _ in range(concurrent)]
        telling = asyncio.create_task(mischief.keep_telling(kills, faults))
        stack.callback(telling.cancel)
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, partial(setattr, mischief, "enough", True))
        await mischief.rage(kills, faults)
        load.asking = False
        await clock.end()
        await asyncio.gather(*clients)
        await load.judged()
        await clock.judge()
        await hook.judge()
        await mischief.nothing_left()
        by_invariant = Counter(violation.invariant for violation in load.broken)
        took_ms, beset_ms = mischief.takeovers_ms, mischief.beset_ms
        defects = Counter(line for replica in replicas for line in defects_of(folder / f"{replica.name}.log"))
        return {
            "minutes": round((time.monotonic() - began) / 60, 2), "kills_wanted": kills, "kills": mischief.struck(faults),
            "faults": mischief.faults.total(), "by_fault": dict(mischief.faults),
            "threads": dict(load.talks), "runs": load.statuses.total(), "by_status": dict(load.statuses),
            "answered": dict(sorted(load.answered.items())), "logs_skipped_ahead": load.gaps, "taken_over": dict(load.taken_over),
            "takeovers_measured": len(took_ms), "takeover_p50_ms": percentile(took_ms, 0.5) if took_ms else None,
            "takeover_p99_ms": percentile(took_ms, 0.99) if took_ms else None, "takeover_most_ms": max(took_ms, default=None),
            "takeovers_beset": len(beset_ms), "takeover_beset_p99_ms": percentile(beset_ms, 0.99) if beset_ms else None,
            "lost": by_invariant["A1"], "duplicated": by_invariant["A8"], "unmarked": by_invariant["A5"],
            "violations": dict(by_invariant), "examples": [" ".join(violation) for violation in load.broken[:40]],
            "logged_errors": dict(defects.most_common(20)),
        }  # fmt: skip


def missed_by(found: Mapping[str, Any]) -> list[str]:
    """What was promised and did not hold, of what `chaos` answers."""
    missed = [f"{name}: {times} times" for name, times in found["violations"].items()]
    missed += [f"logged as an error {times} times: {line}" for line, times in found["logged_errors"].items()]
    if found["kills"] < found["kills_wanted"]:
        missed.append(f"only {found['kills']} strikes of {found['kills_wanted']}")
    if not found["runs"]:
        missed.append("no run was judged")
    took_ms = found["takeover_p99_ms"]
    few = found["takeovers_beset"] and found["by_fault"].get("kill", 0) < MANY_KILLS
    if took_ms is None and not few and found["by_fault"].get("kill"):
        missed.append("no takeover was measured")
    if took_ms is not None and took_ms > TAKEOVER_P99_MS:
        missed.append(f"a takeover took {took_ms} ms at the 99th percentile, and {TAKEOVER_P99_MS} are promised")
    return missed


def defects_of(log: Path) -> list[str]:
    """Events that a replica logged as errors, which are defects by definition."""
    found = []
    for line in log.read_text(errors="replace").splitlines():
        if '"level":"error"' in line:
            entry = orjson.loads(line)
            found.append(f"{entry['event']}: {str(entry.get('exception', ''))[-300:]}")
    return found


def _chosen(name: str, known: Mapping[str, int]) -> dict[str, int]:
    """Of `known` what a variable names, by commas; all where it is not set. Raises ValueError."""
    chosen = os.environ.get(name, ",".join(known)).split(",")
    if unknown := [one for one in chosen if one not in known]:
        raise ValueError(f"{name}: {', '.join(unknown)}: must be out of {', '.join(known)}")
    return {one: known[one] for one in chosen}


def main() -> int:
    """Exit status."""
    store = os.environ.get("STORE", "single")
    if store not in STORES:
        print(f"STORE: {store}: must be out of {', '.join(STORES)}", file=sys.stderr)
        return 2
    make_store, possible = STORES[store]
    try:
        faults, mix = _chosen("FAULTS", possible), _chosen("MIX", MIX)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    found = asyncio.run(chaos(int(os.environ.get("KILLS", "1000")), int(os.environ.get("RUNS", "24")), faults, mix, make_store))
    return tell({"ok": not (missed := missed_by(found)), "missed": missed, **found}, RESULT)


if __name__ == "__main__":
    sys.exit(main())
