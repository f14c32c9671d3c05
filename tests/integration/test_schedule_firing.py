"""Who makes the run of a tick: replicas that are lost at every step of it, and several at once."""

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta

import pytest
from bulkhead.orchestrator.v1 import orchestrator_pb2, schedules_pb2, schedules_pb2_grpc
from google.protobuf.duration_pb2 import Duration

from services.common import testing
from services.common.audit import AuditStream
from services.common.errors import Conflict
from services.common.valkey import connect
from services.orchestrator.adapters.schedule_store import ValkeySchedules
from services.orchestrator.adapters.store import Store
from services.orchestrator.records import RunRef
from services.orchestrator.schedules.firing import Firing
from services.orchestrator.schedules.records import Definition, Due, Outcome, ScheduleRef, Timing
from services.orchestrator.testing.harness import served, settings_for, write_config
from services.orchestrator.testing.stores import cluster_of_one


class Lost(Exception):
    """The process is gone."""


class Losing:
    """A store or a maker of runs whose process is lost right before or after a call of `method`."""

    def __init__(self, inner, where):
        self._inner, (self._when, self._method) = inner, where.split()

    def __getattr__(self, name):
        call = getattr(self._inner, name)
        if name != self._method:
            return call

        async def lost(*args, **fields):
            if self._when == "after":
                await call(*args, **fields)
            raise Lost

        return lost


class Making:
    """Makes runs as Accepting does, at an orchestrator that looks at no schedules of its own."""

    def __init__(self, client):
        self._client = client

    async def create_run(self, principal, request):
        text = request.input[-1]["text"]
        fields = {"run_id": request.run_id, "thread_id": request.thread_id, "idempotency_key": request.idempotency_key}
        return await self._client.start(text, agent=request.agent, metadata=request.metadata, **fields), True

    async def cancel_run(self, principal, run_id, reason):
        await self._client.cancel(run_id)


class Scene:
    def __init__(self, client, stub, connection):
        self.client, self.stub = client, stub
        self.store, self.runs = ValkeySchedules(connection, "test"), Store(connection, "test")

    def firing(self, where="never nothing"):
        return Firing(Losing(self.store, where), self.runs, Losing(Making(self.client), where), look_every_s=1.0, grace_s=60.0)

    async def due(self, **fields):
        """A schedule with one tick that is due since a second."""
        asked = schedules_pb2.ScheduleDefinition(
            timing=schedules_pb2.ScheduleTiming(interval=Duration(seconds=3600)), agent="quick",
            input=[orchestrator_pb2.InputMessage(role="user", text="say hi")], **fields,
        )  # fmt: skip
        with self.client.calling():
            made = (await self.stub.CreateSchedule(schedules_pb2.CreateScheduleRequest(definition=asked))).schedule
        record = await self.store.get(ScheduleRef("acme", made.schedule_id))
        now_ms = await self.store.now_ms()
        timing = replace(record.definition.timing, anchor_ms=now_ms - 1_000)
        assert await self.store.change(record, replace(record.definition, timing=timing), "active", now_ms - 1_000)
        return Due(record.ref, 0)

    async def made(self, due):
        """(results of the ticks that were decided, ids of the runs of the schedule)."""
        with self.client.calling():
            found = await self.client.runs.ListRuns(orchestrator_pb2.ListRunsRequest(page_size=1000))
        records = await self.runs.runs([RunRef("acme", run.thread_id, run.run_id) for run in found.runs])
        of_schedule = [record.run_id for record in records if record.spec.metadata.get("schedule_id") == due.ref.schedule_id]
        return [outcome.result for outcome, _ in await self.store.ticks(due.ref, 0, 10)], of_schedule


@pytest.fixture
async def scene(identities, state_url, tmp_path, behind):
    settings = settings_for(identities, behind, state_url, write_config(tmp_path / "config"), sweep_s=1000.0)
    async with served(settings, identities) as client, _connected(state_url) as connection:
        async with testing.dialer("gateway", {"orchestrator": f"127.0.0.1:{settings.grpc_port}"}) as dialer:
            yield Scene(client, schedules_pb2_grpc.ScheduleServiceStub(dialer.channel("orchestrator")), connection)


@asynccontextmanager
async def _connected(url):
    client = connect(url)
    try:
        yield client
    finally:
        await client.aclose()


PLACES = [f"{when} {method}" for method in ("begin", "create_run", "fired") for when in ("before", "after")]


async def test_wherever_a_replica_is_lost_its_tick_makes_one_run(scene):
    for where in PLACES:
        due = await scene.due()
        with pytest.raises(Lost):
            await scene.firing(where).look(due)
        await asyncio.gather(*(scene.firing().look(due) for _ in range(4)))
        results, runs = await scene.made(due)
        assert (results, len(runs)) == (["fired"], 1), where


async def test_a_tick_that_was_decided_makes_its_run_whatever_a_caller_changes(scene):
    for change in ("paused", "updated"):
        due = await scene.due()
        with pytest.raises(Lost):
            await scene.firing("after begin").look(due)
        record = await scene.store.get(due.ref)
        other = replace(record.definition, agent="helper") if change == "updated" else record.definition
        state, next_ms = ("paused", record.next_ms) if change == "paused" else ("active", record.next_ms + 3_600_000)
        assert await scene.store.change(record, other, state, next_ms)
        await scene.firing().look(due)
        results, runs = await scene.made(due)
        assert results == ["fired"], change
        assert (await scene.client.get(runs[0])).agent == "quick"
        after = await scene.store.get(due.ref)
        # The tick that fires is not the next one any more.
        assert (after.state, after.next_ms, after.firing_ms) == (state, record.next_ms + 3_600_000, 0)


async def test_a_tick_waits_until_its_thread_is_rolled_back_but_not_for_ever(scene):
    class Held(Making):
        async def create_run(self, principal, request):
            raise Conflict("the thread is being rolled back; try again", reason="THREAD_CHANGING")

    due = await scene.due()
    for grace_s, results in ((60.0, []), (-1.0, ["refused"])):
        await Firing(scene.store, scene.runs, Held(scene.client), look_every_s=1.0, grace_s=grace_s).look(due)
        assert await scene.made(due) == (results, [])
    due = await scene.due()
    await Firing(scene.store, scene.runs, Held(scene.client), look_every_s=1.0, grace_s=60.0).look(due)
    await scene.firing().look(due)
    results, runs = await scene.made(due)
    assert (results, len(runs)) == (["fired"], 1)


async def test_many_replicas_at_once_decide_a_tick_once(scene):
    for _ in range(5):
        due = await scene.due()
        await asyncio.gather(*(scene.firing().look(due) for _ in range(6)))
        results, runs = await scene.made(due)
        assert (results, len(runs)) == (["fired"], 1)


async def test_a_tick_that_one_replica_skips_no_other_fires(scene):
    """Of two that look while the earlier run ends, one sees it at work and one does not: whoever decides first is heard."""
    due = await scene.due()
    record = await scene.store.get(due.ref)
    assert await scene.store.begin(record)
    behind = scene.firing()
    await behind._pass(record, "skipped", record.next_ms + 3_600_000, record.next_ms)
    assert (await scene.made(due)) == ([], [])
    await behind.look(due)
    results, runs = await scene.made(due)
    assert (results, len(runs)) == (["fired"], 1)
    assert not await scene.store.begin(record)


async def test_schedules_and_audit_records_keep_to_hash_tags():
    """On a cluster, where a step over two tags is refused: all that the store does."""
    definition = Definition(Timing(every_ms=60_000), "quick", [{"role": "user", "text": "hi"}], {"tenant": "a}b{c", "user": "ana"})
    ref, run = ScheduleRef("a}b{c", "sch_1"), RunRef("a}b{c", "t", "r")
    with cluster_of_one() as url:
        async with _connected(url) as connection:
            store = ValkeySchedules(connection, "test")
            now_ms = await store.now_ms()
            assert [await store.add(ref, "ana", definition, now_ms, 1) for _ in range(2)] == ["new", "existing"]
            assert await store.add(ScheduleRef("a}b{c", "sch_2"), "ana", definition, now_ms, 1) == "full"
            (due,) = [due for due in await store.due(10, 5.0) if due.ref == ref]
            record = await store.get(ref)
            assert record.definition == definition
            assert await store.hold(record)
            assert await store.begin(record)
            assert not await store.passed(record, Outcome(now_ms, "skipped"), now_ms + 60_000)
            assert await store.fired(await store.get(ref), Outcome(now_ms, "fired", "r", "t"), run, now_ms + 60_000)
            after = await store.get(ref)
            assert (after.next_ms, after.waiting_ms, after.last_run, after.last.result) == (now_ms + 60_000, 0, run, "fired")
            assert await store.passed(after, Outcome(after.next_ms, "missed"), 0)
            assert (await store.get(ref)).state == "ended"
            assert [outcome.result for outcome, _ in await store.ticks(ref, 0, 10)] == ["missed", "fired"]
            assert [outcome.result for outcome, _ in await store.ticks(ref, 2, 10)] == ["fired"]
            assert [found.ref for found, _ in await store.of_user("a}b{c", "ana", 0, 10)] == [ref]
            await store.leave(due, None)
            assert await store.change(await store.get(ref), definition, "active", now_ms)
            await store.remove(await store.get(ref))
            assert (await store.get(ref), await store.of_user("a}b{c", "ana", 0, 10), await store.ticks(ref, 0, 10)) == (None, [], [])
            stream = AuditStream(connection, timedelta(days=1))
            assert [await stream.append("a}b{c", "r", {"n": 1}) for _ in range(2)] == [True, False]
