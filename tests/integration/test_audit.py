"""Audit records: once for each run and tool call, whoever is lost in between, and without a word that a person has written."""

import asyncio
from datetime import timedelta
from functools import partial

import orjson
import pytest
from bulkhead.orchestrator.v1 import approvals_pb2 as approvals_pb
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb
from bulkhead.tools.v1 import tools_pb2, tools_pb2_grpc

from services.common import testing
from services.common.audit import AuditStream, canonical, digest
from services.common.errors import InvalidInput, Overloaded
from services.common.valkey import connect
from services.orchestrator.outbox import Outbox
from services.orchestrator.testing.harness import command, dialed, served, settings_for, write_config
from services.tool_executor.app import build as build_tools
from services.tool_executor.settings import Settings as ToolSettings

SECRET = "marzipan"
# Longer than a machine that is busy with other things takes from the first of some records until all are read.
KEPT = timedelta(seconds=1)


@pytest.fixture
async def client(state_url):
    made = connect(state_url)
    yield made
    await made.aclose()


@pytest.fixture
def stream(client):
    return AuditStream(client, timedelta(days=1))


async def settled(stream, count, tenant="acme"):
    """The records of a tenant, once there are `count`."""

    async def enough():
        found = await stream.read(tenant)
        return found if len(found) >= count else None

    return [orjson.loads(entry.record) for entry in await testing.eventually_async(enough, f"{count} audit records")]


async def test_a_record_is_appended_once_however_often_and_by_whomever(stream):
    answers = await asyncio.gather(*(stream.append("acme", f"r{number % 5}", {"n": number % 5}) for number in range(50)))
    assert sum(answers) == 5
    entries = await stream.read("acme")
    assert [entry.sequence for entry in entries] == [1, 2, 3, 4, 5]
    assert sorted(entry.record_id for entry in entries) == ["r0", "r1", "r2", "r3", "r4"]
    assert [entry.sequence for entry in await stream.read("acme", after=3)] == [4, 5]
    # Tenants do not see each other, whatever they are called.
    assert await stream.append("a}c{me/", "r0", {})
    assert [entry.sequence for entry in await stream.read("a}c{me/")] == [1]


async def test_what_is_old_is_deleted_and_numbers_go_on(client):
    short = AuditStream(client, KEPT)
    for number in range(20):
        await short.append("acme", f"old{number}", {})
    await asyncio.sleep(1.01 * KEPT.total_seconds())
    for number in range(3):
        await short.append("acme", f"new{number}", {})
    entries = await short.read("acme")
    assert [(entry.sequence, entry.record_id) for entry in entries] == [(21, "new0"), (22, "new1"), (23, "new2")]
    ids = await client.zcard("audit:{acme}:seen")
    assert ids == 3


def test_the_same_record_has_the_same_bytes_whatever_the_order_of_its_names():
    record = {"b": [1, None, True, -(2**53) + 1], "a": {"z": '\u00e9"\\\n\u20ac', "B": []}, "": ""}
    assert canonical(record) == canonical(dict(reversed(record.items())))
    assert canonical(record) == '{"":"","a":{"B":[],"z":"\u00e9\\"\\\\\\n\u20ac"},"b":[1,null,true,-9007199254740991]}'.encode()


@pytest.mark.parametrize("value", [1.5, 2**53, b"x", float("nan"), {"é": 1}, {"inner": [{"x": 0.1}]}])
def test_what_has_no_one_form_is_refused(value):
    with pytest.raises(ValueError, match="audit records"):
        canonical({"value": value})


async def test_every_end_of_a_run_leaves_one_record_without_its_words(identities, state_url, tmp_path, behind, stream):
    settings = settings_for(identities, behind, state_url, write_config(tmp_path / "config"), audit_days=1)
    async with served(settings, identities) as caller:
        done = await caller.wait((await caller.start(f"say {SECRET}")).run_id)
        used = await caller.wait((await caller.start(f'tool calculator {{"expression": "{SECRET}"}}', agent="helper")).run_id)
        behind.models.gate.close()
        at_work = await caller.start("say one two three")
        queued = await caller.start(f"say {SECRET}", thread_id=at_work.thread_id)
        await caller.cancel(queued.run_id)
        behind.models.gate.open()
        await caller.wait(at_work.run_id)
        behind.models.failure = InvalidInput(SECRET)
        failed = await caller.wait((await caller.start(f"say {SECRET}")).run_id)
        records = {record["run_id"]: record for record in await settled(stream, 5)}
    assert len(records) == len(await stream.read("acme")) == 5
    told = records[done.run_id]
    assert (told["status"], told["agent"], told["model"], told["session"]) == ("succeeded", "quick", "m", done.thread_id)
    assert told["output_hash"] == digest(SECRET)
    assert (told["usage"]["model_calls"], told["ended_ms"]) == (1, done.ended_at.ToMilliseconds())
    assert [tool["name"] for tool in records[used.run_id]["tools"]] == ["calculator"]
    assert (records[queued.run_id]["status"], records[failed.run_id]["status"]) == ("cancelled", "failed")
    assert records[failed.run_id]["reason"] == failed.error.reason
    assert SECRET not in repr(records)
    assert "ana" not in repr(records)


async def test_calls_at_work_at_the_end_and_the_time_of_the_last_step_are_in_the_record(identities, state_url, tmp_path, behind, stream):
    settings = settings_for(identities, behind, state_url, write_config(tmp_path / "config"), audit_days=1)
    async with served(settings, identities) as caller:
        behind.tools.gate.close()
        run = await caller.start('tool calculator {"expression": "1+1"}', agent="helper")
        await testing.eventually_async(lambda: behind.tools.gate.waiting, "the call is at work")
        await caller.cancel(run.run_id)
        await caller.wait(run.run_id)
        behind.tools.gate.open()
        behind.models.gate.close()
        slow = await caller.start("say one two three")
        await testing.eventually_async(lambda: behind.models.gate.waiting, "the model is asked")
        await asyncio.sleep(0.1)
        behind.models.gate.open()
        await caller.wait(slow.run_id)
        records = {record["run_id"]: record for record in await settled(stream, 2)}
    told = records[run.run_id]
    assert [tool["name"] for tool in told["tools"]] == ["calculator"]
    assert (told["tool_count"], told["usage"]["tool_calls"]) == (1, 1)
    assert told["tools"][0]["arguments_hash"] == digest('{"expression": "1+1"}')
    assert records[slow.run_id]["active_ms"] >= 100


async def test_who_decided_what_of_a_run_is_in_its_record(identities, state_url, tmp_path, behind, stream):
    settings = settings_for(identities, behind, state_url, write_config(tmp_path / "config"), audit_days=1)
    async with served(settings, identities) as caller:
        ended = []
        for decision in ({"edit": approvals_pb.Edit(arguments_json=b'{"to":"cy"}')}, {"reject": approvals_pb.Reject(), "reason": SECRET}):
            run = await caller.start('tool send_mail {"to": "bo"}', agent="careful")
            (asked,) = await testing.eventually_async(partial(caller.asked, run.run_id), "somebody is asked")
            decided = (await caller.decide(asked.approval_id, **decision)).decisions[-1]
            ended.append((await caller.wait(run.run_id), asked, decided))
        records = {record["run_id"]: record for record in await settled(stream, 2)}
    for (run, asked, decided), verb in zip(ended, ("edit", "reject"), strict=True):
        [told] = records[run.run_id]["approvals"]
        assert told == {
            "id": asked.approval_id, "decision": verb, "user_hash": records[run.run_id]["user_hash"],
            "arguments_hash": decided.arguments_digest, "decided_ms": decided.decided_at.ToMilliseconds(),
        }  # fmt: skip
        assert (told["arguments_hash"] == asked.arguments_digest) == (verb == "reject")
    assert SECRET not in repr(records)


async def test_a_process_killed_between_the_end_and_the_record_loses_none_and_doubles_none(
    identities, state_url, tmp_path, behind, client, stream
):
    config = write_config(tmp_path / "config")
    # The append fails while this stands in its way: the run has ended, its record is not there.
    await client.set("audit:{acme}:seen", "in the way")
    first = settings_for(identities, behind, state_url, config, audit_days=1)
    process = command(first, tmp_path / "first.log")
    try:
        async with dialed(first, identities) as caller:
            await testing.wait_ready(f"127.0.0.1:{first.grpc_port}")
            runs = [await caller.wait((await caller.start("say hi", agent=agent)).run_id) for agent in ("quick", "helper", "quick")]
            assert not await stream.read("acme")
    finally:
        process.kill()
    await client.delete("audit:{acme}:seen")
    second = settings_for(identities, behind, state_url, config, audit_days=1)
    async with served(second, identities):
        records = await settled(stream, 3)
        assert sorted(record["run_id"] for record in records) == sorted(run.run_id for run in runs)

        async def settled_all():
            return not await client.zcard("work:{w0}:live")

        await testing.eventually_async(settled_all, "nothing is left to do")
    assert len(await stream.read("acme")) == 3
    # Replayed, as by a process that did not hear of its success.
    assert not await stream.append("acme", f"run/{runs[0].run_id}", {})


async def test_a_thread_that_is_deleted_before_the_record_is_made_loses_none(identities, state_url, tmp_path, behind, stream, monkeypatch):
    settings = settings_for(identities, behind, state_url, write_config(tmp_path / "config"), audit_days=1)

    async def lost(*_):
        raise Overloaded("its process was lost", reason="STORE_UNAVAILABLE")

    for name in ("deliver", "settle"):
        monkeypatch.setattr(Outbox, name, lost)
    async with served(settings, identities) as caller:
        runs = [await caller.wait((await caller.start("say hi", agent=agent)).run_id) for agent in ("quick", "helper")]
        assert not await stream.read("acme")
        for run in runs:
            with caller.calling():
                assert (await caller.threads.DeleteThread(pb.DeleteThreadRequest(thread_id=run.thread_id))).completed
        assert sorted(orjson.loads(entry.record)["run_id"] for entry in await stream.read("acme")) == sorted(run.run_id for run in runs)


async def test_without_the_setting_there_are_no_records(identities, state_url, tmp_path, behind, client):
    async with served(settings_for(identities, behind, state_url, write_config(tmp_path / "config")), identities) as caller:
        await caller.wait((await caller.start("say hi")).run_id)
    assert not [key async for key in client.scan_iter(match="audit:*")]


async def test_each_tool_call_leaves_one_record(identities, state_url, stream):
    port = testing.free_port()
    settings = ToolSettings(
        env="test", grpc_port=port, metrics_port=0, state_url=state_url, audit_days=1, **identities.settings("tool_executor")
    )
    async with testing.running(settings, build_tools), testing.dialer("orchestrator", {"tool_executor": f"127.0.0.1:{port}"}) as dialer:
        stub = tools_pb2_grpc.ToolServiceStub(dialer.channel("tool_executor"))
        for key, expression in (("k1", "6*7"), ("k1", "6*7"), ("k2", f"{SECRET}+1")):
            request = tools_pb2.ExecuteToolRequest(
                name="calculator",
                arguments_json=orjson.dumps({"expression": expression}),
                idempotency_key=key,
                run_id="run_1",
                thread_id="t",
            )
            with testing.calling(identities):
                async for _ in stub.ExecuteTool(request):
                    pass
        records = {record["call"]: record for record in await settled(stream, 2)}
    assert len(await stream.read("acme")) == 2
    assert (records["k1"]["tool"], records["k1"]["outcome"], records["k1"]["run_id"]) == ("calculator", "done", "run_1")
    assert records["k1"]["arguments_hash"] == digest(orjson.dumps({"expression": "6*7"}))
    assert records["k2"]["outcome"] == "failed"
    assert SECRET not in repr(records)


async def test_a_store_that_is_away_is_told_of():
    away = AuditStream(connect(f"redis://127.0.0.1:{testing.free_port()}/0"), timedelta(days=1))
    with pytest.raises(Overloaded):
        await away.append("acme", "r", {})
    with pytest.raises(Overloaded):
        await away.read("acme")
