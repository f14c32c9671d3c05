"""The place of a run that others of its own thread stand before."""

import pytest
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from services.common import testing
from services.common.errors import Overloaded
from services.orchestrator.adapters.store import Store
from services.orchestrator.testing.harness import data_of, served, settings_for, write_config
from tests.integration.real_gateway import answered, gateway_before


@pytest.fixture
def settings(identities, behind, state_url, tmp_path):
    return settings_for(identities, behind, state_url, write_config(tmp_path / "config"), max_active_runs=1)


async def places(client, *runs):
    return [(await client.get(run.run_id)).queue_position for run in runs]


async def test_a_run_counts_those_before_it_in_its_thread(identities, settings, behind, state_url):
    async with served(settings, identities) as client, gateway_before(identities, state_url, settings.grpc_port) as people:
        behind.models.gate.close()
        first, second, third = [await client.start(f"say {word} and more", thread_id="t") for word in ("one", "two", "three")]
        assert [first.status, second.status] == [pb.RUN_STATUS_RUNNING, pb.RUN_STATUS_QUEUED]
        assert [run.queue_position for run in (first, second, third)] == [0, 1, 2]
        told = [data_of(event) for event in await client.log(thread_id="t") if event.type == "run_queued"]
        assert [data.get("queue_position") for data in told] == [None, 1, 2]
        http = await people.session()
        for run, place in ((first, None), (second, 1), (third, 2)):
            assert (await answered(http.get(f"/v1/runs/{run.run_id}"), 200))["queue_position"] == place
        await client.cancel(second.run_id)
        assert await places(client, first, third) == [0, 1]
        behind.models.gate.open()
        for run in (first, third):
            assert (await client.wait(run.run_id)).queue_position == 0


async def test_where_the_first_of_the_thread_waits_itself_those_before_it_count_too(identities, settings, behind):
    async with served(settings, identities) as client:
        behind.models.gate.close()
        at_work = await client.start("say one and more", thread_id="a")

        async def at_its_model():
            return behind.models.gate.waiting == 1

        await testing.eventually_async(at_its_model, "the only place is taken")
        before = await client.start("say two and more", thread_id="b")
        head = await client.start("say three and more", thread_id="t")
        behind_it = await client.start("say four and more", thread_id="t")
        assert await places(client, at_work, before, head, behind_it) == [0, 1, 2, 3]
        (queued, _) = [data_of(event) for event in await client.log(thread_id="t") if event.type == "run_queued"]
        assert "queue_position" not in queued
        behind.models.gate.open()
        for run in (at_work, before, head, behind_it):
            assert (await client.wait(run.run_id)).status == pb.RUN_STATUS_SUCCEEDED


@pytest.mark.parametrize("on_busy", [pb.ON_BUSY_INTERRUPT, pb.ON_BUSY_ROLLBACK])
async def test_a_run_that_cuts_off_those_before_it_stands_behind_the_one_at_work_alone(identities, settings, behind, on_busy):
    async with served(settings, identities) as client:
        alone = await client.start("say nothing", thread_id="t", on_busy=on_busy)
        await client.wait(alone.run_id)
        behind.models.gate.close()
        for word in ("one", "two", "three"):
            await client.start(f"say {word} and more", thread_id="t")
        last = await client.start("say four and more", thread_id="t", on_busy=on_busy)
        told = [data_of(event) for event in await client.log(thread_id="t") if event.type == "run_queued"]
        assert [data.get("queue_position") for data in told] == [None, None, 1, 2, 1]
        behind.models.gate.open()
        assert (await client.wait(last.run_id)).status == pb.RUN_STATUS_SUCCEEDED


async def test_a_run_is_accepted_where_its_position_cannot_be_told(identities, settings, behind, monkeypatch):
    async def away(store, ref):
        raise Overloaded("the store is away", reason="STORE_UNAVAILABLE")

    monkeypatch.setattr(Store, "joining", away)
    async with served(settings, identities) as client:
        run = await client.start("say one", thread_id="t")
        assert (await client.wait(run.run_id)).status == pb.RUN_STATUS_SUCCEEDED
        (queued,) = [data_of(event) for event in await client.log(thread_id="t") if event.type == "run_queued"]
        assert "queue_position" not in queued
