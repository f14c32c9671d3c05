"""Agents that have other agents work for them: child runs, over a real store and with real processes that are killed."""

import json

import pytest
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from services.common import testing
from services.common.errors import NotFound
from services.orchestrator.accepting import Accepting
from services.orchestrator.adapters.blobs import place_of
from services.orchestrator.adapters.store_keys import thread_keys
from services.orchestrator.children.spawning import Spawning
from services.orchestrator.records import RunRef
from services.orchestrator.testing.harness import data_of, served, settings_for, types, write_config
from services.orchestrator.testing.whole_threads import delete, fork, keys_of, roll_back, said
from services.orchestrator.threads import deleting
from services.orchestrator.turn import supervisor

OK, FAILED, CANCELLED, WAITING = pb.RUN_STATUS_SUCCEEDED, pb.RUN_STATUS_FAILED, pb.RUN_STATUS_CANCELLED, pb.RUN_STATUS_WAITING
AGENTS = """
agents:
  quick:
    current: "1"
    versions:
      "1": {prompt: helper.md, model: m, tools: [calculator, send_mail]}
  lead:
    current: "1"
    versions:
      "1":
        prompt: helper.md
        model: m
        strategy: supervisor
        tools: [calculator, send_mail]
        agents: [{name: quick, mode: both}]
        limits: {max_tool_calls: 10, max_steps: 10}
  head:
    current: "1"
    versions:
      "1": {prompt: helper.md, model: m, strategy: supervisor, agents: [{name: lead}]}
"""


@pytest.fixture
def config(tmp_path):
    folder = write_config(tmp_path / "config")
    (folder / "agents.yaml").write_text(AGENTS)
    return folder


@pytest.fixture
async def client(identities, behind, state_url, config):
    async with served(settings_for(identities, behind, state_url, config), identities) as client:
        yield client


def asking(name, task):
    return f"tool {name} {json.dumps({'task': task})}"


async def child_at_work(client, behind):
    """A run of the lead whose child waits in the middle of its answer."""
    obedient = behind.models.reply

    def reply(request):
        if request.messages[-1].text.startswith("say one"):
            behind.models.gate.close()
        return obedient(request)

    behind.models.reply = reply
    run = await client.start(asking("delegate_to_quick", "say one two three four"), agent="lead")
    await testing.eventually_async(lambda: behind.models.gate.waiting == 1, "the child's model is at work")
    return run


async def test_another_agent_works_in_a_run_of_its_own_and_its_answer_is_the_tools_result(client, behind):
    run = await client.start(asking("delegate_to_quick", "say fresh fish"), agent="lead")
    ended = await client.wait(run.run_id)
    assert ended.status == OK
    assert ended.output_text == 'Results: {"agent":"quick","answer":"fresh fish"}'
    events = await client.log(run.run_id)
    started, finished = (data_of(next(e for e in events if e.type == f"child_run_{how}")) for how in ("started", "finished"))
    assert types(events).index("tool_call_started") < types(events).index("child_run_started") < types(events).index("tool_call_completed")
    assert (started["agent"], finished["status"], finished["run_id"]) == ("quick", "succeeded", started["run_id"])
    child = await client.get(started["run_id"])
    assert (child.parent_run_id, child.agent, child.status) == (run.run_id, "quick", OK)
    assert (child.thread_id, child.run_id) == (started["thread_id"], f"{run.run_id}.1.0")
    # Two calls of the lead's model and one of the child's.
    assert ended.usage.model_calls == 3
    assert ended.usage.cost_microusd == 3 * 7
    assert ended.usage.output_tokens == sum(e.usage.output_tokens for e in [child]) + sum(
        data_of(e)["output_tokens"] for e in events if e.type == "usage"
    )


async def test_a_run_whose_children_work_is_parked_and_watchers_see_both(client, behind):
    run = await child_at_work(client, behind)

    async def parked():
        return (await client.get(run.run_id)).status == WAITING

    await testing.eventually_async(parked, "the parent is parked")
    behind.models.gate.open()
    assert (await client.wait(run.run_id)).status == OK


async def test_looking_after_a_child_is_no_new_attempt_of_the_run(client, behind, monkeypatch):
    monkeypatch.setattr(supervisor, "LOOK_MS", 50)
    looked, ended_of = [], Spawning.ended

    async def ended(self, run_id, thread_id, principal):
        looked.append(run_id)
        return await ended_of(self, run_id, thread_id, principal)

    monkeypatch.setattr(Spawning, "ended", ended)
    run = await child_at_work(client, behind)
    await testing.eventually_async(lambda: len(looked) > 2, "the child was looked after")
    behind.models.gate.open()
    done = await client.wait(run.run_id)
    assert (done.status, done.attempt) == (OK, 1)
    events = await client.log(run.run_id)
    assert {event.attempt for event in events if event.type != "run_queued"} == {1}
    assert types(events).count("run_started") == 1


async def test_children_of_one_step_work_side_by_side_beside_tools(client, behind):
    text = "\n".join([
        "tools", asking("delegate_to_quick", "say a"), 'tool calculator {"expression": "1+2"}', asking("delegate_to_quick", "say b"),
    ])  # fmt: skip
    ended = await client.wait((await client.start(text, agent="lead")).run_id)
    answers = ['{"agent":"quick","answer":"a"}', '{"agent":"quick","answer":"b"}', '{"result": 3}']
    assert sorted(ended.output_text.removeprefix("Results: ").split(" ; ")) == answers
    assert ended.usage.tool_calls == 3


async def test_a_handed_over_conversation_ends_with_the_other_agents_answer(client, behind):
    run = await client.start(asking("hand_over_to_quick", "billing"), agent="lead")
    # The other agent sees the same conversation, whose call it cannot make.
    ended = await client.wait(run.run_id)
    assert ended.status == OK
    assert ended.output_text.startswith("Results: ")
    assert "input.unknown_tool" in ended.output_text
    assert types(await client.log(run.run_id))[-1] == "run_finished"
    assert [data_of(e)["output_text"] for e in await client.log(run.run_id) if e.type == "run_finished"] == [ended.output_text]


async def test_a_childs_failure_is_told_to_the_model(client, behind):
    def reply(request):
        if request.messages[-1].text == "fail":
            raise NotFound("there is no such model", reason="MODEL_NOT_FOUND")
        return obedient(request)

    obedient = behind.models.reply
    behind.models.reply = reply
    ended = await client.wait((await client.start(asking("delegate_to_quick", "fail"), agent="lead")).run_id)
    assert ended.status == OK
    assert "agent.model_not_found" in ended.output_text


@pytest.mark.parametrize("task", ["", "  ", 7])
async def test_a_task_that_is_none_is_told_to_the_model_and_makes_no_run(client, behind, task):
    ended = await client.wait((await client.start(asking("delegate_to_quick", task), agent="lead")).run_id)
    assert "input.invalid" in ended.output_text
    assert "child_run_started" not in types(await client.log(ended.run_id))


async def test_agents_work_for_agents_that_work_for_agents(client, behind):
    task = asking("delegate_to_quick", "say deep")
    ended = await client.wait((await client.start(asking("delegate_to_lead", task), agent="head")).run_id)
    assert "deep" in ended.output_text
    assert ended.usage.model_calls == 5


async def test_whoever_cancels_a_run_cancels_its_children(client, behind):
    run = await child_at_work(client, behind)
    await client.cancel(run.run_id)
    assert (await client.wait(run.run_id)).status == CANCELLED
    assert (await client.wait(f"{run.run_id}.1.0")).status == CANCELLED
    await testing.eventually_async(lambda: behind.models.calls[-1].cancelled, "the child's model call is cancelled")


async def test_a_cancelled_child_is_told_to_the_model(client, behind):
    run = await child_at_work(client, behind)
    await client.cancel(f"{run.run_id}.1.0")
    behind.models.gate.open()
    ended = await client.wait(run.run_id)
    assert ended.status == OK
    assert "agent.cancelled" in ended.output_text


async def test_a_child_gets_its_share_of_what_is_left(client, behind):
    run = await client.start(
        asking("delegate_to_quick", '\n'.join(['tool calculator {"expression": "1+1"}'] * 9)), agent="lead",
        limits=pb.RunLimits(max_tool_calls=5, max_cost_microusd=10_000),
    )  # fmt: skip
    ended = await client.wait(run.run_id)
    child = await client.get(f"{run.run_id}.1.0")
    # One call is the delegation; of the four that are left half is the child's.
    assert child.usage.tool_calls == 2
    assert ended.usage.tool_calls == 3


async def test_a_thread_is_deleted_with_the_threads_on_which_others_worked_for_it_and_a_fork_without(client, valkey, impatient):
    task = asking("delegate_to_quick", "say unheard-of")
    run = await said(client, asking("delegate_to_lead", task), "of-all", agent="head")
    made = (await fork(client, "of-all")).thread
    children = [key for key in await keys_of(valkey, "th_run_") if key.endswith(":meta")]
    assert len(children) == 2
    assert await delete(client, made.thread_id)
    lead = next(data_of(e) for e in await client.log(run.run_id) if e.type == "child_run_started")
    assert (await client.get(lead["run_id"])).status == OK
    assert await delete(client, "of-all")

    async def only_tombstones():
        # What others keep of it, as the ids that a tenant lists, is not looked at here but in the tests of threads.
        return [key for key in await keys_of(valkey, "th_run_") if key.startswith("t:")] == children

    await testing.eventually_async(only_tombstones, "the children's threads are deleted")
    assert not [key for key in await valkey.keys("*") if b"unheard-of" in (await valkey.dump(key) or b"")]
    with pytest.raises(NotFound):
        await client.get(lead["run_id"])


@pytest.mark.parametrize("how", ["changed", "missing"])
async def test_a_thread_is_deleted_also_where_a_part_of_its_log_is_damaged(
    identities, behind, state_url, config, valkey, impatient, tmp_path, how
):
    folder = tmp_path / "segments"
    settings = settings_for(identities, behind, state_url, config, segments_dir=folder, segments_after_s=0.1)
    async with served(settings, identities) as client:
        run = await said(client, asking("delegate_to_quick", "say hi"), "t1", agent="lead")
        place = folder / place_of("acme", "t1")
        await testing.eventually_async(lambda: place.is_dir() and list(place.iterdir()), "the log has moved")
        log = thread_keys(RunRef("acme", "t1", run.run_id))[1]

        async def moved():
            return not await valkey.exists(log)

        await testing.eventually_async(moved, "it is nowhere else any more")
        for path in place.iterdir():
            path.unlink() if how == "missing" else path.write_bytes(b"?" + path.read_bytes()[1:])
        assert await delete(client, "t1")
        with pytest.raises(NotFound):
            await client.get(run.run_id)
        assert not [path for path in folder.rglob("*") if path.parent == place]


async def test_also_of_a_run_that_does_not_end_in_time_the_threads_of_others_are_deleted(client, behind, valkey, impatient, monkeypatch):
    # As where its owner hangs: nobody ends it, and its thread goes all the same.
    monkeypatch.setattr(deleting, "END_WITHIN_S", -1.0)
    cancelled = Accepting.cancel_run

    async def hanging(self, principal, run_id, reason):
        return await cancelled(self, principal, run_id, reason) if "." in run_id else None

    monkeypatch.setattr(Accepting, "cancel_run", hanging)
    run = await child_at_work(client, behind)
    assert await delete(client, run.thread_id)

    async def gone():
        return await valkey.hget(f"t:{{acme/th_{run.run_id}.1.0}}:meta", "user") == b"\0gone"

    await testing.eventually_async(gone, "the child's thread is deleted")
    behind.models.gate.open()


async def test_a_run_that_waits_for_a_slot_again_is_rolled_back_like_any_that_has_begun(identities, behind, state_url, config):
    (config / "policies.yaml").write_text("sets:\n  test:\n    enterprise: {concurrent_runs: 1, queued_runs: 10}\n    free: {}\n")
    async with served(settings_for(identities, behind, state_url, config), identities) as client:
        obedient = behind.models.reply

        def reply(request):
            if request.messages[-1].text.startswith("say one"):
                behind.models.gate.close()
                behind.tools.gate.close()
            return obedient(request)

        behind.models.reply = reply
        task = 'tool calculator {"expression":"1+2"}\n' + asking("delegate_to_quick", "say one two three four")
        lead = await client.start(task, agent="lead", thread_id="t1")
        await testing.eventually_async(lambda: behind.models.gate.waiting == 1, "the child is at work")
        other = await client.start('tool send_mail {"to":"ana"}', thread_id="t2")
        # It stands first in the line for the slot that the child leaves.
        behind.models.gate.open()

        async def woken():
            return (await client.get(lead.run_id)).status == pb.RUN_STATUS_QUEUED

        await testing.eventually_async(woken, "the lead waits for a slot again")
        await roll_back(client, "t1", pb.Checkpoint(run_id=lead.run_id, step=1))
        assert (await client.get(lead.run_id)).status == CANCELLED
        behind.tools.gate.open()
        await client.wait(other.run_id)
        assert (await said(client, "echo context", "t1", agent="quick")).output_text.endswith('tool:{"result": 3}|user:echo context')
