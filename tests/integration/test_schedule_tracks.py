"""On which release track the runs of schedules are, and with whose agents: those of whoever made the schedule, and not of who fires it."""

from contextlib import asynccontextmanager

import orjson
import pytest
from bulkhead.orchestrator.v1 import orchestrator_pb2, schedules_pb2, schedules_pb2_grpc
from google.protobuf.duration_pb2 import Duration

from services.common import testing
from services.common.valkey import connect
from services.orchestrator.adapters.store import Store
from services.orchestrator.records import RunRef
from services.orchestrator.schedules.records import Definition, Timing
from services.orchestrator.testing.harness import AGENTS, served, settings_for, write_config

# The canary has a version of the agent that stable has not heard of.
CANARY_AGENTS = AGENTS.replace(
    '  quick:\n    current: "1"\n    versions:\n',
    '  quick:\n    current: "2"\n    versions:\n      "2": {prompt: helper.md, model: m2}\n',
)
NEVER_S = 1_000.0
VERSION = {"stable": "1", "canary": "2"}


class Track:
    """A replica of a track, and its callers."""

    def __init__(self, client, stub):
        self.client, self._stub = client, stub

    async def create(self, *, canary=False):
        with self.client.calling(canary=canary):
            asked = schedules_pb2.CreateScheduleRequest(definition=definition())
            return (await self._stub.CreateSchedule(asked)).schedule.schedule_id

    async def update(self, schedule_id, *, canary=False):
        with self.client.calling(canary=canary):
            await self._stub.UpdateSchedule(schedules_pb2.UpdateScheduleRequest(schedule_id=schedule_id, definition=definition()))

    async def fired(self, schedule_id):
        """The run of a schedule's first tick, once that is made."""

        async def found():
            with self.client.calling():
                ticks = (await self._stub.ListScheduleTicks(schedules_pb2.ListScheduleTicksRequest(schedule_id=schedule_id))).ticks
            return ticks[-1] if ticks else None

        tick = await testing.eventually_async(found, "a tick")
        assert tick.result == schedules_pb2.TICK_RESULT_FIRED
        return RunRef("acme", tick.thread_id, tick.run_id)


def definition():
    return schedules_pb2.ScheduleDefinition(
        timing=schedules_pb2.ScheduleTiming(interval=Duration(nanos=300_000_000)), agent="quick",
        input=[orchestrator_pb2.InputMessage(role="user", text="say hi")],
    )  # fmt: skip


@asynccontextmanager
async def replica(identities, behind, state_url, folder, track, **fields):
    config = write_config(folder / track, CANARY_AGENTS if track == "canary" else AGENTS)
    settings = settings_for(identities, behind, state_url, config, track=track, schedule_least_interval_s=0.1, **fields)
    async with served(settings, identities) as client:
        async with testing.dialer("gateway", {"orchestrator": f"127.0.0.1:{settings.grpc_port}"}) as dialer:
            yield Track(client, schedules_pb2_grpc.ScheduleServiceStub(dialer.channel("orchestrator")))


@pytest.fixture
async def records(state_url):
    client = connect(state_url)
    yield Store(client, "test")
    await client.aclose()


@pytest.mark.parametrize("track", ["stable", "canary"])
async def test_who_fires_a_schedule_has_no_say_in_the_track_of_its_runs(identities, behind, state_url, tmp_path, records, track):
    sites = {}
    # Only the process of the other track looks at schedules, as where those of the own one are gone for longer than the declared wait.
    other = {"stable": "canary", "canary": "stable"}[track]
    looks = {track: {"sweep_s": NEVER_S}, other: {"other_track_after_s": 0.1}}
    async with (
        replica(identities, behind, state_url, tmp_path, "stable", **looks["stable"]) as sites["stable"],
        replica(identities, behind, state_url, tmp_path, "canary", **looks["canary"]) as sites["canary"],
    ):
        made = await sites[track].create(canary=track == "canary")
        run = await records.run(await sites[track].fired(made))
    assert (run.track, run.spec.canary) == (track, track == "canary")


async def test_ticks_are_left_to_the_processes_of_their_track_which_have_its_agents(identities, behind, state_url, tmp_path, records):
    async with (
        replica(identities, behind, state_url, tmp_path, "stable") as stable,
        replica(identities, behind, state_url, tmp_path, "canary") as canary,
    ):
        # A share of the calls without the header may be led to the canary too.
        asked = [("stable", stable, False), ("stable", canary, False), ("canary", canary, True)] * 3
        made = [(track, await site.create(canary=header)) for track, site, header in asked]
        for track, schedule_id in made:
            run = await records.run(await stable.fired(schedule_id))
            assert (run.track, run.spec.canary, run.spec.agent_version) == (track, track == "canary", VERSION[track])


async def test_a_schedule_is_of_the_track_of_who_changed_it_last(identities, behind, state_url, tmp_path, records):
    async with replica(identities, behind, state_url, tmp_path, "canary", sweep_s=NEVER_S) as canary:
        left, joined = await canary.create(canary=True), await canary.create()
        await canary.update(left)
        await canary.update(joined, canary=True)
        async with replica(identities, behind, state_url, tmp_path, "stable", other_track_after_s=0.1) as stable:
            found = [await records.run(await stable.fired(schedule_id)) for schedule_id in (left, joined)]
    assert [(run.track, run.spec.canary) for run in found] == [("stable", False), ("canary", True)]


def test_a_schedule_of_the_version_before_is_stable():
    now = Definition(Timing(every_ms=60_000), "quick", [{"role": "user", "text": "hi"}], {"tenant": "acme", "user": "ana"}, canary=True,
                     track="canary")  # fmt: skip
    assert Definition.decode(now.encode()) == now
    before = {name: value for name, value in orjson.loads(now.encode()).items() if name not in ("canary", "track")}
    found = Definition.decode(orjson.dumps(before))
    assert (found.canary, found.track) == (False, "stable")
