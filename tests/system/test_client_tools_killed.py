"""Owners that are lost around calls which the client of a run makes: killed, stopped for longer than the lease, or cut off from the store.

Each row brings a run of `first` to its point; the fault strikes, `second` takes over, and the client, who knows nothing of all that,
answers the calls and gets the whole of it.
"""

import pytest
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from services.common import testing
from services.orchestrator.testing.counting import ONCE, REPEATABLE, calls
from services.orchestrator.testing.harness import data_of, types
from tests.system.kill_site import two_replicas

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]
TOOLS = [pb.ClientTool(name="pick"), pb.ClientTool(name="show")]
MIXED = calls((REPEATABLE, "a"), ("pick", "b"), (ONCE, "c"), ("show", "d"))


async def asked(site, run_id):
    """The end of a run that asks its client, as any reader has it."""
    run = await site.ended(run_id)
    assert run.finish_reason == "tool_calls"
    log = await site.second.client.log(run_id)
    assert types(log)[-2:] == ["interrupt_raised", "run_finished"]
    assert types(log).count("interrupt_raised") == 1
    assert data_of(log[-2])["calls"] == data_of(log[-1])["client_tool_calls"]
    return run


async def answered(site, run, *texts, client=None):
    """Asks for the run that brings the results; its id."""
    results = [
        pb.InputMessage(role="tool", text=text, tool_call_id=call.tool_call_id)
        for call, text in zip(run.client_tool_calls, texts, strict=True)
    ]  # fmt: skip
    client, run_id = client or site.second.client, f"{run.run_id}-answer"
    with client.calling():
        await client.runs.CreateRun(
            pb.CreateRunRequest(agent="quick", run_id=run_id, thread_id=run.thread_id, input=results, idempotency_key=run_id)
        )
    site.accepted.add(run_id)
    site.threads[run_id] = run.thread_id
    return run_id


def given(site, run_id):
    return {m.tool_call_id: m.text for m in site.calls_of(run_id)[-1].request.messages if m.role == "tool"}


async def whole(site, run_id, own):
    """Has the calls answered, and looks at what the model of the next run was told."""
    run = await asked(site, run_id)
    assert [call.name for call in run.client_tool_calls] == ["pick", "show"]
    answer = await answered(site, run, "one", "two")
    assert (await site.ended(answer)).output_text == "done"
    told = given(site, answer)
    assert [told[call.tool_call_id] for call in run.client_tool_calls] == ["one", "two"]
    assert len(told) == 2 + own
    effects = site.behind.tools.effects[run_id]
    assert [effect.key for effect in effects if effect.tool == ONCE] == [f"{run_id}/1/1"] * bool(own)
    assert not site.behind.tools.effects[answer]


async def mid_own_tool(site):
    run_id = "mid-own-tool"
    site.tools.of(run_id).close()
    await site.start(run_id, MIXED, "done", client_tools=TOOLS)
    await testing.eventually_async(lambda: site.tools.of(run_id).waiting, "the tool is at work")
    yield
    site.tools.of(run_id).open()
    await asked(site, run_id)
    yield
    await whole(site, run_id, 2)


async def between_own_tools_and_the_end(site):
    """All of its own is done and written; that it ends is not."""
    run_id = "before-the-end"
    held = site.first.proxy.hold(b"run_write_v1", run_id.encode(), b"interrupt_raised")
    await site.waiting(run_id, MIXED, "done", client_tools=TOOLS)
    yield
    site.models.of(run_id).open()
    await held.reached()
    yield
    await asked(site, run_id)
    assert len(site.calls_of(run_id)) == 1
    yield
    held.release()
    await whole(site, run_id, 2)


async def without_own_tools_before_the_end(site):
    """The model's answer is written nowhere yet: it is asked again, as after any loss, and the client is asked once."""
    run_id = "only-the-clients"
    held = site.first.proxy.hold(b"run_write_v1", run_id.encode(), b"interrupt_raised")
    await site.waiting(run_id, calls(("pick", "b"), ("show", "d")), "done", client_tools=TOOLS)
    yield
    site.models.of(run_id).open()
    await held.reached()
    yield
    await asked(site, run_id)
    assert len(site.calls_of(run_id)) == 2
    yield
    held.release()
    await whole(site, run_id, 0)


async def ended_not_told(site):
    run_id = "ended-and-not-told"
    held = site.first.proxy.hold(b"run_write_v1", run_id.encode(), b"interrupt_raised", answer=True)
    await site.waiting(run_id, MIXED, "done", client_tools=TOOLS)
    yield
    site.models.of(run_id).open()
    await held.reached()
    yield
    run = await asked(site, run_id)
    assert run.attempt == 1
    yield
    held.release()
    await whole(site, run_id, 2)


async def the_run_that_answers(site):
    """Its first owner is lost while the model speaks: the next one has the results, and what came before them."""
    run_id = "answering"
    site.models.of(f"{run_id}-answer").close()
    await site.start(run_id, MIXED, "done and over now", client_tools=TOOLS)
    run = await asked(site, run_id)
    answer = await answered(site, run, *(call.name for call in run.client_tool_calls), client=site.first.client)
    site.watch(answer, site.second.client)
    await testing.eventually_async(lambda: site.models.of(answer).waiting, "the model speaks")
    yield
    await testing.eventually_async(lambda: len(site.calls_of(answer)) == 2, "the call is made again")
    yield
    site.models.of(answer).open()
    assert (await site.ended(answer)).output_text == "done and over now"
    assert sorted(given(site, answer).values()) == sorted(["pick", "show", '{"did": "a"}', '{"did": "c"}'])


LASTING = (the_run_that_answers, mid_own_tool)
BRIEF = (between_own_tools_and_the_end, without_own_tools_before_the_end, ended_not_told)


@pytest.mark.parametrize("fault", ["kill", "stop", "cut"])
async def test_calls_of_the_clients_are_asked_for_once_and_answered_once_over_every_loss(fault, identities, behind, state_url, tmp_path):
    async with two_replicas(identities, behind, state_url, tmp_path) as site:
        with site.first_alone():
            rows = await site.at_their_points(LASTING, BRIEF)
        await site.befall(fault, rows)
