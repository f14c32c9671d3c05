"""ForgetSubject at the orchestrator: complete, durable, and nobody else's data touched. What stands behind it is faked."""

import asyncio
import base64
import os
import time
from contextlib import AsyncExitStack, asynccontextmanager

import orjson
import pytest
from bulkhead.orchestrator.v1 import admin_pb2 as pb
from bulkhead.orchestrator.v1 import admin_pb2_grpc as rpc
from bulkhead.orchestrator.v1 import orchestrator_pb2, schedules_pb2, schedules_pb2_grpc, webhooks_pb2, webhooks_pb2_grpc
from google.protobuf.timestamp_pb2 import Timestamp

from services.common import testing
from services.common.envelope import Envelope, RootKeys
from services.common.errors import Conflict, IdempotencyMismatch, InvalidInput, NotFound, Overloaded, PermissionDenied
from services.common.valkey import connect
from services.orchestrator import app
from services.orchestrator.testing.harness import served, settings_for, write_config
from services.orchestrator.testing.receivers import receiver
from tests.integration.searched_store import holding

MARK = "swordfish4711"
ANA, BOB = testing.principal_of(user="ana"), testing.principal_of(user="bob")


class Admin:
    """A caller of AdminService."""

    def __init__(self, dialer, identities):
        self.stub, self.identities = rpc.AdminServiceStub(dialer.channel("orchestrator")), identities

    async def forget(self, user="ana", key="", principal=None):
        with testing.calling(self.identities, principal):
            return (await self.stub.ForgetSubject(pb.ForgetSubjectRequest(user=user, idempotency_key=key))).erasure

    async def get(self, erasure_id, principal=None):
        with testing.calling(self.identities, principal):
            return (await self.stub.GetErasure(pb.GetErasureRequest(erasure_id=erasure_id))).erasure

    async def done(self, erasure_id):
        async def over():
            erasure = await self.get(erasure_id)
            return erasure if erasure.state == pb.ERASURE_STATE_DONE else None

        return await testing.eventually_async(over, "the erasure is done")

    async def quota(self, principal=None):
        with testing.calling(self.identities, principal):
            return await self.stub.GetQuota(pb.GetQuotaRequest())


@asynccontextmanager
async def scene_of(identities, behind, state_url, config_dir, **fields):
    settings = settings_for(identities, behind, state_url, config_dir, **fields)
    async with AsyncExitStack() as stack:
        ana = await stack.enter_async_context(served(settings, identities, ANA))
        dialer = await stack.enter_async_context(testing.dialer("gateway", {"orchestrator": f"127.0.0.1:{settings.grpc_port}"}))
        bob = type(ana)(dialer, identities, BOB)
        yield ana, bob, Admin(dialer, identities), dialer


@pytest.fixture
async def scene(identities, behind, state_url, tmp_path):
    config = write_config(tmp_path / "config")
    fields = {"segments_dir": tmp_path / "segments", "segments_after_s": 0.05, "webhook_allow_private": True, "webhook_retries_s": (0.05,)}
    async with scene_of(identities, behind, state_url, config, **fields) as made:
        yield made


@pytest.mark.system
async def test_nothing_of_an_erased_user_is_left_and_others_are_untouched(scene, behind, identities, state_url, tmp_path):
    ana, bob, admin, dialer = scene
    hooks = webhooks_pb2_grpc.WebhookServiceStub(dialer.channel("orchestrator"))
    async with receiver() as got:
        with testing.calling(identities):
            made = await hooks.CreateWebhook(webhooks_pb2.CreateWebhookRequest(url=got.url("/"), event_types=["run.finished"]))
        finished = [await ana.start(f"say {MARK}", agent="helper", thread_id="t-ana", metadata={"about": MARK}) for _ in range(2)]
        await asyncio.gather(*(ana.wait(run.run_id) for run in finished))
        kept = await bob.start("say haddock", thread_id="t-bob")
        await bob.wait(kept.run_id)
        with ana.calling():
            await ana.threads.CreateThread(orchestrator_pb2.CreateThreadRequest(thread_id="t-empty", metadata={"about": MARK}))
        await testing.eventually_async(lambda: len(got.got) == 3, "all are told")
    await testing.eventually_async(lambda: [p for p in (tmp_path / "segments").rglob("*-*") if p.is_file()], "a log has moved")
    behind.models.gate.close()
    at_work = await ana.start(f"say {MARK} {MARK} {MARK}", thread_id="t-work")
    await testing.eventually_async(lambda: behind.models.gate.waiting, "at work")
    await ana.start(f"say {MARK}", thread_id="t-work")
    assert await holding(state_url, MARK)
    before = await bob.log(thread_id="t-bob")
    erasure = await admin.done((await admin.forget()).erasure_id)
    behind.models.gate.open()
    assert [part.service for part in erasure.parts] == ["orchestrator", "llm_gateway", "tool_executor", "memory"]
    assert all(part.state == pb.ERASURE_STATE_DONE and part.HasField("done_at") for part in erasure.parts)
    assert {entry.kind: entry.count for entry in erasure.parts[0].erased} == {"runs": 4, "threads": 3, "keys": 0}
    assert behind.models.erasing.erased == behind.tools.erasing.erased == behind.memories.erasing.erased == ["ana"]
    assert sorted(behind.memories.erasing.sessions) == ["t-ana", "t-empty", "t-work"]
    for run in (*finished, at_work):
        with pytest.raises(NotFound):
            await ana.get(run.run_id)

    async def gone():
        return not await holding(state_url, MARK, ":ana", '"ana"', "t-ana", "t-work")

    # What only names threads and runs of the user goes with the next look of whoever keeps it.
    await testing.eventually_async(gone, "nothing of the user is in the store")
    assert b"ana" not in orjson.dumps([str(path) for path in (tmp_path / "segments").rglob("*")])
    assert len([path for path in (tmp_path / "segments").rglob("*-*") if path.is_file()]) <= 1
    assert await bob.log(thread_id="t-bob") == before
    assert (await bob.get(kept.run_id)).output_text == "haddock"
    with testing.calling(identities):
        log = await hooks.ListDeliveries(webhooks_pb2.ListDeliveriesRequest(webhook_id=made.webhook.webhook_id))
    assert [delivery.run_id for delivery in log.deliveries] == [kept.run_id]
    # Whoever was erased may begin anew.
    again = await ana.start("say hello", thread_id="t-ana")
    assert (await ana.wait(again.run_id)).output_text == "hello"


async def test_while_an_erasure_is_under_way_the_user_begins_nothing_and_a_service_is_asked_until_it_does(scene, behind):
    ana, bob, admin, _ = scene
    behind.memories.erasing.refusals = [Overloaded("away", reason="STORE_UNAVAILABLE")] * 3
    behind.tools.erasing.refusals = [Overloaded("away")]
    first = await admin.forget(key="k")
    with pytest.raises(Conflict) as refused:
        await ana.start("say no")
    assert refused.value.reason == "SUBJECT_BEING_ERASED"
    with pytest.raises(Conflict), ana.calling():
        await ana.threads.CreateThread(orchestrator_pb2.CreateThreadRequest(thread_id="t"))
    await bob.wait((await bob.start("say yes")).run_id)
    assert (await admin.forget(key="other")).erasure_id == first.erasure_id
    done = await admin.done(first.erasure_id)
    attempts = {part.service: part.attempts for part in done.parts}
    assert (attempts["llm_gateway"], attempts["tool_executor"], attempts["memory"]) == (1, 2, 4)
    # The same key is the same erasure for as long as its receipt is kept, another key a new one.
    assert (await admin.forget(key="k")).erasure_id == first.erasure_id
    # So is a key that joined it.
    assert (await admin.forget(key="other")).erasure_id == first.erasure_id
    with pytest.raises(IdempotencyMismatch):
        await admin.forget("bob", key="other")
    assert behind.memories.erasing.erased == ["ana"]
    assert (await admin.forget(key="new")).erasure_id != first.erasure_id
    with pytest.raises(IdempotencyMismatch):
        await admin.forget("bob", key="k")


async def test_who_may_erase_and_who_may_read_the_receipt(scene):
    _, _, admin, _ = scene
    own = testing.principal_of(user="ana", scopes=["erasures:write"])
    stranger = testing.principal_of(user="bob", scopes=["erasures:write"])
    elsewhere = testing.principal_of("zeta", "root")
    other_key = testing.principal_of(user="ana", scopes=["runs:write", "threads:write", "memories:write"])
    for who, missing in ((stranger, "admin"), (other_key, "erasures:write")):
        with pytest.raises(PermissionDenied) as refused:
            await admin.forget("ana", principal=who)
        assert refused.value.metadata["missing_scopes"] == missing
    with pytest.raises(InvalidInput):
        await admin.forget("")
    erasure = await admin.forget("ana", principal=own)
    for mine in (own, other_key):
        assert (await admin.get(erasure.erasure_id, mine)).erasure_id == erasure.erasure_id
    await admin.done(erasure.erasure_id)
    assert (await admin.get(erasure.erasure_id, own)).subject_digest == erasure.subject_digest
    for other in (stranger, elsewhere):
        with pytest.raises(NotFound):
            await admin.get(erasure.erasure_id, other)
    with pytest.raises(NotFound):
        await admin.get("era_none/x")


async def test_a_quota_tells_what_is_used_and_what_the_tier_allows(scene, behind):
    ana, _, admin, _ = scene
    free = testing.principal_of(user="ana", tier="free")
    behind.models.gate.close()
    run = await ana.start("say one two three")
    later = await ana.start("say later", start_at=_ahead())
    quota = await admin.quota(free)
    assert (quota.concurrent_runs.used, quota.queued_runs.used, quota.delayed_runs.used) == (1, 0, 1)
    assert quota.tier == "free"
    assert not quota.concurrent_runs.HasField("limit")
    assert quota.delayed_runs.limit == 100
    assert quota.task_time.seconds == 60
    behind.models.gate.open()
    await ana.wait(run.run_id)
    await ana.cancel(later.run_id)

    async def free_again():
        answer = await admin.quota(free)
        return (answer.concurrent_runs.used, answer.delayed_runs.used) == (0, 0)

    await testing.eventually_async(free_again, "what was used is free")


def _ahead():
    stamp = Timestamp()
    stamp.GetCurrentTime()
    stamp.seconds += 3600
    return stamp


@pytest.fixture
def keys_file(tmp_path):
    path = tmp_path / "roots.json"
    path.write_bytes(orjson.dumps({"keys": [{"id": "one", "key": base64.b64encode(os.urandom(32)).decode()}]}))
    return path


async def test_what_is_kept_of_a_run_is_encrypted_and_reads_as_before_beside_plain_text(identities, behind, state_url, tmp_path, keys_file):
    config = write_config(tmp_path / "config")
    async with scene_of(identities, behind, state_url, config) as (ana, _, _, _):
        plain = await ana.wait((await ana.start("say plainword", thread_id="t")).run_id)
    assert await holding(state_url, "plainword")
    options = {"envelope_keys_file": keys_file, "webhook_allow_private": True, "segments_dir": tmp_path / "segments"}
    async with scene_of(identities, behind, state_url, config, **options) as (ana, _, _, dialer):
        async with receiver() as got:
            hooks = webhooks_pb2_grpc.WebhookServiceStub(dialer.channel("orchestrator"))
            with testing.calling(identities):
                made = await hooks.CreateWebhook(webhooks_pb2.CreateWebhookRequest(url=got.url("/"), event_types=["run.finished"]))
            run = await ana.wait((await ana.start(f"say {MARK}", agent="helper", thread_id="t")).run_id)
            await testing.eventually_async(lambda: got.got, "it is told")
            assert got.got[0].signed_by(made.secret)
            assert got.got[0].data["output_text"] == run.output_text
        assert MARK in run.output_text
        assert run.usage.model_calls
        log = await ana.log(thread_id="t")
        assert [event.type for event in log].count("run_finished") == 2
        assert any(MARK in event.data_json.decode() for event in log)
        assert any("plainword" in event.data_json.decode() for event in log)
        assert (await ana.get(plain.run_id)).output_text == "plainword"
        # Cancelled while it waits, and one that is at work when its process goes: both write through other scripts.
        behind.models.gate.close()
        at_work = await ana.start(f"say {MARK} {MARK} {MARK}", thread_id="t2")
        await testing.eventually_async(lambda: behind.models.gate.waiting, "at work")
        queued = await ana.start(f"say {MARK}", thread_id="t2")
        await ana.cancel(queued.run_id)
        await ana.cancel(at_work.run_id)
        behind.models.gate.open()
        assert MARK in (await ana.wait(at_work.run_id)).output_text
        secret = made.secret
    assert await holding(state_url, MARK, secret) == []


@pytest.mark.system
async def test_a_destroyed_key_makes_what_a_backup_brings_back_unreadable(identities, behind, state_url, tmp_path, keys_file):
    config = write_config(tmp_path / "config")
    client = connect(state_url)
    async with scene_of(identities, behind, state_url, config, envelope_keys_file=keys_file) as (ana, bob, admin, _):
        mine = await ana.wait((await ana.start(f"say {MARK}", thread_id="t-ana")).run_id)
        yours = await bob.wait((await bob.start("say haddock", thread_id="t-bob")).run_id)
        # A backup of the data, as one makes it: the table of keys is kept apart and only ever in its newest form.
        backup = {key: await client.dump(key) for key in await client.keys("*") if not key.startswith((b"envelope:", b"erasures:"))}
        erasure = await admin.done((await admin.forget()).erasure_id)
        assert {entry.kind: entry.count for entry in erasure.parts[0].erased}["keys"] == 1
        for key, content in backup.items():
            await client.restore(key, 0, content, replace=True)
        with pytest.raises(NotFound):
            await ana.get(mine.run_id)
        assert not any(MARK in event.data_json.decode() for event in await ana.log(thread_id="t-ana"))
        assert (await bob.get(yours.run_id)).output_text == "haddock"
        assert await holding(state_url, MARK) == []
        # Another erasure removes what was brought back.
        await admin.done((await admin.forget()).erasure_id)
        assert not await client.keys("t:{acme/t-ana}*")
    await client.aclose()


async def test_whoever_begins_anew_at_another_replica_loses_nothing_to_the_destroyed_key(
    identities, behind, state_url, tmp_path, keys_file, monkeypatch
):
    config, max_age_s = write_config(tmp_path / "config"), 1.5

    def opened(client, path, **options):
        return Envelope(client, RootKeys.from_file(path), max_age_s=max_age_s, **options)

    monkeypatch.setattr(app, "opened_envelope", opened)
    options = {"envelope_keys_file": keys_file}
    async with (
        scene_of(identities, behind, state_url, config, **options) as (there, _, _, _),
        scene_of(identities, behind, state_url, config, **options) as (_, _, admin, _),
    ):
        # Its replica reads the key just before it is destroyed.
        await there.wait((await there.start("say before")).run_id)
        began = time.monotonic()
        erasure = await admin.done((await admin.forget()).erasure_id)
        assert {entry.kind: entry.count for entry in erasure.parts[0].erased}["keys"] == 1
        anew = await there.wait((await there.start("say anew")).run_id)
        await testing.eventually_async(lambda: time.monotonic() - began > 2 * max_age_s, "no process has the old key")
        assert (await there.get(anew.run_id)).output_text == "anew"


async def test_messages_about_runs_whose_thread_was_deleted_before_go_with_their_user(scene, state_url):
    ana, _, admin, dialer = scene
    hooks = webhooks_pb2_grpc.WebhookServiceStub(dialer.channel("orchestrator"))
    async with receiver() as got:
        got.gate.close()
        with testing.calling(ana.identities):
            await hooks.CreateWebhook(webhooks_pb2.CreateWebhookRequest(url=got.url("/"), event_types=["run.finished"]))
        await ana.wait((await ana.start(f"say {MARK}", thread_id="t-ana")).run_id)
        await testing.eventually_async(lambda: got.gate.waiting, "it is being told")
        with ana.calling():
            await ana.threads.DeleteThread(orchestrator_pb2.DeleteThreadRequest(thread_id="t-ana"))

        async def gone():
            return not await holding(state_url, "t-ana}:run")

        await testing.eventually_async(gone, "the thread is deleted")
        await admin.done((await admin.forget()).erasure_id)
        assert await holding(state_url, MARK, ":ana", "hook-message:", "hook-delivery:msg") == []
        got.gate.open()


def nightly():
    timing = schedules_pb2.ScheduleTiming(cron="0 3 * * *")
    return schedules_pb2.ScheduleDefinition(agent="quick", input=[orchestrator_pb2.InputMessage(role="user", text=MARK)], timing=timing)


async def test_while_an_erasure_is_under_way_the_user_makes_no_schedule(scene, behind, state_url):
    ana, _, admin, dialer = scene
    schedules = schedules_pb2_grpc.ScheduleServiceStub(dialer.channel("orchestrator"))
    request = schedules_pb2.CreateScheduleRequest(definition=nightly(), idempotency_key="k")
    behind.memories.erasing.refusals = [Overloaded("away")] * 2
    erasure = await admin.forget()
    with pytest.raises(Conflict) as refused, ana.calling():
        await schedules.CreateSchedule(request)
    assert refused.value.reason == "SUBJECT_BEING_ERASED"
    await admin.done(erasure.erasure_id)
    assert await holding(state_url, MARK) == []
    with ana.calling():
        await schedules.CreateSchedule(request)


@pytest.mark.system
async def test_a_schedule_is_encrypted_fires_beside_plain_ones_and_is_gone_with_its_key(identities, behind, state_url, tmp_path, keys_file):
    config = write_config(tmp_path / "config")

    async def made(ana, dialer, **fields):
        stub = schedules_pb2_grpc.ScheduleServiceStub(dialer.channel("orchestrator"))
        definition = nightly()
        definition.timing.MergeFrom(schedules_pb2.ScheduleTiming(**fields))
        with ana.calling():
            return stub, (await stub.CreateSchedule(schedules_pb2.CreateScheduleRequest(definition=definition))).schedule

    async with scene_of(identities, behind, state_url, config) as (ana, _, _, dialer):
        _, plain = await made(ana, dialer)
    client = connect(state_url)
    assert MARK.encode() in await client.hget(f"tn:{{acme}}:schedule:{plain.schedule_id}", "definition")
    await client.aclose()
    options = {"envelope_keys_file": keys_file, "schedule_least_interval_s": 0.1}
    async with scene_of(identities, behind, state_url, config, **options) as (ana, _, admin, dialer):
        stub, sealed = await made(ana, dialer)
        client = connect(state_url)
        key = f"tn:{{acme}}:schedule:{sealed.schedule_id}"
        assert MARK.encode() not in await client.hget(key, "definition")
        with ana.calling():
            shown = (await stub.ListSchedules(schedules_pb2.ListSchedulesRequest())).schedules
            assert [schedule.schedule_id for schedule in shown] == [sealed.schedule_id, plain.schedule_id]
            assert shown[0].definition == shown[1].definition
            changed = nightly()
            changed.name = "other"
            request = schedules_pb2.UpdateScheduleRequest(schedule_id=sealed.schedule_id, definition=changed)
            assert (await stub.UpdateSchedule(request)).schedule.definition.name == "other"
        assert MARK.encode() not in await client.hget(key, "definition")
        await client.hset(key, "next_ms", 1)
        await client.zadd("schedules:{sd0}:due", {f"acme/{sealed.schedule_id}": 0})

        async def fired():
            with ana.calling():
                ticks = (await stub.ListScheduleTicks(schedules_pb2.ListScheduleTicksRequest(schedule_id=sealed.schedule_id))).ticks
            return ticks

        await testing.eventually_async(fired, "it was looked at")
        kept = await client.dump(key)
        await admin.done((await admin.forget()).erasure_id)
        # A backup brings it back, and its list.
        await client.restore(key, 0, kept)
        await client.zadd("tn:{acme}:schedules:ana", {sealed.schedule_id: 1})
        with ana.calling():
            assert not (await stub.ListSchedules(schedules_pb2.ListSchedulesRequest())).schedules
        assert not await client.exists(key, "tn:{acme}:schedules:ana")
        await client.aclose()
