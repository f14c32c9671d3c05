"""A run that takes its owner with it, each time: it ends readably, and those that were lost with it do not end with it."""

from contextlib import AsyncExitStack, aclosing, suppress

import pytest
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from services.common import testing
from services.common.errors import BulkheadError
from services.common.valkey import connect
from services.orchestrator.testing.counting import REPEATABLE, calls
from services.orchestrator.testing.harness import write_config
from services.orchestrator.testing.replicas import Replica
from tests.system.kill_site import TALK, Site

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]
POISON = "poison"
INNOCENT = [f"innocent-{n}" for n in range(6)]


async def owners(store, site):
    """(its replica, owners lost in a row) of each run at work."""
    found = {}
    for run_id, thread_id in site.threads.items():
        status, owner, crashes = await store.hmget(f"t:{{acme/{thread_id}}}:run:{run_id}", "status", "owner", "crashes")
        if status == b"running":
            found[run_id] = owner.decode().partition("-")[0], int(crashes)
    return found


async def answers(replica):
    with suppress(BulkheadError):
        return await replica.client.get(POISON)


async def test_a_run_that_kills_its_owners_ends_alone(identities, behind, state_url, tmp_path):
    config = write_config(tmp_path / "config")
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(aclosing(connect(state_url)))
        site = Site(behind)
        replicas = {
            name: await stack.enter_async_context(
                Replica(name, identities, behind, config, tmp_path, state_url, watch_heartbeat_s=0.5).there()
            )
            for name in ("first", "second")
        }
        site.first, site.second = replicas.values()
        runs = [*INNOCENT, POISON]
        idle = site.second.proxy.hold(b"BZPOPMIN", late=False)
        for run_id in runs:
            site.models.of(run_id).close()
            await site.start(run_id, *([TALK] if run_id == POISON else [calls((REPEATABLE, run_id)), "done"]))

        async def all_with(name):
            at_work = await owners(store, site)
            return [at_work.get(run_id, ("",))[0] for run_id in runs] == [name] * len(runs) and waiting() == set(runs)

        def waiting():
            return {run_id for run_id in runs if site.models.of(run_id).waiting}

        await testing.eventually_async(lambda: all_with("first"), "the first has them all")
        site.first.strike("kill")
        idle.release()
        await testing.eventually_async(lambda: all_with("second"), "the second has them all, and has lost none yet")
        await site.first.back()
        site.second.strike("kill")
        await site.second.back()

        async def at_the_model():
            """Runs whose model is asked by an owner that lives."""
            at_work = await owners(store, site)
            last = [run_id for run_id, (_, crashes) in at_work.items() if crashes == 2]
            assert len({at_work[run_id][0] for run_id in last if run_id in waiting()}) == len(waiting().intersection(last)), at_work
            return {run_id: at_work[run_id][0] for run_id in waiting().intersection(last)}

        while True:
            asking = await testing.eventually_async(at_the_model, "a run that was lost twice is at work")
            if POISON in asking:
                replicas[asking[POISON]].strike("kill")
                await testing.eventually_async(lambda: POISON not in waiting(), "its call is gone")
                await replicas[asking[POISON]].back()
                break
            for run_id in asking:
                site.models.of(run_id).open()
        await testing.eventually_async(lambda: answers(site.second), "the second is spoken to again")
        poison = await site.ended(POISON, pb.RUN_STATUS_FAILED)
        assert (poison.error.reason, poison.attempt) == ("WORKER_LOST", 3)
        assert poison.error.message == "The run was given up after its worker was lost 3 times in a row."
        for run_id in INNOCENT:
            site.models.of(run_id).open()
        for run_id in INNOCENT:
            assert (await site.ended(run_id)).output_text == "done"
        await site.judge()
