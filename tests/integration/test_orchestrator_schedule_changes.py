"""Changes of single fields of a schedule: many at once all hold, and each is checked as the schedule that comes of it."""

import asyncio

import pytest
from bulkhead.orchestrator.v1 import orchestrator_pb2
from bulkhead.orchestrator.v1 import schedules_pb2 as pb
from google.protobuf.field_mask_pb2 import FieldMask

from services.common import testing
from services.common.errors import Conflict, IdempotencyMismatch, InvalidInput
from services.common.valkey import connect
from services.orchestrator.adapters.schedule_store import ValkeySchedules
from services.orchestrator.schedules.records import ScheduleRef
from services.orchestrator.testing.harness import served, settings_for, write_config
from tests.integration.real_gateway import answered, gateway_before
from tests.integration.test_orchestrator_schedules import FIRED, LONG, Caller

CHANGES = [
    {"name": "other"},
    {"timing": pb.ScheduleTiming(cron="@hourly", time_zone="Asia/Tokyo")},
    {"input": [orchestrator_pb2.InputMessage(role="user", text="say more")]},
    {"agent": "helper"},
    {"thread_policy": pb.THREAD_POLICY_ONE, "thread_id": "t-one"},
    {"overlap_policy": pb.OVERLAP_POLICY_QUEUE},
    {"catch_up_policy": pb.CATCH_UP_POLICY_LAST},
    {"metadata": {"team": "red"}},
]


@pytest.fixture
async def caller(identities, state_url, tmp_path, behind):
    settings = settings_for(identities, behind, state_url, write_config(tmp_path / "config"), schedule_least_interval_s=0.1)
    async with served(settings, identities) as client:
        async with testing.dialer("gateway", {"orchestrator": f"127.0.0.1:{settings.grpc_port}"}) as dialer:
            made = Caller(client, dialer)
            made.port = settings.grpc_port
            yield made


@pytest.fixture
async def store(state_url):
    client = connect(state_url)
    yield ValkeySchedules(client, "test")
    await client.aclose()


async def test_a_tick_that_waits_is_made_also_where_the_schedule_gets_another_name(caller, store, behind):
    behind.models.gate.close()
    made = await caller.create(text=LONG, interval_s=0.4, overlap_policy=pb.OVERLAP_POLICY_QUEUE)
    first = (await caller.decided(made.schedule_id, FIRED))[0]

    async def waiting():
        return (await store.get(ScheduleRef("acme", made.schedule_id))).waiting_ms

    waits_ms = await testing.eventually_async(waiting, "a tick waits")
    await _renamed(caller, made.schedule_id)
    assert await waiting() == waits_ms
    behind.models.gate.open()
    ticks = await caller.decided(made.schedule_id, FIRED, 2)
    assert [tick.tick_at.ToMilliseconds() for tick in ticks[:2]] == [first.tick_at.ToMilliseconds(), waits_ms]


async def test_a_tick_that_is_being_made_is_made_once_where_the_schedule_gets_another_name(caller, store):
    made = await caller.create(interval_s=7200)
    record = await store.get(ScheduleRef("acme", made.schedule_id))
    assert await store.begin(record)
    renamed = await _renamed(caller, made.schedule_id)
    ticks = await caller.decided(made.schedule_id, FIRED)
    assert [tick.tick_at.ToMilliseconds() for tick in ticks] == [record.next_ms]
    assert renamed.next_tick_at.ToMilliseconds() == record.next_ms + 7_200_000


async def _renamed(caller, schedule_id):
    asked = {"schedule_id": schedule_id, "definition": pb.ScheduleDefinition(name="other"), "update_mask": FieldMask(paths=["name"])}
    return (await caller.call("UpdateSchedule", **asked)).schedule


@pytest.mark.parametrize("keyed", [False, True])
async def test_changes_of_different_fields_at_the_same_time_all_hold(caller, keyed):
    made = await caller.create(cron="@daily", metadata={"team": "blue"}, name="mine")

    async def change(number, fields):
        asked = {"schedule_id": made.schedule_id, "definition": pb.ScheduleDefinition(**fields), "idempotency_key": f"k{number}" * keyed}
        return (await caller.call("UpdateSchedule", update_mask=FieldMask(paths=fields), **asked)).schedule

    for _ in range(2):
        # Again with the same keys, nothing is changed any more.
        await asyncio.gather(*(change(number, fields) for number, fields in enumerate(CHANGES)))
    after = await caller.get(made.schedule_id)
    assert after.definition == pb.ScheduleDefinition(**{name: value for fields in CHANGES for name, value in fields.items()})
    assert after.version == 1 + len(CHANGES) * (1 if keyed else 2)
    if keyed:
        with pytest.raises(IdempotencyMismatch):
            await change(0, {"agent": "helper"})
        with pytest.raises(IdempotencyMismatch):
            await change(0, {**CHANGES[0], "agent": ""})


async def test_a_change_that_is_sent_again_is_the_same_whatever_else_it_carries(caller):
    made = await caller.create(cron="@daily", name="mine")
    asked = {"schedule_id": made.schedule_id, "update_mask": FieldMask(paths=["name"]), "idempotency_key": "k"}

    async def rename(name, **carried):
        return (await caller.call("UpdateSchedule", definition=pb.ScheduleDefinition(name=name, **carried), **asked)).schedule

    renamed = await rename("other", metadata={"team": "blue"})
    assert await rename("other", timing=pb.ScheduleTiming(cron="@hourly"), agent="helper") == renamed
    with pytest.raises(IdempotencyMismatch):
        await rename("another", metadata={"team": "blue"})


async def test_a_change_of_single_fields_is_checked_as_a_whole_and_a_mask_names_fields(caller):
    made = await caller.create(cron="@daily", thread_policy=pb.THREAD_POLICY_ONE, thread_id="t-mask")

    async def change(*paths, version=0, **fields):
        asked = {"schedule_id": made.schedule_id, "definition": pb.ScheduleDefinition(**fields), "expected_version": version}
        return (await caller.call("UpdateSchedule", update_mask=FieldMask(paths=paths), **asked)).schedule

    for paths, fields, where in (
        (["timing"], {}, "timing"),
        (["input"], {"name": "x"}, "input"),
        (["name"], {"name": "x" * 300}, "name"),
        (["thread_policy", "thread_id"], {"thread_id": "t"}, "thread_id"),
        (["timing.cron"], {"timing": pb.ScheduleTiming(cron="@hourly")}, "update_mask"),
        (["principal"], {}, "update_mask"),
    ):
        with pytest.raises(InvalidInput) as caught:
            await change(*paths, **fields)
        assert where in [violation.field for violation in caught.value.violations], paths
    with pytest.raises(Conflict):
        await change("name", name="x", version=2)
    assert await caller.get(made.schedule_id) == made
    # What is not named is not looked at.
    renamed = await change("name", name="x", version=1, input=[], agent="nobody")
    assert (renamed.definition.name, renamed.definition.input, renamed.definition.agent) == ("x", made.definition.input, "quick")
    single = await change("thread_policy")
    assert (single.definition.thread_policy, single.definition.thread_id) == (pb.THREAD_POLICY_NEW, "")


async def test_over_http_changes_at_the_same_time_all_hold_and_one_that_is_sent_again_is_made_once(caller, identities, state_url):
    bodies = [
        {"name": "a"}, {"timing": {"interval_ms": 3_600_000}}, {"input": "say more"}, {"agent": "helper"}, {"overlap_policy": "queue"},
        {"thread_policy": "one", "thread_id": "t-http"}, {"catch_up_policy": "last"}, {"metadata": {"team": "red"}},
    ]  # fmt: skip
    async with gateway_before(identities, state_url, caller.port) as people:
        http = await people.session()
        plan = {"timing": {"cron": "@daily"}, "input": "say hi", "agent": "quick"}
        made = await answered(http.post("/v1/schedules", json=plan), 201)
        path = f"/v1/schedules/{made['schedule_id']}"

        async def change(number, body):
            await answered(http.patch(path, json=body, headers={"idempotency-key": f"k{number}"}), 200)

        await asyncio.gather(*(change(number, body) for number, body in enumerate(bodies)))
        await answered(http.patch(path, json={"name": "b"}), 200)
        await change(0, bodies[0])
        after = await answered(http.get(path), 200)
    wanted = {name: value for body in bodies for name, value in body.items()} | {"name": "b"}
    wanted["timing"], wanted["input"] = made["timing"] | {"cron": None, "interval_ms": 3_600_000}, [{"role": "user", "content": "say more"}]
    assert {name: after[name] for name in wanted} == wanted
    assert after["version"] == 2 + len(bodies)
