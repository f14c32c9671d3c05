"""Two replicas fire the same schedules while both are killed again and again: each tick makes one run."""

import asyncio
import random
from contextlib import AsyncExitStack

import pytest
from bulkhead.orchestrator.v1 import orchestrator_pb2, schedules_pb2_grpc
from bulkhead.orchestrator.v1 import schedules_pb2 as pb
from google.protobuf.duration_pb2 import Duration

from services.common import testing
from services.common.errors import BulkheadError
from services.common.valkey import connect
from services.orchestrator.adapters.schedule_store import ValkeySchedules
from services.orchestrator.schedules.records import ScheduleRef
from services.orchestrator.testing.fakes import fakes
from services.orchestrator.testing.harness import ENDED, write_config
from services.orchestrator.testing.replicas import Replica

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]
SCHEDULES, INTERVAL_MS, KILLS = 4, 250, 10


async def test_two_replicas_that_are_killed_make_one_run_a_tick(identities, state_url, tmp_path):
    config = write_config(tmp_path / "config")
    fields = {"schedule_least_interval_s": 0.1, "crash_budget": 100}
    async with AsyncExitStack() as stack:
        behind = await stack.enter_async_context(fakes(identities))
        replicas = [Replica(name, identities, behind, config, tmp_path, state_url, **fields) for name in ("one", "two")]
        one, two = [await stack.enter_async_context(replica.there()) for replica in replicas]
        ids = await made(stack, one)
        chance = random.Random(7)
        for _ in range(KILLS):
            # Both at once now and then: nobody is there to take over.
            struck = chance.choice([[one], [two], [one, two]])
            await asyncio.sleep(chance.uniform(0.1, 0.8))
            for replica in struck:
                replica.strike("kill")
            await asyncio.gather(*(replica.back() for replica in struck))
        store = connect(state_url)
        stack.push_async_callback(store.aclose)
        schedules = ValkeySchedules(store, "test")
        await paused(schedules, ids)
        ticks = {schedule_id: await settled(schedules, schedule_id) for schedule_id in ids}
        runs = await all_runs(one)
    total = 0
    for schedule_id, found in ticks.items():
        times = sorted(outcome.tick_ms for outcome in found)
        # No tick was left out, none came twice, and all were made up.
        assert times == list(range(times[0], times[-1] + 1, INTERVAL_MS)), schedule_id
        assert {outcome.result for outcome in found} == {"fired"}
        total += len(times)
    named = [outcome.run_id for found in ticks.values() for outcome in found]
    assert total >= SCHEDULES * KILLS
    assert sorted(named) == sorted(run.run_id for run in runs)
    assert {run.status for run in runs} == {orchestrator_pb2.RUN_STATUS_SUCCEEDED}


async def made(stack: AsyncExitStack, replica: Replica) -> list[str]:
    dialer = await stack.enter_async_context(testing.dialer("gateway", {"orchestrator": f"127.0.0.1:{replica.settings.grpc_port}"}))
    stub = schedules_pb2_grpc.ScheduleServiceStub(dialer.channel("orchestrator"))
    definition = pb.ScheduleDefinition(
        timing=pb.ScheduleTiming(interval=Duration(nanos=INTERVAL_MS * 10**6)), agent="quick",
        input=[orchestrator_pb2.InputMessage(role="user", text="say hi")], thread_policy=pb.THREAD_POLICY_ONE,
        overlap_policy=pb.OVERLAP_POLICY_QUEUE,
    )  # fmt: skip
    found = []
    for _ in range(SCHEDULES):
        with replica.client.calling():
            found.append((await stub.CreateSchedule(pb.CreateScheduleRequest(definition=definition))).schedule.schedule_id)
    return found


async def paused(schedules: ValkeySchedules, ids: list[str]) -> None:
    for schedule_id in ids:
        while True:
            record = await schedules.get(ScheduleRef("acme", schedule_id))
            if await schedules.change(record, record.definition, "paused", record.next_ms):
                break


async def settled(schedules: ValkeySchedules, schedule_id: str):
    """All ticks of a paused schedule, once none is being made any more."""

    async def quiet():
        record = await schedules.get(ScheduleRef("acme", schedule_id))
        return None if record.firing_ms else [outcome for outcome, _ in await schedules.ticks(record.ref, 0, 1000)]

    return await testing.eventually_async(quiet, "no tick is at work")


async def all_runs(replica: Replica) -> list[orchestrator_pb2.Run]:
    """All runs, once each has ended."""

    async def ended():
        found, token = [], ""
        while True:
            try:
                with replica.client.calling():
                    page = await replica.client.runs.ListRuns(orchestrator_pb2.ListRunsRequest(page_size=500, page_token=token))
            except BulkheadError:
                return None
            found += page.runs
            if not (token := page.next_page_token):
                return found if all(run.status in ENDED for run in found) else None

    return await testing.eventually_async(ended, "all runs have ended")
