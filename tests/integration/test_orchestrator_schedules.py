"""Schedules from the outside: real orchestrators, real Valkey, ticks by the store's clock."""

import time
from dataclasses import replace
from itertools import pairwise

import pytest
from bulkhead.orchestrator.v1 import orchestrator_pb2, schedules_pb2_grpc
from bulkhead.orchestrator.v1 import schedules_pb2 as pb
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from services.common import testing
from services.common.errors import BulkheadError, Conflict, IdempotencyMismatch, InvalidInput, NotFound, PermissionDenied, QuotaExceeded
from services.common.valkey import connect
from services.orchestrator.accepting import Accepting
from services.orchestrator.adapters.schedule_store import ValkeySchedules
from services.orchestrator.schedules import keeping
from services.orchestrator.schedules.records import ScheduleRef
from services.orchestrator.testing.harness import data_of, served, settings_for, write_config

FIRED, SKIPPED = pb.TICK_RESULT_FIRED, pb.TICK_RESULT_SKIPPED
MISSED, REFUSED = pb.TICK_RESULT_MISSED, pb.TICK_RESULT_REFUSED

# Longer than what passes a closed gate.
LONG = "say one two three"


class Caller:
    """A caller of ScheduleService."""

    def __init__(self, client, dialer, **principal):
        self.client, self.principal = client, testing.principal_of(**principal)
        self.stub = schedules_pb2_grpc.ScheduleServiceStub(dialer.channel("orchestrator"))

    async def call(self, method, **fields):
        request = getattr(pb, f"{method}Request")(**fields)
        with testing.calling(self.client.identities, self.principal):
            return await getattr(self.stub, method)(request)

    async def create(self, key="", **fields):
        return (await self.call("CreateSchedule", definition=definition(**fields), idempotency_key=key)).schedule

    async def get(self, schedule_id):
        return (await self.call("GetSchedule", schedule_id=schedule_id)).schedule

    async def ticks(self, schedule_id, **fields):
        return list((await self.call("ListScheduleTicks", schedule_id=schedule_id, **fields)).ticks)

    async def decided(self, schedule_id, result, count=1):
        """The log of ticks, oldest first, once `count` of them came to `result`."""

        async def enough():
            ticks = await self.ticks(schedule_id)
            return ticks[::-1] if sum(tick.result == result for tick in ticks) >= count else None

        return await testing.eventually_async(enough, f"{count} ticks of {result}")


def definition(text="say hi", agent="quick", interval_s=None, cron="", timing=None, **fields):
    timing = timing or {}
    if interval_s is not None:
        timing["interval"] = seconds(interval_s)
    elif cron:
        timing["cron"] = cron
    return pb.ScheduleDefinition(
        timing=pb.ScheduleTiming(**timing), agent=agent, input=[orchestrator_pb2.InputMessage(role="user", text=text)], **fields
    )


def seconds(value):
    return Duration(seconds=int(value), nanos=int(value % 1 * 10**9))


def timestamp(unix_s):
    return Timestamp(seconds=int(unix_s), nanos=int(unix_s % 1 * 10**9))


class Scene:
    def __init__(self, client, behind, dialer, store):
        self.client, self.behind, self.dialer, self.store = client, behind, dialer, store
        self.caller = Caller(client, dialer)

    async def set_back(self, schedule_id, ms):
        """Has the next tick of a schedule lie `ms` in the past, as after an outage of all replicas."""
        record = await self.store.get(ScheduleRef("acme", schedule_id))
        every_ms = record.definition.timing.every_ms
        # Half an interval away from when it was made, so that no tick falls into the grace by chance.
        timing = replace(record.definition.timing, anchor_ms=(record.definition.timing.anchor_ms + every_ms // 2) % every_ms)
        changed = replace(record.definition, timing=timing)
        assert await self.store.change(record, changed, "active", timing.after(await self.store.now_ms() - ms))


@pytest.fixture
async def scene(identities, state_url, tmp_path, behind):
    settings = settings_for(
        identities, behind, state_url, write_config(tmp_path / "config"), schedule_least_interval_s=0.1, schedule_grace_s=2.0
    )
    client = connect(state_url)
    async with served(settings, identities) as caller:
        async with testing.dialer("gateway", {"orchestrator": f"127.0.0.1:{settings.grpc_port}"}) as dialer:
            yield Scene(caller, behind, dialer, ValkeySchedules(client, "test"))
    await client.aclose()


async def test_every_tick_makes_one_run_for_its_maker(scene):
    made = await scene.caller.create(interval_s=0.3, metadata={"team": "blue"}, name="mine")
    assert (made.state, made.version, made.definition.name) == (pb.SCHEDULE_STATE_ACTIVE, 1, "mine")
    ticks = await scene.caller.decided(made.schedule_id, FIRED, 3)
    await scene.caller.call("DeleteSchedule", schedule_id=made.schedule_id)
    gaps = {b.tick_at.ToMilliseconds() - a.tick_at.ToMilliseconds() for a, b in pairwise(ticks)}
    assert gaps == {300}
    runs = [await scene.client.wait(tick.run_id) for tick in ticks]
    assert len({run.run_id for run in runs}) == len({run.thread_id for run in runs}) == len(ticks)
    assert {run.output_text for run in runs} == {"hi"}
    # The principal that the tool executor or the models see is the one who made it.
    assert scene.behind.models.calls[-1].context.principal.user == "ana"


async def test_one_thread_takes_all_runs_and_an_end_ends_it(scene):
    end = time.time() + 1.2
    made = await scene.caller.create(interval_s=0.3, thread_policy=pb.THREAD_POLICY_ONE, timing={"end_at": timestamp(end)})

    async def ended():
        record = await scene.caller.get(made.schedule_id)
        return record if record.state == pb.SCHEDULE_STATE_ENDED else None

    record = await testing.eventually_async(ended, "the schedule ends")
    assert not record.HasField("next_tick_at")
    ticks = await scene.caller.ticks(made.schedule_id)
    assert {tick.thread_id for tick in ticks if tick.result == FIRED} == {record.definition.thread_id}
    assert ticks[0].tick_at.ToMilliseconds() <= end * 1000
    assert record.last_tick == ticks[0]
    with pytest.raises(Conflict) as caught:
        await scene.caller.call("PauseSchedule", schedule_id=made.schedule_id)
    assert caught.value.reason == "SCHEDULE_ENDED"


@pytest.mark.parametrize("overlap", ["skip", "queue", "cancel"])
async def test_a_tick_that_comes_while_a_run_is_at_work(scene, overlap):
    scene.behind.models.gate.close()
    policy = pb.OverlapPolicy.Value(f"OVERLAP_POLICY_{overlap.upper()}")
    made = await scene.caller.create(text=LONG, interval_s=0.4, overlap_policy=policy)
    if overlap == "skip":
        ticks = await scene.caller.decided(made.schedule_id, SKIPPED, 2)
        scene.behind.models.gate.open()
        assert [tick.result for tick in ticks[:3]] == [FIRED, SKIPPED, SKIPPED]
        return
    first = (await scene.caller.decided(made.schedule_id, FIRED))[0]
    if overlap == "cancel":
        second = (await scene.caller.decided(made.schedule_id, FIRED, 2))[1]
        run = await scene.client.wait(first.run_id)
        assert run.status == orchestrator_pb2.RUN_STATUS_CANCELLED
        assert second.run_id != first.run_id
        scene.behind.models.gate.open()
        return

    async def held():
        return (await scene.store.get(ScheduleRef("acme", made.schedule_id))).waiting_ms

    await testing.eventually_async(held, "a tick waits")
    assert len(await scene.caller.ticks(made.schedule_id)) == 1
    scene.behind.models.gate.open()
    second = (await scene.caller.decided(made.schedule_id, FIRED, 2))[1]
    assert second.tick_at.ToMilliseconds() - first.tick_at.ToMilliseconds() == 400
    started, ended = (await scene.client.wait(second.run_id)).created_at, (await scene.client.wait(first.run_id)).ended_at
    assert started.ToMilliseconds() >= ended.ToMilliseconds()


async def test_after_an_outage(scene):
    """Late by less than the grace: all are made up. By more: none, or the last one."""
    none = await scene.caller.create(interval_s=3600)
    last = await scene.caller.create(interval_s=3600, catch_up_policy=pb.CATCH_UP_POLICY_LAST)
    within = await scene.caller.create(interval_s=0.5, overlap_policy=pb.OVERLAP_POLICY_QUEUE, thread_policy=pb.THREAD_POLICY_ONE)
    await scene.caller.call("PauseSchedule", schedule_id=within.schedule_id)
    for made in (none, last):
        await scene.set_back(made.schedule_id, 10 * 3_600_000)
    await scene.set_back(within.schedule_id, 1_500)
    made_up = await scene.caller.decided(within.schedule_id, FIRED, 4)
    assert [tick.result for tick in made_up[:4]] == [FIRED] * 4
    missed = await scene.caller.decided(none.schedule_id, MISSED)
    assert [tick.result for tick in missed] == [MISSED]
    assert (await scene.caller.get(none.schedule_id)).next_tick_at.ToMilliseconds() > time.time() * 1000 - 2_000
    fired = await scene.caller.decided(last.schedule_id, FIRED)
    assert [tick.result for tick in fired] == [MISSED, FIRED]
    assert 0 <= fired[1].decided_at.ToMilliseconds() - fired[1].tick_at.ToMilliseconds() < 3_600_000


async def test_what_runs_refuse_is_told_and_the_next_tick_comes(scene):
    made = await scene.caller.create(interval_s=0.3)
    record = await scene.store.get(ScheduleRef("acme", made.schedule_id))
    gone = replace(record.definition, agent="gone")
    assert await scene.store.change(record, gone, "active", record.next_ms)
    ticks = await scene.caller.decided(made.schedule_id, REFUSED, 2)
    assert {(tick.reason, tick.run_id) for tick in ticks if tick.result == REFUSED} == {("AGENT_NOT_FOUND", "")}


async def test_a_principal_without_the_scope_makes_no_runs_any_more(scene):
    made = await scene.caller.create(interval_s=0.3)
    record = await scene.store.get(ScheduleRef("acme", made.schedule_id))
    fewer = replace(record.definition, principal={**record.definition.principal, "scopes": ["schedules:write"]})
    assert await scene.store.change(record, fewer, "active", record.next_ms)
    assert (await scene.caller.decided(made.schedule_id, REFUSED))[-1].reason == "SCOPE_MISSING"


async def test_pause_resume_update_delete(scene):
    caller = scene.caller
    made = await caller.create(cron="0 3 * * *", timing={"cron": "0 3 * * *", "time_zone": "Asia/Tokyo"})
    assert made.next_tick_at.ToDatetime().strftime("%H:%M") == "18:00"
    for _ in range(2):
        paused = (await caller.call("PauseSchedule", schedule_id=made.schedule_id)).schedule
        assert (paused.state, paused.version, paused.HasField("next_tick_at")) == (pb.SCHEDULE_STATE_PAUSED, 2, False)
    changed = {"definition": definition(interval_s=7200), "schedule_id": made.schedule_id, "expected_version": 2, "idempotency_key": "k"}
    for _ in range(2):
        updated = (await caller.call("UpdateSchedule", **changed)).schedule
        assert (updated.state, updated.version, updated.definition.timing.interval.seconds) == (pb.SCHEDULE_STATE_PAUSED, 3, 7200)
    with pytest.raises(Conflict) as caught:
        await caller.call("UpdateSchedule", **{**changed, "idempotency_key": "other"})
    assert caught.value.reason == "SCHEDULE_CHANGED"
    resumed = (await caller.call("ResumeSchedule", schedule_id=made.schedule_id)).schedule
    assert resumed.state == pb.SCHEDULE_STATE_ACTIVE
    assert resumed.next_tick_at.ToMilliseconds() > time.time() * 1000
    for _ in range(2):
        await caller.call("DeleteSchedule", schedule_id=made.schedule_id, idempotency_key="d")
    for method in ("GetSchedule", "PauseSchedule", "ResumeSchedule", "DeleteSchedule", "ListScheduleTicks"):
        with pytest.raises(NotFound) as gone:
            await caller.call(method, schedule_id=made.schedule_id)
        assert gone.value.reason == "SCHEDULE_NOT_FOUND"


async def test_the_same_key_makes_one_schedule_and_lists_are_paged(scene):
    first, again = [await scene.caller.create(key="a", cron="@daily", metadata={"n": "1"}) for _ in range(2)]
    assert first == again
    with pytest.raises(IdempotencyMismatch):
        await scene.caller.create(key="a", cron="@weekly")
    second = await scene.caller.create(key="b", cron="@daily")
    page = await scene.caller.call("ListSchedules", page_size=1)
    rest = await scene.caller.call("ListSchedules", page_token=page.next_page_token)
    assert [s.schedule_id for s in [*page.schedules, *rest.schedules]] == [second.schedule_id, first.schedule_id]
    assert not rest.next_page_token


async def test_schedules_of_others_are_not_there(scene):
    made = await scene.caller.create(cron="@daily")
    for other in (Caller(scene.client, scene.dialer, user="bob"), Caller(scene.client, scene.dialer, tenant="umbrella")):
        with pytest.raises(NotFound):
            await other.get(made.schedule_id)
        with pytest.raises(NotFound):
            await other.call("UpdateSchedule", schedule_id=made.schedule_id, definition=definition(cron="@hourly"))
        assert not (await other.call("ListSchedules")).schedules
    poor = Caller(scene.client, scene.dialer, scopes=["schedules:write"])
    with pytest.raises(PermissionDenied) as caught:
        await poor.create(cron="@daily")
    assert caught.value.metadata["missing_scopes"] == "runs:write"


PAST = {"end_at": timestamp(1_000_000_000)}


REFUSED_REQUESTS = [
    ({"cron": "0 0 31 2 *"}, InvalidInput, "SCHEDULE_NEVER_FIRES"),
    ({"cron": "@daily", "timing": PAST}, InvalidInput, "SCHEDULE_NEVER_FIRES"),
    ({"interval_s": 60, "timing": PAST}, InvalidInput, "SCHEDULE_NEVER_FIRES"),
    ({"cron": "@daily", "timing": {"start_at": timestamp(5e9), "end_at": timestamp(5e9 + 60)}}, InvalidInput, "SCHEDULE_NEVER_FIRES"),
    ({"cron": "61 * * * *"}, InvalidInput, "timing.cron"),
    ({}, InvalidInput, "timing"),
    ({"interval_s": 0.05}, InvalidInput, "timing.interval"),
    ({"interval_s": 1e9}, InvalidInput, "timing.interval"),
    ({"cron": "@daily", "timing": {"time_zone": "Mars/Olympus"}}, InvalidInput, "timing.time_zone"),
    ({"cron": "@daily", "timing": {"time_zone": "../../etc/passwd"}}, InvalidInput, "timing.time_zone"),
    ({"cron": "@daily", "timing": {"jitter": seconds(4000)}}, InvalidInput, "timing.jitter"),
    ({"cron": "@daily", "timing": {"start_at": Timestamp(seconds=-1)}}, InvalidInput, "timing.start_at"),
    ({"cron": "@daily", "agent": "nobody"}, NotFound, "AGENT_NOT_FOUND"),
    ({"cron": "@daily", "text": "  "}, InvalidInput, "input"),
    ({"cron": "@daily", "metadata": {"schedule_id": "x"}}, InvalidInput, "metadata"),
    ({"cron": "@daily", "thread_id": "t"}, InvalidInput, "thread_id"),
    ({"cron": "@daily", "name": "x" * 300}, InvalidInput, "name"),
    ({"cron": "@daily", "overlap_policy": 77}, InvalidInput, "overlap_policy"),
]


async def test_what_cannot_be_scheduled_is_refused_and_leaves_nothing(scene):
    for fields, error, where in REFUSED_REQUESTS:
        with pytest.raises(BulkheadError) as caught:
            await scene.caller.create(**fields)
        assert isinstance(caught.value, error), fields
        assert where == caught.value.reason or where in [violation.field for violation in caught.value.violations], fields
        if "thread_id" not in fields:
            # Its thread is not made either.
            with pytest.raises(error):
                await scene.caller.create(**fields, thread_policy=pb.THREAD_POLICY_ONE, thread_id="one")
            with pytest.raises(error):
                await scene.caller.create(**fields, thread_policy=pb.THREAD_POLICY_ONE)
    assert not (await scene.caller.call("ListSchedules")).schedules
    with scene.client.calling():
        assert not (await scene.client.threads.ListThreads(orchestrator_pb2.ListThreadsRequest())).threads


async def test_a_change_that_is_refused_and_a_schedule_too_many_make_no_thread(scene, monkeypatch):
    made = await scene.caller.create(cron="@daily")
    never = definition(cron="0 0 31 2 *", thread_policy=pb.THREAD_POLICY_ONE, thread_id="one")
    with pytest.raises(InvalidInput):
        await scene.caller.call("UpdateSchedule", schedule_id=made.schedule_id, definition=never)
    assert await scene.caller.get(made.schedule_id) == made
    monkeypatch.setattr(keeping, "MOST_SCHEDULES", 1)
    for fields in ({}, {"thread_policy": pb.THREAD_POLICY_ONE, "thread_id": "one"}):
        with pytest.raises(QuotaExceeded) as caught:
            await scene.caller.create(cron="@daily", **fields)
        assert caught.value.metadata["policy"] == "schedules"
    with scene.client.calling():
        assert not (await scene.client.threads.ListThreads(orchestrator_pb2.ListThreadsRequest())).threads


async def test_many_runs_are_cancelled_at_once(scene):
    """By schedule, label, thread and state; runs that wait in the tenant's queue or for their time as well; again changes nothing."""
    scene.behind.models.gate.close()
    made = await scene.caller.create(text=LONG, interval_s=0.3, overlap_policy=pb.OVERLAP_POLICY_QUEUE, thread_policy=pb.THREAD_POLICY_ONE)
    of_schedule = [tick.run_id for tick in await scene.caller.decided(made.schedule_id, FIRED, 3)]
    await scene.caller.call("PauseSchedule", schedule_id=made.schedule_id)
    of_schedule = [tick.run_id for tick in await scene.caller.ticks(made.schedule_id) if tick.run_id]
    later = await scene.client.start(LONG, metadata={"batch": "7"}, start_at=timestamp(time.time() + 3600))
    other = await scene.client.start(LONG)

    async def cancel(key, page_size=0, **wanted):
        request = orchestrator_pb2.CancelRunsRequest(
            filter=orchestrator_pb2.RunFilter(**wanted), idempotency_key=key, reason="enough", page_size=page_size
        )
        with scene.client.calling():
            return await scene.client.runs.CancelRuns(request)

    one = await cancel("a", page_size=1, schedule_id=made.schedule_id)
    assert not one.done
    found = one
    while not found.done:
        found = await cancel("a", page_size=1, schedule_id=made.schedule_id)
    assert (found.matched_count, found.requested_count) == (len(of_schedule), len(of_schedule))
    assert await cancel("a", schedule_id=made.schedule_id) == found
    assert (await cancel("b", metadata={"batch": "7"})).matched_count == 1
    with pytest.raises(IdempotencyMismatch):
        await cancel("b", metadata={"batch": "8"})
    for run_id in (*of_schedule, later.run_id):
        assert (await scene.client.wait(run_id)).status == orchestrator_pb2.RUN_STATUS_CANCELLED
    assert (await scene.client.get(other.run_id)).status == orchestrator_pb2.RUN_STATUS_RUNNING
    assert (await cancel("c", thread_id=other.thread_id, statuses=[orchestrator_pb2.RUN_STATUS_QUEUED])).matched_count == 0
    assert (await cancel("d", thread_id=other.thread_id, agent="quick")).matched_count == 1
    assert (await scene.client.wait(other.run_id)).status == orchestrator_pb2.RUN_STATUS_CANCELLED
    for bad in (
        {"key": ""},
        {"key": "e"},
        {"key": "f", "statuses": [orchestrator_pb2.RUN_STATUS_FAILED]},
        {"key": "g", "thread_id": "a/b"},
    ):
        with pytest.raises(InvalidInput):
            await cancel(**{"agent": "quick", **bad} if bad == {"key": ""} else bad)
    with pytest.raises(NotFound):
        await cancel("h", thread_id="nowhere")


async def test_a_run_that_is_deleted_meanwhile_does_not_keep_others_from_being_cancelled(scene, monkeypatch):
    scene.behind.models.gate.close()
    runs = [await scene.client.start(LONG, metadata={"batch": "7"}) for _ in range(3)]
    cancelled = Accepting.cancel_run

    async def gone(self, principal, run_id, reason):
        if run_id == runs[2].run_id:
            raise NotFound("there is no such run", reason="RUN_NOT_FOUND")
        return await cancelled(self, principal, run_id, reason)

    monkeypatch.setattr(Accepting, "cancel_run", gone)
    request = orchestrator_pb2.CancelRunsRequest(filter=orchestrator_pb2.RunFilter(metadata={"batch": "7"}), idempotency_key="a")
    with scene.client.calling():
        found = await scene.client.runs.CancelRuns(request)
    assert (found.done, found.matched_count) == (True, 3)
    for run in runs[:2]:
        assert (await scene.client.wait(run.run_id)).status == orchestrator_pb2.RUN_STATUS_CANCELLED


async def test_a_queued_event_tells_of_the_agent_that_a_tick_was_for(scene):
    made = await scene.caller.create(interval_s=0.3, agent="")
    tick = (await scene.caller.decided(made.schedule_id, FIRED))[0]
    queued = (await scene.client.log(tick.run_id))[0]
    assert data_of(queued)["agent"] == (await scene.caller.get(made.schedule_id)).definition.agent == "helper"
