"""A stable and a canary orchestrator over one store: whose runs are whose, and what becomes of the canary's runs when it is gone.

Calls with `x-canary: true` are led to the canary by the mesh; here a site's `start` does that. Who has worked on a run is what each
process says in its log: a line with each claim, written at once, on the clock that the store has.
"""

import asyncio
import datetime
import time
from contextlib import AsyncExitStack, asynccontextmanager

import orjson
import pytest
from bulkhead.orchestrator.v1 import approvals_pb2 as approvals_pb
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb
from google.protobuf.timestamp_pb2 import Timestamp

from services.common import testing
from services.common.errors import BulkheadError
from services.orchestrator.records import SCHEMA_VERSION
from services.orchestrator.testing.counting import ONCE, REPEATABLE, calls, script
from services.orchestrator.testing.harness import AGENTS, LOST, write_config
from services.orchestrator.testing.replicas import Replica
from tests.system.kill_site import TALK, Site, each

pytestmark = [pytest.mark.system, pytest.mark.timeout(150)]
TRACKS = ("stable", "canary")
OTHER = {"stable": "canary", "canary": "stable"}
LOAD = 20
# Of one process.
ROOM = 3
NEVER_S = 3_600.0
WORK = (calls((ONCE, "a")), calls((REPEATABLE, "b")), "done")
APPROVE = approvals_pb.Approve()
STABLE_AGENTS = f"""{AGENTS}
  leading:
    current: "1"
    versions:
      "1": {{prompt: helper.md, model: m, strategy: supervisor, tools: [calculator], agents: [{{name: quick}}]}}
"""
# The canary has a version of an agent that stable has not heard of.
CANARY_AGENTS = STABLE_AGENTS.replace(
    '  quick:\n    current: "1"\n    versions:\n',
    '  quick:\n    current: "2"\n    versions:\n'
    '      "2": {prompt: helper.md, model: m2, tools: [calculator, send_mail], approval: {unknown_outcome: tell}}\n',
)
VERSION = {"stable": ("1", "m"), "canary": ("2", "m2")}


class Tracks(Site):
    """A site whose clients are led to a track, and told of all through stable."""

    def __init__(self, behind, replicas, folder, store):
        super().__init__(behind)
        self.replicas, self.folder, self.store = replicas, folder, store
        self.stable, self.canary = (replicas[track] for track in TRACKS)
        self.first = self.second = self.stable

    async def start(self, run_id, *steps, track, **fields):
        return await super().start(run_id, *steps, client=self.replicas[track].client, canary=track == "canary", **fields)

    def claims(self, run_id):
        """(track, ms) of each claim of a run."""
        found = []
        for track in TRACKS:
            log = self.folder / f"{track}.log"
            for line in log.read_text().splitlines() if log.exists() else ():
                if '"run_claimed"' in line and (said := orjson.loads(line))["run_id"] == run_id:
                    found.append((track, datetime.datetime.fromisoformat(said["ts"]).timestamp() * 1000))
        return sorted(found, key=lambda claim: claim[1])

    def owners(self, run_id):
        """The tracks that have worked on a run, in order."""
        return list(dict.fromkeys(track for track, _ in self.claims(run_id)))

    def worked(self, run_id):
        """Its tools did what it asked of them, once."""
        assert [effect.nonce for effect in self.behind.tools.effects[run_id]] == ["a", "b"], run_id

    def check_version(self, run_id, run, track):
        """The run was made on `track` and is what it was made as, whoever works on it."""
        version, model = VERSION[track]
        assert run.agent_version == version
        assert {call.request.model for call in self.calls_of(run_id)} <= {model}

    async def record(self, run_id):
        """What the store has of a run."""
        return await self.store.hgetall(f"t:{{acme/{self.threads[run_id]}}}:run:{run_id}")

    async def looked_at(self, track, run_ids):
        """Returns when the sweeper of `track` has looked at each of these twice, and so has done what follows from the first look."""
        for _ in range(2):
            looks = [self.replicas[track].proxy.hold(b"run_inspect_v1", f":run:{run_id}\r".encode(), answer=True) for run_id in run_ids]
            for look in looks:
                await look.reached(30.0)
                look.release()

    async def decide(self, run_id, track):
        """Answers the question of a run through `track`."""
        (asked,) = await self.asked(run_id)
        await self.replicas[track].client.decide(asked.approval_id, approve=APPROVE)

    async def canary_back(self):
        """Returns when callers reach the canary again."""
        await self.canary.back()

        async def reached():
            try:
                with self.canary.client.calling():
                    return await self.canary.client.agents.ListAgents(pb.ListAgentsRequest())
            except BulkheadError as error:
                if error.code.name not in LOST:
                    raise

        await testing.eventually_async(reached, "the canary is reached")


@asynccontextmanager
async def two_tracks(identities, behind, state_url, folder, store, canary="services.orchestrator", **settings):
    """A process of each track; `canary` is the program of the canary."""
    shared = {"watch_heartbeat_s": 0.5, "crash_budget": 20, "max_active_runs": ROOM, **settings}
    made = {
        track: Replica(
            track, identities, behind, write_config(folder / f"config-{track}", agents), folder, state_url,
            module=module, track=track, **shared,
        )
        for track, agents, module in (("stable", STABLE_AGENTS, "services.orchestrator"), ("canary", CANARY_AGENTS, canary))
    }  # fmt: skip
    async with AsyncExitStack() as stack:
        await asyncio.gather(*(stack.enter_async_context(replica.there()) for replica in made.values()))
        yield Tracks(behind, made, folder, store)


@pytest.mark.parametrize("full", TRACKS)
async def test_what_waits_for_a_full_track_is_not_for_the_other_that_idles(identities, behind, state_url, valkey, tmp_path, full):
    async with two_tracks(identities, behind, state_url, tmp_path, valkey, other_track_after_s=NEVER_S) as site:
        idle = OTHER[full]
        at_work = [f"at-work-{n}" for n in range(ROOM)]
        for run_id in at_work:
            await site.waiting(run_id, *WORK, track=full)
        names = {track: [f"{track}-{n}" for n in range(LOAD)] for track in TRACKS}
        await asyncio.gather(*(site.start(run_id, *WORK, track=track) for track in TRACKS for run_id in names[track]))
        for run_id in names[idle]:
            await site.ended(run_id)

        # Somebody has room, and has looked at them.
        await site.looked_at(idle, names[full][:4])
        for run_id in names[full]:
            assert (await site.stable.client.get(run_id)).status == pb.RUN_STATUS_QUEUED
            assert site.owners(run_id) == []
        assert await valkey.zcard(f"work:{{w0}}:ready:{full}") == LOAD
        assert await valkey.zcard(f"work:{{w0}}:ready:{idle}") == 0

        for run_id in at_work:
            site.models.of(run_id).open()
        all_of = {full: at_work + names[full], idle: names[idle]}
        for run_id, track in [(run_id, track) for track, run_ids in all_of.items() for run_id in run_ids]:
            site.check_version(run_id, await site.ended(run_id), track)
            assert site.owners(run_id) == [track]
            site.worked(run_id)
        await site.judge()


# What begins or goes on later, by itself or by the hand of the other track; each yields the runs that are of `track`.


async def parked(site, track):
    """Waits for a person, who answers through the other track."""
    run_id = f"parked-{track}"
    await site.start(run_id, *WORK, agent="careful", track=track)
    await site.asked(run_id)
    yield
    await site.decide(run_id, OTHER[track])
    await site.ended(run_id)
    yield [run_id]


async def behind_another(site, track):
    """Behind a run of its thread that is the other track's."""
    before, run_id = f"before-{track}", f"behind-{track}"
    await site.streaming(before, track=OTHER[track])
    await site.start(run_id, *WORK, track=track, thread_id=site.threads[before])
    assert (await site.stable.client.get(run_id)).status == pb.RUN_STATUS_QUEUED
    yield
    site.models.of(before).open()
    await site.ended(before)
    assert site.owners(before) == [OTHER[track]]
    await site.ended(run_id)
    yield [run_id]


async def delayed(site, track):
    """Some, as the sweeper of either track begins them."""
    run_ids = [f"delayed-{track}-{n}" for n in range(6)]
    start_at = Timestamp()
    start_at.FromMilliseconds(int((time.time() + 2.0) * 1000))
    for run_id in run_ids:
        await site.start(run_id, *WORK, track=track, start_at=start_at)
    yield
    for run_id in run_ids:
        await site.ended(run_id)
    yield run_ids


async def delegating(site, track):
    """With a child, whose end wakes it."""
    run_id = f"lead-{track}"
    child = f"{run_id}.1.0"
    await site.start(run_id, {"say": "", "calls": [["delegate_to_quick", {"task": script(*WORK)}]]}, "done", agent="leading", track=track)
    yield
    await site.ended(run_id)
    site.check_version(child, await site.stable.client.wait(child), track)
    yield [run_id, child]


async def test_what_goes_on_later_goes_on_where_it_was_made(identities, behind, state_url, valkey, tmp_path):
    async with two_tracks(identities, behind, state_url, tmp_path, valkey, other_track_after_s=NEVER_S, max_active_runs=50) as site:
        rows = [(track, row(site, track)) for track in TRACKS for row in (parked, behind_another, delayed, delegating)]
        await each([row for _, row in rows])
        found = await each([row for _, row in rows])
        for (track, _), run_ids in zip(rows, found, strict=True):
            for run_id in run_ids:
                assert site.owners(run_id) == [track], run_id
                if run_id != f"lead-{track}":
                    site.worked(run_id)
        await site.judge()


async def test_runs_of_a_canary_that_is_killed_go_on_at_stable_when_their_time_on_its_track_is_over(
    identities, behind, state_url, valkey, tmp_path
):
    after_s = 2.0
    async with two_tracks(identities, behind, state_url, tmp_path, valkey, other_track_after_s=after_s, lease_s=2.0) as site:
        for run_id in ("asking", "asleep"):
            await site.start(run_id, *WORK, agent="careful", track="canary")
            await site.asked(run_id)
        site.tools.of("tool").close()
        await site.start("tool", *WORK, track="canary")
        await testing.eventually_async(lambda: site.tools.of("tool").waiting, "the tool is at work")
        await site.streaming("streaming", track="canary")
        await site.waiting("thinking", *WORK, track="canary")
        # One that waits for its turn in its thread, and one for room.
        await site.start("behind", *WORK, track="canary", thread_id=site.threads["streaming"])
        await site.start("room", *WORK, track="canary")
        at_work = ("tool", "streaming", "thinking")
        assert [site.owners(run_id) for run_id in at_work] == [["canary"]] * 3

        # Nobody takes them before it is known since when they are alone.
        held = [site.stable.proxy.hold(b"run_claim_v1", f":run:{run_id}\r".encode()) for run_id in at_work]
        site.canary.strike("kill")
        records = {run_id: await site.record(run_id) for run_id in (*at_work, "room")}
        assert {records[run_id][b"owner"].split(b"-")[0] for run_id in at_work} == {b"canary"}
        alone_ms = {run_id: int(records[run_id][b"lease_until"]) for run_id in at_work}
        alone_ms["room"] = int(records["room"][b"queued_ms"])
        for hold in held:
            hold.release()
        await site.decide("asking", "stable")
        alone_ms["asking"] = int((await site.record("asking"))[b"queued_ms"])

        for run_id, since_ms in alone_ms.items():
            await testing.eventually_async(lambda run_id=run_id: site.owners(run_id)[-1:] == ["stable"], f"stable takes {run_id}")
            taken_ms = next(at_ms for track, at_ms in site.claims(run_id) if track == "stable")
            assert taken_ms - since_ms >= after_s * 1000, run_id
        site.tools.of("tool").open()
        for run_id in ("streaming", "thinking"):
            site.models.of(run_id).open()
        for run_id in (*alone_ms, "behind"):
            run = await site.ended(run_id)
            if run_id != "asking":
                site.check_version(run_id, run, "canary")
            assert run.output_text == (TALK if run_id == "streaming" else "done")
            if run_id != "streaming":
                site.worked(run_id)
            assert site.owners(run_id) == (["stable"] if run_id in ("behind", "room") else ["canary", "stable"])

        # What slept all the while is the canary's, as it is there again, and so is what is new.
        assert site.owners("asleep") == ["canary"]
        await site.canary_back()
        await site.decide("asleep", "stable")
        await site.ended("asleep")
        for run_id in [f"new-{n}" for n in range(4)]:
            await site.start(run_id, *WORK, track="canary")
            site.check_version(run_id, await site.ended(run_id), "canary")
            assert site.owners(run_id) == ["canary"]
        assert site.owners("asleep") == ["canary"]
        await site.judge()


async def test_stable_takes_no_run_of_a_canary_that_it_cannot_read(identities, behind, state_url, valkey, tmp_path):
    after_s = 0.5
    program = "tests.system.next_version"
    async with two_tracks(identities, behind, state_url, tmp_path, valkey, program, other_track_after_s=after_s) as site:
        # The next version writes a schema of its own for what was parked.
        await site.start("newer", *WORK, agent="careful", track="canary")
        await site.asked("newer")
        await site.waiting("readable", *WORK, track="canary")
        before = await site.record("newer")
        taken = site.stable.proxy.hold(b"run_claim_v1", b":run:newer\r")
        site.canary.strike("kill")
        await site.decide("newer", "stable")
        site.models.of("readable").open()
        await site.ended("readable")
        assert site.owners("readable") == ["canary", "stable"]

        async def long_alone():
            seconds, micros = await valkey.time()
            record = await site.record("newer")
            return record[b"status"] == b"queued" and seconds * 1000 + micros // 1000 - int(record[b"queued_ms"]) > after_s * 1000

        await testing.eventually_async(long_alone, "stable could have it by now")
        await site.looked_at("stable", ["newer"])
        record = await site.record("newer")
        assert int(record[b"schema_version"]) == SCHEMA_VERSION + 1
        assert record[b"status"] == b"queued"
        assert [record[name] for name in (b"epoch", b"attempt", b"state")] == [before[name] for name in (b"epoch", b"attempt", b"state")]
        assert not taken.caught.is_set()
        assert site.owners("newer") == ["canary"]

        taken.release()
        await site.canary_back()
        await site.ended("newer")
        assert site.owners("newer") == ["canary"]
        site.worked("newer")
        await site.judge()
