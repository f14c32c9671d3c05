"""The kill matrix: every point at which an owner may be lost, times SIGKILL, SIGSTOP longer than the lease, and a store that is cut off.

Two replicas, each behind a proxy of its own before the store. `first` is brought to all kill points at once, one run each, by what it
calls: the model holds its stream, the tool its answer, the proxy one command or one answer of the store. Then one fault strikes it, and
`second` takes over. Stopped and cut replicas come back while their runs are at work elsewhere. Each row looks at its own outcome; in
the end the oracle looks at everything.

| kill point | row |
|---|---|
| after accept, before enqueue | `accepted_not_answered`, `accepted_not_enqueued` |
| after dequeue, before claim | `taken_not_claimed`, `claimed_not_told` |
| mid model stream | `mid_model_stream` |
| after model call, before its checkpoint | `before_the_checkpoint` |
| after checkpoint, before tool start | `after_the_checkpoint` |
| mid tool, read-only or idempotent | `mid_repeatable_tool` |
| mid tool, not idempotent, outcome unknown | `mid_unrepeatable_tool` where the model is told; test_kill_matrix_approvals.py |
| waiting for approval | test_kill_matrix_approvals.py |
| during cancel | `during_a_cancel` |
| between terminal write and acknowledgement | `ended_not_told` |
| zombie returns | `zombie_returns` |
| SIGTERM / rolling deploy | `test_lost_while_draining` |
"""

import asyncio
import signal
import time
from contextlib import AsyncExitStack, aclosing

import pytest
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from services.common import testing
from services.common.valkey import connect
from services.orchestrator.testing.counting import ONCE, REPEATABLE, calls, script
from services.orchestrator.testing.fakes import UNKNOWN
from services.orchestrator.testing.harness import LOST, data_of, dialed, shown_text, types, write_config
from services.orchestrator.testing.replicas import Replica
from tests.system.kill_site import TALK, Site, two_replicas

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]
CANCELLED = pb.RUN_STATUS_CANCELLED


# Each row brings its run to the kill point; goes on when the fault has struck and waits for the takeover; goes on when the replica has
# come back and looks at the outcome. A kill point that lasts for a moment only is reached in two steps, of which the first takes time.


async def mid_model_stream(site):
    run_id = "mid-model-stream"
    await site.streaming(run_id)
    yield
    await testing.eventually_async(lambda: len(site.calls_of(run_id)) == 2, "the call is made again")
    yield
    former, owner = site.calls_of(run_id)
    await testing.eventually_async(lambda: former.cancelled, "the former owner ends its call")
    assert not owner.cancelled
    site.models.of(run_id).open()
    run = await site.ended(run_id)
    assert (run.output_text, run.attempt) == (TALK, 2)
    events = site.shown(run_id)
    told = [data_of(event) for event in events if event.type == "usage"]
    assert [data.get("lost", False) for data in told] == [False, True]
    assert run.usage.model_calls == 2
    assert run.usage.input_tokens == sum(data["input_tokens"] for data in told) > told[0]["input_tokens"]
    superseded = next(event for event in events if event.type == "attempt_superseded")
    assert data_of(superseded)["from_seq"] == next(event.seq for event in events if event.type == "message_delta")


async def mid_repeatable_tool(site):
    run_id = "mid-repeatable-tool"
    site.tools.of(run_id).close()
    await site.start(run_id, calls((REPEATABLE, "a")), "done")
    await testing.eventually_async(lambda: site.tools.of(run_id).waiting, "the tool is at work")
    key = f"{run_id}/1/0"
    site.behind.tools.forced[key] = UNKNOWN
    yield
    await testing.eventually_async(lambda: len(site.behind.tools.effects[run_id]) == 2, "it is issued again")
    yield
    site.tools.of(run_id).open()
    await site.ended(run_id)
    assert [effect.key for effect in site.behind.tools.effects[run_id]] == [key, key]


async def mid_unrepeatable_tool(site):
    run_id = "mid-unrepeatable-tool"
    site.tools.of(run_id).close()
    await site.start(run_id, calls((ONCE, "a")), "done")
    await testing.eventually_async(lambda: site.tools.of(run_id).waiting, "the tool is at work")
    site.behind.tools.forced[f"{run_id}/1/0"] = UNKNOWN
    yield
    await site.ended(run_id)
    yield
    site.tools.of(run_id).open()
    assert len(site.behind.tools.effects[run_id]) == 1
    failed = next(data_of(event) for event in await site.second.client.log(run_id) if event.type == "tool_call_failed")
    assert failed["error"]["code"] == "tool_outcome_unknown"


async def before_the_checkpoint(site):
    run_id = "before-the-checkpoint"
    held = site.first.proxy.hold(b"run_write_v1", run_id.encode(), b"tool_call_started")
    await site.waiting(run_id, calls((ONCE, "a")), "done")
    yield
    site.models.of(run_id).open()
    await held.reached()
    assert not site.behind.tools.effects[run_id]
    yield
    run = await site.ended(run_id)
    yield
    held.release()
    # The step's call twice, as documented, and the one after it.
    assert run.usage.model_calls == 3
    assert len(site.calls_of(run_id)) == 3
    assert len(site.behind.tools.effects[run_id]) == 1


async def after_the_checkpoint(site):
    run_id = "after-the-checkpoint"
    held = site.first.proxy.hold(b"run_write_v1", run_id.encode(), b"tool_call_started", answer=True)
    await site.waiting(run_id, calls((ONCE, "a")), "done")
    yield
    site.models.of(run_id).open()
    await held.reached()
    yield
    await site.ended(run_id)
    yield
    held.release()
    assert len(site.calls_of(run_id)) == 2
    assert len(site.behind.tools.effects[run_id]) == 1


async def zombie_returns(site):
    """With a write that is still on its way: it arrives when the run has another owner, who is at work."""
    run_id = "zombie-returns"
    await site.waiting(run_id, calls((REPEATABLE, "a")), TALK)
    yield
    held = site.first.proxy.hold(b"run_write_v1", run_id.encode(), b"message_delta")
    site.models.of(run_id).open()
    await held.reached()
    site.models.of(run_id).close()
    yield
    await testing.eventually_async(lambda: shown_text(site.shown(run_id)) == "one two", "another owner shows text")
    yield
    held.release()
    site.models.of(run_id).open()
    assert (await site.ended(run_id)).output_text == TALK


async def during_a_cancel(site):
    run_id = "during-a-cancel"
    held = site.first.proxy.hold(b"run_write_v1", run_id.encode(), b"run_cancelled")
    await site.streaming(run_id)
    yield
    await site.second.client.cancel(run_id)
    site.cancels[run_id] = int(time.time() * 1000)
    await held.reached()
    yield
    run = await site.ended(run_id, CANCELLED)
    assert run.output_text == "one two"
    yield
    held.release()
    assert len(site.calls_of(run_id)) == run.usage.model_calls == 1


async def ended_not_told(site):
    run_id = "ended-not-told"
    held = site.first.proxy.hold(b"run_write_v1", run_id.encode(), b"run_finished", answer=True)
    await site.waiting(run_id, calls((REPEATABLE, "a")), "done", agent="helper")
    yield
    site.models.of(run_id).open()
    await held.reached()
    yield
    run = await site.ended(run_id)
    turns = site.behind.sessions.turns["acme", run.thread_id]
    await testing.eventually_async(lambda: run_id in turns, "what the run leaves is sent by the other")
    yield
    held.release()
    assert run.attempt == 1
    assert types(await site.second.client.log(run_id)).count("run_finished") == 1


async def taken_not_claimed(site):
    run_id = "taken-not-claimed"
    before = f"{run_id}-before"
    await site.streaming(before)
    await site.start(run_id, "hi", thread_id=site.threads[before])
    yield
    # Not earlier: it was offered already, to whoever would find that it must wait for its turn.
    held = site.first.proxy.hold(b"run_claim_v1", f":run:{run_id}\r".encode())
    site.models.of(before).open()
    await held.reached()
    yield
    assert (await site.ended(run_id)).attempt == 1
    yield
    held.release()


async def claimed_not_told(site):
    run_id = "claimed-not-told"
    before = f"{run_id}-before"
    await site.streaming(before)
    await site.start(run_id, "hi", thread_id=site.threads[before])
    yield
    held = site.first.proxy.hold(b"run_claim_v1", f":run:{run_id}\r".encode(), answer=True)
    site.models.of(before).open()
    await held.reached()
    yield
    # On a slow machine the lease of that claim runs out before the fault, and the first claims it again, of which it is not told either.
    run = await site.ended(run_id)
    assert run.attempt >= 2
    yield
    held.release()
    assert len(site.calls_of(run_id)) == run.usage.model_calls == 1


async def accepted_not_answered(site):
    yield
    async for _ in accepting(site, "accepted-not-answered", b"thread_accept_v1", answer=True):
        yield


async def accepted_not_enqueued(site):
    yield
    # The first has no room for it by now: whoever has room owns what it accepts, and nothing is enqueued.
    async for _ in accepting(site, "accepted-not-enqueued", b"work_wake_v1", answer=False):
        yield


async def accepting(site, run_id, command, *, answer):
    """The caller hears nothing, or an error, and asks again with its key at the other replica."""
    held = site.first.proxy.hold(command, run_id.encode(), answer=answer)
    asked = asyncio.create_task(site.create(run_id, script("hi"), site.first.client))
    await held.reached()
    yield
    again = await site.create(run_id, script("hi"), site.second.client)
    assert again.run_id == run_id
    site.watch(run_id, site.second.client)
    run = await site.ended(run_id)
    yield
    held.release()
    told = (await asyncio.gather(asked, return_exceptions=True))[0]
    assert told.run_id == run_id if isinstance(told, pb.Run) else told.code.name in LOST
    # One call for each time that somebody knew to own it: the claim whose answer is held, the first one, makes none.
    assert 1 <= len(site.calls_of(run_id)) <= run.attempt - (1 if answer else 0)


LASTING = (mid_model_stream, mid_repeatable_tool, mid_unrepeatable_tool)
BRIEF = (
    before_the_checkpoint, zombie_returns, after_the_checkpoint, during_a_cancel, ended_not_told, accepted_not_answered,
    accepted_not_enqueued, taken_not_claimed, claimed_not_told,
)  # fmt: skip


@pytest.mark.parametrize("fault", ["kill", "stop", "cut"])
async def test_every_kill_point_of_an_owner(fault, identities, behind, state_url, tmp_path):
    # What the first owns and is about to own fills it, up to the one that is to find no room.
    filled = {"max_active_runs": len(LASTING) + len(BRIEF) - 1}
    async with two_replicas(identities, behind, state_url, tmp_path, first=filled) as site:
        with site.first_alone():
            rows = await site.at_their_points(LASTING, BRIEF)
        await site.befall(fault, rows)
        # It is fit for further work.
        async with dialed(site.first.settings, identities) as client:
            again = await client.start(script("hi"))
            assert (await client.wait(again.run_id)).output_text == "hi"


async def test_lost_while_draining(identities, behind, state_url, tmp_path):
    """SIGTERM hands a run over by itself; a fault that strikes meanwhile costs a lease and nothing else."""
    faults = ("kill", "stop", "cut", "none")
    config = write_config(tmp_path / "config")
    async with AsyncExitStack() as stack:
        site = Site(behind)
        replicas = [
            Replica(name, identities, behind, config, tmp_path, state_url, watch_heartbeat_s=0.5, drain_grace_s=3.0)
            for name in (*faults, "second")
        ]
        await asyncio.gather(*(stack.enter_async_context(replica.there()) for replica in replicas))
        *leaving, site.second = replicas
        for replica in leaving:
            await site.streaming(f"drained-{replica.name}", client=replica.client)
        for replica in leaving:
            replica.process.signal(signal.SIGTERM)
        for replica in leaving:
            await testing.eventually_async(lambda r=replica: "draining" in r.process.output(), f"{replica.name} drains")
            if replica.name != "none":
                replica.strike(replica.name)
        for replica in leaving:
            run_id = f"drained-{replica.name}"
            await testing.eventually_async(lambda r=run_id: len(site.calls_of(r)) == 2, f"another owner of {run_id}")
        for replica in leaving:
            replica.mend()
            if replica.name != "kill":
                assert await asyncio.to_thread(replica.process.wait) == 0
        for replica in leaving:
            run_id = f"drained-{replica.name}"
            site.models.of(run_id).open()
            assert (await site.ended(run_id)).attempt == 2
        # Handed over and not lost: the budget of crashes is not touched.
        crashes = await run_field(state_url, site, "drained-none", "crashes")
        assert crashes == b"0"
        await site.judge()


async def run_field(state_url, site, run_id, name):
    async with aclosing(connect(state_url)) as client:
        return await client.hget(f"t:{{acme/{site.threads[run_id]}}}:run:{run_id}", name)
