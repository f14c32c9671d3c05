"""Threads as a whole: forked, gone back, deleted, expired, as callers and the model see it."""

import asyncio
import json

import pytest
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from services.common import testing
from services.common.errors import Conflict, Gone, IdempotencyMismatch, InvalidInput, NotFound, Overloaded
from services.common.identity import Principal
from services.orchestrator.adapters.store import Store
from services.orchestrator.records import RunRef
from services.orchestrator.testing.harness import data_of, served, settings_for, types, write_config
from services.orchestrator.testing.whole_threads import (
    MAILS,
    TWO,
    create,
    delete,
    fork,
    keys_of,
    remembered,
    roll_back,
    said,
    shown,
    thread,
)
from services.orchestrator.threads import threads


@pytest.fixture
def settings(identities, behind, state_url, tmp_path, impatient):
    return settings_for(identities, behind, state_url, write_config(tmp_path / "config"))


async def test_a_copy_has_the_log_and_the_conversation_and_goes_its_own_way(identities, behind, settings):
    async with served(settings, identities) as client:
        first = await said(client, "say one", "t1")
        second = await said(client, "say two", "t1")
        made = (await fork(client, "t1", pb.Checkpoint(run_id=first.run_id), idempotency_key="k", metadata={"a": "b"})).thread
        assert (made.parent_thread_id, made.forked_at_seq, dict(made.metadata)) == ("t1", first.terminal_seq, {"a": "b"})
        log = await client.log(thread_id=made.thread_id)
        assert shown(log)[:-1] == shown(await client.log(thread_id="t1"))[: first.terminal_seq]
        assert (log[-1].type, data_of(log[-1])) == ("thread_forked", {"parent_thread_id": "t1", "forked_at_seq": first.terminal_seq})
        other = await said(client, "echo context", made.thread_id)
        assert other.output_text == "user:say one|assistant:one|user:echo context"
        assert (await said(client, "echo context", "t1")).output_text == (
            "user:say one|assistant:one|user:say two|assistant:two|user:echo context"
        )
        assert second.terminal_seq < (await thread(client, "t1")).last_seq
        # The same request again is the same thread, also once its parent has gone on and is gone.
        await delete(client, "t1")
        again = (await fork(client, "t1", pb.Checkpoint(run_id=first.run_id), idempotency_key="k", metadata={"a": "b"})).thread
        assert (again.thread_id, again.last_seq) == (made.thread_id, (await thread(client, made.thread_id)).last_seq)
        with pytest.raises(IdempotencyMismatch):
            await fork(client, "t1", idempotency_key="k")
        with client.calling():
            listed = (await client.threads.ListThreads(pb.ListThreadsRequest())).threads
            runs = (await client.runs.ListRuns(pb.ListRunsRequest(thread_id=made.thread_id))).runs
        assert [entry.thread_id for entry in listed] == [made.thread_id]
        assert [run.run_id for run in runs] == [other.run_id, first.run_id]


async def test_the_same_step_again_repeats_no_tool_call(identities, behind, settings):
    async with served(settings, identities) as client:
        await said(client, "say before", "t1")
        run = await said(client, MAILS, "t1")
        assert behind.tools.sent == ["ana", "bob"]
        asked = [call.request.messages for call in behind.models.calls][-2:]
        made = await fork(client, "t1", pb.Checkpoint(run_id=run.run_id, step=1), continue_run=True, idempotency_key="again")
        done = await client.wait(made.run.run_id)
        assert done.output_text == run.output_text
        # The second mail goes out again, as asked for; the first does not.
        assert behind.tools.sent == ["ana", "bob", "bob"]
        assert [call.request.messages for call in behind.models.calls][-2:] == asked
        log = await client.log(thread_id=made.thread.thread_id)
        prefix = shown(await client.log(thread_id="t1"))[: made.thread.forked_at_seq]
        assert shown(log)[: made.thread.forked_at_seq] == prefix
        assert prefix[-1][2] == "step_completed"
        repeated = await fork(client, "t1", pb.Checkpoint(run_id=run.run_id, step=1), continue_run=True, idempotency_key="again")
        assert repeated.run.run_id == done.run_id
        # The turn that was finished in the fork is one turn of it.
        assert (await said(client, "echo context", made.thread.thread_id)).output_text == (
            f"user:say before|assistant:before|user:{MAILS}|assistant:{done.output_text}|user:echo context"
        )


async def test_a_new_input_goes_on_from_within_a_run(identities, behind, settings):
    async with served(settings, identities) as client:
        run = await said(client, TWO, "t1", agent="quick")
        at = next(e.seq for e in await client.log(run.run_id) if e.type == "step_completed")
        made = (await fork(client, "t1", pb.Checkpoint(seq=at))).thread
        # One that does not answer takes nothing of it away.
        behind.models.gate.close()
        failed = await client.start("say one two three four", thread_id=made.thread_id, agent="quick")
        await client.cancel(failed.run_id)
        await client.wait(failed.run_id)
        behind.models.gate.open()
        assert (await said(client, "echo context", made.thread_id, agent="quick")).output_text == (
            f"user:{TWO}|assistant:|tool:{json.dumps({'result': 3})}|user:echo context"
        )
        # It is part of that turn now, and comes once.
        assert (await said(client, "echo context", made.thread_id, agent="quick")).output_text == "user:echo context"


async def test_what_was_rolled_back_is_never_given_to_a_model(identities, behind, settings):
    async with served(settings, identities) as client:
        first = await said(client, "say one", "t1")
        second = await said(client, "say two", "t1")
        await remembered(behind, second)
        behind.models.gate.close()
        third = await client.start("say three four five", thread_id="t1", agent="helper")
        queued = await client.start("say six", thread_id="t1", agent="helper")
        done = await roll_back(client, "t1", pb.Checkpoint(run_id=first.run_id), idempotency_key="r")
        behind.models.gate.open()
        assert [(await client.get(run.run_id)).status for run in (third, queued)] == [pb.RUN_STATUS_CANCELLED] * 2
        assert {(await client.get(run.run_id)).rolled_back_seq for run in (second, third, queued)} == {done.seq}
        assert (await client.get(first.run_id)).rolled_back_seq == 0
        log = await client.log(thread_id="t1")
        assert (log[-1].seq, log[-1].type, data_of(log[-1])["to_seq"]) == (done.seq, "thread_rolled_back", first.terminal_seq)
        assert (await roll_back(client, "t1", pb.Checkpoint(run_id=first.run_id), idempotency_key="r")).seq == done.seq
        assert (await said(client, "echo context", "t1")).output_text == "user:say one|assistant:one|user:echo context"
        with pytest.raises(Conflict) as refused:
            await roll_back(client, "t1", pb.Checkpoint(run_id=second.run_id))
        assert refused.value.reason == "CHECKPOINT_ROLLED_BACK"
        # A fork sees what was so then: there at the second run's end, gone at the end of all.
        then = (await fork(client, "t1", pb.Checkpoint(run_id=second.run_id))).thread.thread_id
        assert "say two" in (await said(client, "echo context", then)).output_text
        now = (await fork(client, "t1")).thread.thread_id
        assert "say two" not in (await said(client, "echo context", now)).output_text


async def test_a_rollback_into_a_run_goes_on_from_there(identities, behind, settings):
    async with served(settings, identities) as client:
        run = await said(client, TWO, "t1")
        await roll_back(client, "t1", pb.Checkpoint(run_id=run.run_id, step=1))
        assert (await said(client, "echo context", "t1")).output_text == f'user:{TWO}|assistant:|tool:{{"result": 3}}|user:echo context'
        # Cut off once more: what was given to the run that is cut off is given again, before what it said itself.
        await roll_back(client, "t1", pb.Checkpoint(run_id=run.run_id, step=1))
        more = await said(client, 'tool calculator {"expression":"7+8"}', "t1")
        made = (await fork(client, "t1", pb.Checkpoint(run_id=more.run_id, step=1))).thread
        assert (await said(client, "echo context", made.thread_id)).output_text == (
            f'user:{TWO}|assistant:|tool:{{"result": 3}}|user:tool calculator {{"expression":"7+8"}}|assistant:|tool:{{"result": 15}}'
            "|user:echo context"
        )
        again = await fork(client, "t1", pb.Checkpoint(run_id=more.run_id, step=1), continue_run=True)
        assert (await client.wait(again.run.run_id)).output_text == more.output_text
        # It is one turn of what the user said in both.
        assert (await said(client, "echo context", again.thread.thread_id)).output_text == (
            f'user:{TWO}\n\ntool calculator {{"expression":"7+8"}}|assistant:{more.output_text}|user:echo context'
        )
        await roll_back(client, "t1", pb.Checkpoint(beginning=True))
        assert (await said(client, "echo context", "t1")).output_text == "user:echo context"


async def test_what_lies_behind_a_rollback_is_no_checkpoint_any_more(identities, behind, settings):
    async with served(settings, identities) as client:
        first = await said(client, "say one", "t1")
        run = await said(client, TWO, "t1")
        within = pb.Checkpoint(run_id=run.run_id, step=1)
        rolled = await roll_back(client, "t1", within)
        await roll_back(client, "t1", pb.Checkpoint(run_id=first.run_id))
        for gone in (within, pb.Checkpoint(seq=rolled.seq)):
            with pytest.raises(Conflict) as refused:
                await roll_back(client, "t1", gone)
            assert refused.value.reason == "CHECKPOINT_ROLLED_BACK"
        copy = (await fork(client, "t1")).thread.thread_id
        with pytest.raises(Conflict):
            await roll_back(client, copy, pb.Checkpoint(seq=rolled.seq))
        assert (await said(client, "echo context", "t1")).output_text == "user:say one|assistant:one|user:echo context"


async def test_a_thread_takes_no_runs_until_its_rollback_is_done(identities, behind, settings):
    async with served(settings, identities) as client:
        first = await said(client, "say one", "t1")
        await remembered(behind, await said(client, "say two", "t1"))
        behind.sessions.append_failure = Overloaded("away", reason="STORE_UNAVAILABLE")
        with pytest.raises(Overloaded):
            await roll_back(client, "t1", pb.Checkpoint(run_id=first.run_id))
        assert (await thread(client, "t1")).thread_id == "t1"
        with pytest.raises(Conflict) as refused:
            await client.start("echo context", thread_id="t1", agent="helper")
        assert refused.value.reason == "THREAD_CHANGING"
        behind.sessions.append_failure = None

        async def done():
            return (await client.log(thread_id="t1"))[-1].type == "thread_rolled_back"

        await testing.eventually_async(done, "somebody goes on with the rollback")
        assert (await said(client, "echo context", "t1")).output_text == "user:say one|assistant:one|user:echo context"


async def test_a_deleted_thread_leaves_nothing_and_others_alone(identities, behind, settings, valkey):
    async with served(settings, identities) as client:
        kept = await said(client, "say kept", "kept")
        gone = [await said(client, f"say {word}", "gone") for word in ("one", "two")]
        await remembered(behind, gone[-1])
        before = {key: await valkey.dump(key) for key in await keys_of(valkey, "kept")}
        behind.models.gate.close()
        at_work = await client.start("say three four five", thread_id="gone", agent="helper")
        watched: list[pb.Event] = []

        async def watch():
            with client.calling(timeout_s=testing.PATIENCE_S):
                async for item in client.runs.StreamEvents(pb.StreamEventsRequest(thread_id="gone")):
                    watched.extend(item.batch.events)

        watching = asyncio.create_task(watch())
        await testing.eventually_async(lambda: bool(watched), "the watcher follows")
        assert await delete(client, "gone")
        await watching
        behind.models.gate.open()
        assert watched[-1].type == "thread_deleted"
        assert behind.models.calls[-1].cancelled
        assert behind.sessions.deleted == ["gone"]
        assert await keys_of(valkey, "gone") == ["t:{acme/gone}:meta"]
        assert await valkey.ttl("t:{acme/gone}:meta") > 0
        for run in (*gone, at_work):
            assert not [key for key in await valkey.keys("*") if run.run_id in key.decode()]
            with pytest.raises(NotFound):
                await client.get(run.run_id)
        lists = [key for key in await valkey.keys("tn:*") if await valkey.type(key) == b"zset"]
        members = [member for key in lists for member in await valkey.zrange(key, 0, -1)]
        assert not [member for member in members if b"gone" in member or at_work.run_id.encode() in member]
        assert await delete(client, "gone")
        for refused in (thread(client, "gone"), client.start("say x", thread_id="gone"), fork(client, "gone"), roll_back(client, "gone")):
            with pytest.raises(NotFound):
                await refused
        assert before == {key: await valkey.dump(key) for key in await keys_of(valkey, "kept")}
        assert (await client.get(kept.run_id)) == kept


async def test_a_thread_lives_as_long_as_it_was_told_to_after_its_last_run(identities, behind, settings):
    async with served(settings, identities) as client:
        made, stays = await create(client, "brief", ttl_s=1), await create(client, "stays")
        assert made.expires_at.ToMilliseconds() - made.created_at.ToMilliseconds() == 1000
        assert not stays.HasField("expires_at")
        await said(client, "say one", "brief", agent="quick")
        later = await thread(client, "brief")
        assert later.expires_at.ToMilliseconds() > made.expires_at.ToMilliseconds()

        async def expired():
            try:
                await thread(client, "brief")
            except NotFound:
                return True
            return False

        await testing.eventually_async(expired, "the thread is deleted when its time has come")
        assert (await thread(client, "stays")).thread_id == "stays"


BAD = {
    "both": (pb.Checkpoint(seq=1, run_id="r"), InvalidInput, "INVALID_INPUT"),
    "negative": (pb.Checkpoint(seq=-1), InvalidInput, "INVALID_INPUT"),
    "step alone": (pb.Checkpoint(step=1), InvalidInput, "INVALID_INPUT"),
    "future": (pb.Checkpoint(seq=10_000), InvalidInput, "SEQ_FROM_THE_FUTURE"),
    "inside": (pb.Checkpoint(seq=2), InvalidInput, "SEQ_INSIDE_STEP"),
    "unknown run": (pb.Checkpoint(run_id="nobody"), NotFound, "RUN_NOT_FOUND"),
}


async def test_bad_checkpoints_and_foreign_threads_are_refused_and_change_nothing(identities, behind, settings, valkey):
    async with served(settings, identities) as client:
        run = await said(client, "say one", "t1")
        cases = {**BAD, "no such step": (pb.Checkpoint(run_id=run.run_id, step=7), NotFound, "STEP_NOT_FOUND")}
        before = await thread(client, "t1")
        for checkpoint, error, reason in cases.values():
            for call in (fork(client, "t1", checkpoint), roll_back(client, "t1", checkpoint)):
                with pytest.raises(error) as refused:
                    await call
                assert reason in (refused.value.reason, "INVALID_INPUT")
        with pytest.raises(InvalidInput) as refused:
            await fork(client, "t1", continue_run=True)
        assert refused.value.reason == "NOTHING_TO_CONTINUE"
        with pytest.raises(Conflict) as taken:
            await fork(client, "t1", new_thread_id="t1")
        assert taken.value.reason == "THREAD_EXISTS"
        client.principal = Principal("acme", "mallory", scopes=("threads:read", "threads:write", "runs:write", "runs:read"))
        for call in (fork(client, "t1"), roll_back(client, "t1"), delete(client, "t1"), fork(client, "nobody"), delete(client, "nobody")):
            with pytest.raises(NotFound):
                await call
        client.principal = None
        assert await thread(client, "t1") == before
        assert len(types(await client.log(thread_id="t1"))) == before.last_seq


async def test_a_fork_of_a_thread_whose_beginning_is_gone_says_so(identities, behind, settings, valkey):
    async with served(settings, identities) as client:
        first = await said(client, "say one", "t1")
        second = await said(client, "say two", "t1")
        store = Store(valkey, "test")
        ref = RunRef("acme", "t1", first.run_id)
        await remembered(behind, first)
        await testing.eventually_async(lambda: store.expire(ref, 0), "the first run is deleted")
        for at in (None, pb.Checkpoint(run_id=second.run_id)):
            with pytest.raises(Gone) as refused:
                await fork(client, "t1", at, new_thread_id="f")
            assert (refused.value.reason, refused.value.metadata["oldest_seq"]) == ("RESUME_GAP", str(second.first_seq))
        with pytest.raises(NotFound):
            await thread(client, "f")
        # Going back needs nothing of what is gone.
        await roll_back(client, "t1", pb.Checkpoint(run_id=second.run_id))
        assert "say two" in (await said(client, "echo context", "t1")).output_text


async def test_a_thread_of_a_mortal_tier_gets_its_time_with_its_first_run(identities, behind, settings, monkeypatch):
    monkeypatch.setattr(threads, "NOTED_S", 0.05)
    policies = settings.config_dir / "policies.yaml"
    policies.write_text("sets:\n  test:\n    enterprise: {thread_ttl_days: 2}\n    free: {}\n")
    async with served(settings, identities) as client:
        run = await said(client, "say one", "made-by-a-run", agent="quick")

        async def mortal():
            return (await thread(client, run.thread_id)).expires_at.ToMilliseconds()

        expires_ms = await testing.eventually_async(mortal, "the thread gets a time to live")
        assert expires_ms >= run.created_at.ToMilliseconds() + 2 * 86_400_000
        made = (await fork(client, run.thread_id)).thread
        assert made.expires_at.ToMilliseconds() - made.created_at.ToMilliseconds() >= 2 * 86_400_000


async def test_what_memory_was_told_to_forget_does_not_come_back(identities, behind, settings):
    async with served(settings, identities) as client:
        await remembered(behind, await said(client, "say one", "t1"))
        fresh = await client.wait((await client.start("say two", thread_id="t1", agent="helper", reset_memory=True)).run_id)
        await remembered(behind, fresh)
        last = await said(client, "say three", "t1")
        made = (await fork(client, "t1")).thread.thread_id
        await roll_back(client, "t1", pb.Checkpoint(run_id=fresh.run_id))
        assert (await said(client, "echo context", "t1")).output_text == "user:say two|assistant:two|user:echo context"
        assert (await said(client, "echo context", made)).output_text == (
            f"user:say two|assistant:two|user:say three|assistant:{last.output_text}|user:echo context"
        )
