"""A client over HTTP that was shown what a promotion has lost comes back with its number, and is told at once that it is void."""

import asyncio

import pytest
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from services.common import testing
from services.common.errors import Overloaded
from services.gateway.fakes import frames_of
from services.orchestrator.testing.fakes import fakes
from services.orchestrator.testing.harness import served, settings_for, write_config
from services.orchestrator.testing.replica_set import replica_set
from tests.integration.real_gateway import answered, gateway_before

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]


async def test_who_comes_back_with_a_number_that_was_lost_is_told_so(identities, tmp_path):
    with replica_set(tmp_path / "set", nodes=2) as members:
        for node in members.nodes:
            alone(node)
        url = f"redis://{members.primary().host}:{members.primary().port}/0"
        async with fakes(identities) as behind:
            settings = settings_for(identities, behind, url, write_config(tmp_path / "config"), state_replicas=1)
            async with served(settings, identities) as client, gateway_before(identities, url, settings.grpc_port) as people:
                run = await testing.eventually_async(lambda: accepted(client), "the replica acknowledges a run")
                end = (await client.wait(run.run_id)).terminal_seq
                http = await people.session()
                primary, (replica,) = members.primary(), members.replicas()
                with replica.client() as apart:
                    apart.execute_command("REPLICAOF", "127.0.0.1", testing.free_port())
                # It is refused, and at the primary, which shows it.
                with client.calling(), pytest.raises(Overloaded):
                    await client.runs.RecordFeedback(pb.RecordFeedbackRequest(run_id=run.run_id, rating=5))
                shown = (await client.log(thread_id="t"))[-1]
                assert (shown.type, shown.seq) == ("feedback", end + 1)
                # What the replica has takes the place of the primary, as where a name is moved by hand.
                replica.process.kill()
                primary.process.kill()
                await asyncio.to_thread(primary.start, folder=replica.folder)
                alone(primary)
                last = await testing.eventually_async(lambda: last_seq(client), "the thread is read from it")
                assert last == end
                path = "/v1/threads/t/events"
                # Connections that were lost with the primary are told so one by one.
                await testing.eventually_async(lambda: reached(http), "the gateway reaches the store")
                async with http.get(path, headers={"last-event-id": str(shown.seq)}) as answer:
                    assert answer.status == 200, await answer.text()
                    found = await frames_of(answer, lambda frames: True)
                ((seq, kind, event),) = found
                assert (kind, event["data"]["from_seq"]) == ("log_gap", shown.seq)
                assert seq > shown.seq
                await answered(http.get(path, headers={"last-event-id": str(seq + 1)}), 400)


def alone(node):
    """It takes writes without a replica: it is the orchestrator that waits for one."""
    with node.client() as client:
        client.config_set("min-replicas-to-write", 0)


async def accepted(client):
    try:
        return await client.start("say one", thread_id="t")
    except Overloaded:
        return None


async def last_seq(client):
    try:
        with client.calling():
            return (await client.threads.GetThread(pb.GetThreadRequest(thread_id="t"))).thread.last_seq
    except Overloaded:
        return None


async def reached(http):
    async with http.get("/v1/threads/t") as answer:
        return answer.status == 200
