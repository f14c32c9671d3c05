"""Agents that ask agents, while their orchestrators are lost: every run ends with its answer, every mail is sent once.

At random with SIGKILL, and, as rows of the kill matrix in test_kill_matrix.py, at each point between a run and one of its children: with
SIGKILL, SIGSTOP longer than the lease, and a store that is cut off; in the end the oracle looks at everything.
"""

import asyncio
import json
import random

import pytest
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from services.common import testing
from services.common.errors import Overloaded
from services.orchestrator.testing.counting import ONCE, calls, script
from services.orchestrator.testing.fakes import fakes
from services.orchestrator.testing.harness import command, data_of, dialed, follow_through, settings_for, types, write_config
from services.orchestrator.testing.oracle import Seen
from tests.system.kill_site import TALK, two_replicas

pytestmark = pytest.mark.system
AGENTS = """
agents:
  worker:
    current: "1"
    versions:
      "1": {prompt: helper.md, model: m, tools: [calculator, send_mail]}
  lead:
    current: "1"
    versions:
      "1": {prompt: helper.md, model: m, strategy: supervisor, tools: [calculator, send_mail], agents: [{name: worker}]}
"""
RUNS, KILLS = 12, 8
ANSWER = '{"agent":"worker","answer":"Results: {\\"sent\\":true}"}'


async def test_no_child_is_lost_or_made_twice_while_orchestrators_are_killed(identities, state_url, tmp_path):
    rng = random.Random(7)
    config = write_config(tmp_path / "config", AGENTS)
    async with fakes(identities) as behind:
        each = [settings_for(identities, behind, state_url, config, crash_budget=50) for _ in range(2)]
        processes = [command(settings, tmp_path / f"{i}.log") for i, settings in enumerate(each)]
        try:
            for settings in each:
                await testing.wait_ready(f"127.0.0.1:{settings.grpc_port}")
            async with dialed(each[0], identities) as one, dialed(each[1], identities) as other:
                runs = [await one.start(_task(f"m{i}"), agent="lead") for i in range(RUNS)]
                followed = [asyncio.create_task(follow_through([one, other], Seen(run.run_id))) for run in runs]
                for _ in range(KILLS):
                    await asyncio.sleep(rng.uniform(0.05, 0.6))
                    victim = rng.randrange(2)
                    processes[victim].kill()
                    processes[victim] = command(each[victim], tmp_path / f"{victim}.log")
                    await testing.wait_ready(f"127.0.0.1:{each[victim].grpc_port}")
                async with asyncio.timeout(testing.PATIENCE_S):
                    seen = await asyncio.gather(*followed)
                await testing.eventually_async(lambda: _reached(other, runs[0].run_id), "the channel to the last one killed is back")
                for run, events in zip(runs, seen, strict=True):
                    ended = await other.wait(run.run_id)
                    assert (ended.status, ended.output_text) == (pb.RUN_STATUS_SUCCEEDED, f"Results: {ANSWER} ; {ANSWER}")
                    assert types(events.events).count("child_run_started") == 2
                    assert types(events.events).count("child_run_finished") == 2
                    log = await other.log(run.run_id)
                    assert [data_of(e)["run_id"] for e in log if e.type == "child_run_started"] == [
                        f"{run.run_id}.1.0", f"{run.run_id}.1.1",
                    ]  # fmt: skip
                assert sorted(behind.tools.sent) == sorted(f"m{i}/{n}" for i in range(RUNS) for n in range(2))
        finally:
            for process in processes:
                process.stop()


async def _reached(client, run_id):
    try:
        return await client.get(run_id)
    except Overloaded:
        return None


def _task(name):
    """Two delegations in one step; each sends a mail."""
    calls = [f"tool send_mail {json.dumps({'to': f'{name}/{n}'})}" for n in range(2)]
    return "\n".join(["tools", *(f"tool delegate_to_worker {json.dumps({'task': call})}" for call in calls)])


# Each row brings a run and its child to the kill point; goes on when the fault has struck; and when the replica has come back. A kill
# point that lasts for a moment only is reached in two steps, of which the first takes time.


def delegating(*steps):
    """A step that asks another agent to do these."""
    return {"say": "", "calls": [["delegate_to_worker", {"task": script(*steps)}]]}


async def whole(site, run_id, mails=0):
    """The run ends with the answer of one child, which was made once, ended once, and did everything once."""
    child = f"{run_id}.1.0"
    await site.ended(run_id)
    log = await site.second.client.log(run_id)
    made, told = ([data_of(event)["run_id"] for event in log if event.type == kind] for kind in ("child_run_started", "child_run_finished"))
    assert (made, told) == ([child], [child])
    assert len(site.behind.tools.effects[child]) == mails
    # Its log is judged as any other.
    run = await site.second.client.get(child)
    site.threads[child] = run.thread_id
    site.accepted.add(child)


async def child_mid_stream(site):
    run_id = "child-mid-stream"
    child = f"{run_id}.1.0"
    site.models.of(child).close()
    await site.start(run_id, delegating(TALK), "done", agent="lead")
    await testing.eventually_async(lambda: site.models.of(child).waiting, "the child is at work")
    await parked(site, run_id)
    yield
    await testing.eventually_async(lambda: len(site.calls_of(child)) == 2, "another owner of the child")
    yield
    site.models.of(child).open()
    await whole(site, run_id)


async def child_mid_tool(site):
    run_id = "child-mid-tool"
    child = f"{run_id}.1.0"
    site.tools.of(child).close()
    await site.start(run_id, delegating(calls((ONCE, "a")), "sent"), "done", agent="lead")
    await testing.eventually_async(lambda: site.tools.of(child).waiting, "the tool of the child is at work")
    await parked(site, run_id)
    yield
    yield
    site.tools.of(child).open()
    await whole(site, run_id, mails=1)


async def child_not_written(site):
    """The parent is lost when it has written that it asks, and its child is still on its way."""
    async for _ in between(site, "child-not-written", "{}.1.0", b"thread_accept_of_run_v1"):
        yield


async def child_written_not_told(site):
    """The child is there, and its parent is lost before it hears of that."""
    async for _ in between(site, "child-written-not-told", "{}.1.0", b"thread_accept_of_run_v1", answer=True):
        yield


async def parked_not_told(site):
    """The parent is parked, and whoever parked it is lost before it hears of that."""
    async for _ in between(site, "parked-not-told", ":run:{}\r", b"run_write_v1", b"\r\np\r\n", answer=True):
        yield


async def between(site, run_id, named, *parts, answer=False):
    held = site.first.proxy.hold(*parts, named.format(run_id).encode(), answer=answer)
    await site.waiting(run_id, delegating(calls((ONCE, "a")), "sent"), "done", agent="lead")
    yield
    site.models.of(run_id).open()
    await held.reached()
    yield
    await site.ended(run_id)
    yield
    held.release()
    await whole(site, run_id, mails=1)


async def ended_not_told(site):
    """The child has ended, and whoever ended it is lost before it hears of that."""
    async for _ in ending(site, "child-ended-not-told", b"run_write_v1", ":run:{}.1.0\r", b"run_finished", answer=True):
        yield


async def end_not_sent(site):
    """The child has ended, and its owner is lost when the parent is about to be told."""
    async for _ in ending(site, "end-not-sent", b"run_post_v1", "child/{}.1.0", answer=False):
        yield


async def end_sent_not_woken(site):
    """The parent's inbox has the end of the child, and whoever sent it is lost before the parent is woken."""
    async for _ in ending(site, "end-sent-not-woken", b"run_post_v1", "child/{}.1.0", answer=True):
        yield


async def ending(site, run_id, function, named, *parts, answer):
    child = f"{run_id}.1.0"
    held = site.first.proxy.hold(function, named.format(run_id).encode(), *parts, answer=answer)
    site.models.of(child).close()
    await site.start(run_id, delegating(TALK), "done", agent="lead")
    await testing.eventually_async(lambda: site.models.of(child).waiting, "the child is at work")
    await parked(site, run_id)
    yield
    site.models.of(child).open()
    await held.reached()
    yield
    await site.ended(run_id)
    yield
    held.release()
    await whole(site, run_id)


async def parked(site, run_id):
    async def waits():
        return (await site.second.client.get(run_id)).status == pb.RUN_STATUS_WAITING

    await testing.eventually_async(waits, f"{run_id} waits for its child")


LASTING = (child_mid_stream, child_mid_tool)
BRIEF = (child_not_written, child_written_not_told, parked_not_told, ended_not_told, end_not_sent, end_sent_not_woken)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("fault", ["kill", "stop", "cut"])
async def test_every_kill_point_between_a_run_and_its_child(fault, identities, behind, state_url, tmp_path):
    async with two_replicas(identities, behind, state_url, tmp_path, AGENTS) as site:
        with site.first_alone():
            rows = await site.at_their_points(LASTING, BRIEF)
        await site.befall(fault, rows)
