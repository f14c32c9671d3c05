"""Watching runs and threads: live equals replay, from any cursor, on any replica, through drains and an absent store."""

import asyncio

import grpc
import pytest
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb
from grpc_health.v1 import health_pb2

from services.common import testing
from services.common.errors import InvalidInput, Overloaded
from services.orchestrator import app
from services.orchestrator.adapters.notices import Notices
from services.orchestrator.testing.harness import data_of, dialed, served, settings_for, types, write_config

OK, QUEUED = pb.RUN_STATUS_SUCCEEDED, pb.RUN_STATUS_QUEUED


@pytest.fixture
def config(tmp_path):
    return write_config(tmp_path / "config")


@pytest.fixture
def settings(identities, behind, state_url, config):
    return settings_for(identities, behind, state_url, config, watch_heartbeat_s=0.2)


@pytest.fixture
async def client(identities, settings):
    async with served(settings, identities) as client:
        yield client


async def test_live_is_replay_for_every_watcher_from_every_cursor(client, behind):
    behind.models.gate.close()
    run = await client.start("say one two three four five")
    watchers = [[] for _ in range(4)]
    tasks = [asyncio.create_task(client.follow(run.run_id, watchers[0]))]
    await testing.eventually_async(lambda: "message_delta" in types(watchers[0]), "text is shown")
    tasks += [asyncio.create_task(client.follow(run.run_id, seen, after_seq=at)) for at, seen in enumerate(watchers) if at]
    behind.models.gate.open()
    await asyncio.gather(*tasks)
    log = await client.log(run.run_id)
    for cursor, seen in enumerate(watchers):
        assert seen == [e for e in log if e.seq > cursor]
    # After the end a cursor at the end gets nothing more and no error.
    assert await client.follow(run.run_id, [], after_seq=log[-1].seq) == []


async def test_a_thread_is_watched_over_its_runs(client, behind):
    await client.wait((await client.start("say one", thread_id="t")).run_id)
    seen = []

    async def watch():
        with client.calling():
            stream = client.runs.StreamEvents(pb.StreamEventsRequest(thread_id="t", types=["run_finished", "run_started"]))
            async for item in stream:
                seen.extend(item.batch.events)
                if len(seen) >= 4:
                    return

    watching = asyncio.create_task(watch())
    second = await client.start("say two", thread_id="t")
    await asyncio.wait_for(watching, testing.PATIENCE_S)
    assert types(seen) == ["run_started", "run_finished"] * 2
    assert seen[-1].run_id == second.run_id
    # A run's own stream holds nothing of the other run.
    assert {e.run_id for e in await client.log(second.run_id)} == {second.run_id}


async def test_a_filtered_run_stream_still_ends(client):
    run = await client.start("say hi")
    with client.calling():
        stream = client.runs.StreamEvents(pb.StreamEventsRequest(run_id=run.run_id, types=["message_completed"]))
        assert [event.type async for item in stream for event in item.batch.events] == ["message_completed"]


async def test_cursors_that_cannot_be_are_refused(client):
    run = await client.start("say hi", thread_id="t")
    await client.wait(run.run_id)
    for subject in ({"run_id": run.run_id}, {"thread_id": "t"}):
        for after, reason in ((1_000_000, "CURSOR_FROM_THE_FUTURE"), (-1, "INVALID_INPUT")):
            with client.calling(), pytest.raises(InvalidInput) as refused:
                await anext(client.runs.StreamEvents(pb.StreamEventsRequest(after_seq=after, **subject)))
            assert refused.value.reason == reason
    with client.calling(), pytest.raises(InvalidInput):
        await anext(client.runs.StreamEvents(pb.StreamEventsRequest()))


async def test_an_idle_watcher_gets_signs_of_life_and_closing_ends_it(client, behind):
    behind.models.gate.close()
    run = await client.start("say one two three")
    with client.calling():
        stream = client.runs.StreamEvents(pb.StreamEventsRequest(run_id=run.run_id))
        async for item in stream:
            if item.HasField("heartbeat"):
                break
        assert item.heartbeat.last_seq > 0
        await stream.aclose()
    behind.models.gate.open()
    assert (await client.wait(run.run_id)).status == OK


async def test_waiting_is_bounded_by_the_callers_deadline(client, behind):
    behind.models.gate.close()
    run = await client.start("say one two three")
    with client.calling(timeout_s=1.0):
        answer = await client.runs.WaitRun(pb.WaitRunRequest(run_id=run.run_id))
    assert answer.run.status == pb.RUN_STATUS_RUNNING
    behind.models.gate.open()


async def nothing(self, ref):
    """Follows no thread."""


@pytest.mark.system
@pytest.mark.parametrize("told", [True, False])
async def test_a_watcher_of_another_replica_sees_everything(identities, behind, state_url, config, client, monkeypatch, told):
    """Told of each append at once; and where notices get lost, by looking."""
    if told:
        monkeypatch.setattr(app, "RESYNC_S", 3600.0)
    else:
        monkeypatch.setattr(Notices, "follow", nothing)
    settings = settings_for(identities, behind, state_url, config)
    async with served(settings, identities) as elsewhere:
        behind.models.gate.close()
        run = await client.start("say one two three four")
        seen = []
        watching = asyncio.create_task(elsewhere.follow(run.run_id, seen))
        waiting = asyncio.create_task(elsewhere.wait(run.run_id))
        await testing.eventually_async(lambda: "message_delta" in types(seen), "text is shown")
        behind.models.gate.open()
        await watching
        assert seen == await client.log(run.run_id)
        assert (await waiting).status == OK


async def test_a_drain_sends_watchers_away_at_once(identities, behind, settings):
    async with dialed(settings, identities) as client:
        behind.models.gate.close()
        async with testing.running(settings, app.build) as stop:
            run = await client.start("say one two three")
            with client.calling():
                stream = client.runs.StreamEvents(pb.StreamEventsRequest(run_id=run.run_id))
                await anext(stream)
                stop.set()
                with pytest.raises(Overloaded) as caught:
                    async for _ in stream:
                        pass
            assert caught.value.reason == "DRAINING"
            assert caught.value.retry_after_s is not None
            behind.models.gate.open()


async def is_serving(address, name, expected):
    async with grpc.aio.insecure_channel(address) as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        answer = await check(health_pb2.HealthCheckRequest(service=name), timeout=10)
    return (answer.status == health_pb2.HealthCheckResponse.SERVING) == expected


async def test_without_a_store_nothing_is_accepted_and_work_goes_on_when_it_is_back(identities, behind, config, tmp_path):
    port, folder = testing.free_port(), tmp_path / "valkey"
    folder.mkdir()
    with testing.valkey_server("state", port, folder) as (url, process):
        settings = settings_for(identities, behind, url, config, lease_s=10.0, heartbeat_s=0.25)
        async with served(settings, identities) as client:
            behind.models.gate.close()
            run = await client.start("say one two three four")
            seen = []
            watching = asyncio.create_task(client.follow(run.run_id, seen))
            await testing.eventually_async(lambda: "message_delta" in types(seen), "text is shown")
            process.kill()
            with pytest.raises(Overloaded) as caught:
                await client.start("say lost")
            assert caught.value.reason == "STORE_UNAVAILABLE"
            assert caught.value.retry_after_s is not None
            address = f"127.0.0.1:{settings.grpc_port}"
            await testing.eventually_async(lambda: is_serving(address, "readiness", False), "readiness is lost")
            assert await is_serving(address, "liveness", True)
            behind.models.gate.open()
            with testing.valkey_server("state", port, folder):
                await watching
                ended = await client.wait(run.run_id)
                assert (ended.output_text, ended.attempt) == ("one two three four", 1)
                assert data_of(seen[-1])["output_text"] == "one two three four"
                assert [e.seq for e in seen] == list(range(1, len(seen) + 1))
                assert (await client.wait((await client.start("say again")).run_id)).status == OK
                await testing.wait_ready(address)
