"""The kill matrix: two orchestrator processes, one of which is killed, stopped or told to go while it owns a run."""

import asyncio
import json
import signal
import time
from contextlib import AsyncExitStack

import pytest
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from services.common import testing
from services.orchestrator.adapters.store import Store
from services.orchestrator.records import Limits, RunRef, RunSpec
from services.orchestrator.testing.fakes import FAILED as NOT_DONE
from services.orchestrator.testing.fakes import UNKNOWN, fakes
from services.orchestrator.testing.harness import data_of, dialed, process, settings_for, shown_text, types, write_config

OK, FAILED, CANCELLED = pb.RUN_STATUS_SUCCEEDED, pb.RUN_STATUS_FAILED, pb.RUN_STATUS_CANCELLED
SUM = 'tool calculator {"expression": "1+2"}'
MAIL = 'tool send_mail {"to": "bob"}'


class Pair:
    """Two replicas: `first` accepts and owns the run, `second` is there to take over."""

    def __init__(self, behind, first, second, client, watcher):
        self.behind, self.first, self.second, self.client, self.watcher = behind, first, second, client, watcher


@pytest.fixture
async def pair(identities, state_url, tmp_path):
    config = write_config(tmp_path / "config")
    async with AsyncExitStack() as stack:
        behind = await stack.enter_async_context(fakes(identities))
        each = [settings_for(identities, behind, state_url, config, instance=name) for name in ("first", "second")]
        processes = [stack.enter_context(process(settings, tmp_path)) for settings in each]
        for settings in each:
            await testing.wait_ready(f"127.0.0.1:{settings.grpc_port}")
        clients = [await stack.enter_async_context(dialed(settings, identities)) for settings in each]
        yield Pair(behind, *processes, *clients)


async def start_watched(pair, text, **fields):
    """A run of the first replica, watched through the second."""
    run = await pair.client.start(text, **fields)
    events = []
    return run, events, asyncio.create_task(pair.watcher.follow(run.run_id, events))


async def check_log(pair, run, events):
    """A3, A2 and A6: what a watcher saw through the change is the log, contiguous, with one end."""
    replay = await pair.watcher.log(run.run_id)
    assert [(e.seq, e.type, e.data_json) for e in events] == [(e.seq, e.type, e.data_json) for e in replay]
    assert [e.seq for e in replay] == list(range(1, len(replay) + 1))
    assert sum(t in ("run_finished", "run_failed", "run_cancelled") for t in types(replay)) == 1


async def test_killed_mid_model_stream(pair):
    pair.behind.models.gate.close()
    run, events, watching = await start_watched(pair, "say one two three four")
    await testing.eventually_async(lambda: shown_text(events) == "one two", "text is shown")
    pair.first.kill()
    killed = time.monotonic()
    await testing.eventually_async(lambda: "attempt_superseded" in types(events), "another owner")
    # The lease is 1 s here; the bound is loose against a loaded machine.
    assert time.monotonic() - killed < 15
    pair.behind.models.gate.open()
    await watching
    ended = await pair.watcher.wait(run.run_id)
    assert (ended.status, ended.output_text, ended.attempt) == (OK, "one two three four", 2)
    assert shown_text(events) == "one two three four"
    superseded = next(e for e in events if e.type == "attempt_superseded")
    assert data_of(superseded)["from_seq"] == next(e.seq for e in events if e.type == "message_delta")
    assert superseded.attempt == 2
    # The same call is made again, and each owner has told of it.
    asked = [(e.attempt, data_of(e)["idempotency_key"], data_of(e)["request_digest"]) for e in events if e.type == "step_started"]
    assert [attempt for attempt, _, _ in asked] == [1, 2]
    assert asked[0][1:] == asked[1][1:]
    assert asked[0][1] == f"{run.run_id}/1"
    await check_log(pair, run, events)


@pytest.mark.system
async def test_killed_mid_model_stream_of_a_client_that_cannot_take_text_back(pair):
    pair.behind.models.gate.close()
    run, events, watching = await start_watched(pair, "say one two three four", append_only_output=True)
    await testing.eventually_async(lambda: shown_text(events) == "one two", "text is shown")
    pair.first.kill()
    await testing.eventually_async(lambda: len(pair.behind.models.calls) == 2, "another owner")
    pair.behind.models.gate.open()
    await watching
    assert "attempt_superseded" not in types(events)
    assert "".join(data_of(e)["text"] for e in events if e.type == "message_delta") == "one two three four"
    assert (await pair.watcher.wait(run.run_id)).output_text == "one two three four"
    await check_log(pair, run, events)


@pytest.mark.system
async def test_killed_mid_model_stream_where_the_model_can_go_on(pair):
    def reply(request):
        if request.messages[-1].role == "assistant":
            message = type(request.messages[-1])(role="assistant", text=" and so on")
        else:
            message = type(request.messages[-1])(role="assistant", text="one two three")
        return message

    pair.behind.models.reply = reply
    pair.behind.models.gate.close()
    run, events, watching = await start_watched(pair, "go", agent="goes-on", append_only_output=True)
    await testing.eventually_async(lambda: shown_text(events) == "one two", "text is shown")
    pair.first.kill()
    await testing.eventually_async(lambda: len(pair.behind.models.calls) == 2, "another owner")
    pair.behind.models.gate.open()
    await watching
    assert (await pair.watcher.wait(run.run_id)).output_text == "one two and so on"
    assert pair.behind.models.calls[1].request.messages[-1].text == "one two"


@pytest.mark.system
async def test_text_that_cannot_be_continued_fails_and_says_so(pair):
    answers = iter(["one two three", "something else altogether"])
    first_reply = pair.behind.models.reply
    pair.behind.models.reply = lambda request: type(first_reply(request))(role="assistant", text=next(answers))
    pair.behind.models.gate.close()
    run, events, watching = await start_watched(pair, "go", append_only_output=True)
    await testing.eventually_async(lambda: shown_text(events) == "one two", "text is shown")
    pair.first.kill()
    await testing.eventually_async(lambda: len(pair.behind.models.calls) == 2, "another owner")
    pair.behind.models.gate.open()
    await watching
    ended = await pair.watcher.wait(run.run_id)
    assert (ended.status, ended.error.reason, ended.error.retryable) == (FAILED, "OUTPUT_DIVERGED", True)
    assert shown_text(events) == "one two"


@pytest.mark.system
@pytest.mark.parametrize("line", [SUM, MAIL])
async def test_killed_mid_tool_the_call_is_found_by_its_key(pair, line):
    pair.behind.tools.gate.close()
    run, events, watching = await start_watched(pair, f"{line}\n{SUM}")
    await testing.eventually_async(lambda: pair.behind.tools.gate.waiting, "the tool is at work")
    pair.first.kill()
    attempts = lambda: pair.watcher.get(run.run_id)  # noqa: E731
    await testing.eventually_async(lambda: second_attempt(attempts), "another owner")
    pair.behind.tools.gate.open()
    await watching
    ended = await pair.watcher.wait(run.run_id)
    assert (ended.status, ended.attempt, ended.usage.tool_calls) == (OK, 2, 2)
    assert {key: call.executions for key, call in pair.behind.tools.calls.items()} == {f"{run.run_id}/1/0": 1, f"{run.run_id}/2/0": 1}
    assert len(pair.behind.tools.sent) == (1 if line == MAIL else 0)
    assert [t for t in types(events) if t.startswith("tool")] == ["tool_call_started", "tool_call_completed"] * 2
    # The first model call was checkpointed and is not made again.
    assert len(pair.behind.models.calls) == 3
    await check_log(pair, run, events)


async def second_attempt(get):
    return (await get()).attempt == 2


# A failed call is one that the executor stopped when its caller went away.
@pytest.mark.system
@pytest.mark.parametrize(("line", "known", "repeated"), [(SUM, UNKNOWN, True), (MAIL, UNKNOWN, False), (SUM, NOT_DONE, True)])
async def test_killed_mid_tool_with_an_unknown_outcome_or_a_cancelled_call(pair, line, known, repeated):
    pair.behind.tools.gate.close()
    run, events, watching = await start_watched(pair, line)
    key = f"{run.run_id}/1/0"
    await testing.eventually_async(lambda: pair.behind.tools.gate.waiting, "the tool is at work")
    pair.behind.tools.forced[key] = known
    pair.first.kill()
    if repeated:
        await testing.eventually_async(lambda: pair.behind.tools.calls[key].executions == 2, "issued again with the same key")
        pair.behind.tools.gate.open()
    await watching
    ended = await pair.watcher.wait(run.run_id)
    assert ended.status == OK
    if repeated:
        assert ended.output_text == 'Results: {"result": 3}'
    else:
        assert pair.behind.tools.calls[key].executions == 1
        failed = next(data_of(e) for e in events if e.type == "tool_call_failed")
        assert failed["error"]["code"] == "tool_outcome_unknown"
        assert "tool_outcome_unknown" in ended.output_text
    await check_log(pair, run, events)


@pytest.mark.system
async def test_killed_with_several_tools_midway_those_that_wait_keep_their_order(pair):
    pair.behind.tools.gate.close()
    run, events, watching = await start_watched(pair, f'tools\n{SUM}\ntool calculator {{"expression": "3+4"}}\n{MAIL}\n{MAIL}')
    await testing.eventually_async(lambda: pair.behind.tools.gate.waiting == 2, "both sums are at work, and no mail")
    pair.first.kill()
    await testing.eventually_async(lambda: second_attempt(lambda: pair.watcher.get(run.run_id)), "another owner")
    assert not pair.behind.tools.sent
    pair.behind.tools.gate.open()
    await watching
    ended = await pair.watcher.wait(run.run_id)
    assert (ended.status, ended.attempt, ended.usage.tool_calls, ended.usage.model_calls) == (OK, 2, 4, 2)
    assert {key: call.executions for key, call in pair.behind.tools.calls.items()} == {f"{run.run_id}/1/{i}": 1 for i in range(4)}
    assert pair.behind.tools.sent == ["bob", "bob"]
    told = [(e.type, data_of(e)["call_id"], e.attempt) for e in events if e.type.startswith("tool_call")]
    assert told[:2] == [("tool_call_started", "c0", 1), ("tool_call_started", "c1", 1)]
    assert told[-4:] == [(f"tool_call_{kind}", name, 2) for name in ("c2", "c3") for kind in ("started", "completed")]
    await check_log(pair, run, events)


async def test_killed_after_the_checkpoint_and_before_the_call_was_sent(pair):
    """The executor never saw the key: the call is made now, once."""
    pair.behind.tools.gate.close()
    run, _, watching = await start_watched(pair, MAIL)
    key = f"{run.run_id}/1/0"
    await testing.eventually_async(lambda: pair.behind.tools.gate.waiting, "the tool is at work")
    pair.first.kill()
    seen = pair.behind.tools.calls.pop(key)
    await testing.eventually_async(lambda: key in pair.behind.tools.calls, "the call is made")
    assert seen is not pair.behind.tools.calls[key]
    pair.behind.tools.gate.open()
    await watching
    assert (await pair.watcher.wait(run.run_id)).status == OK
    assert pair.behind.tools.calls[key].executions == 1


@pytest.mark.system
async def test_a_zombie_writes_nothing_and_stops_its_calls(pair):
    pair.behind.models.gate.close()
    run, events, watching = await start_watched(pair, "say one two three four")
    await testing.eventually_async(lambda: shown_text(events) == "one two", "text is shown")
    pair.first.signal(signal.SIGSTOP)
    await testing.eventually_async(lambda: len(pair.behind.models.calls) == 2, "another owner while the first stands still")
    pair.first.signal(signal.SIGCONT)
    # Within a heartbeat of its return the former owner ends its model call; the new one's goes on.
    await testing.eventually_async(lambda: pair.behind.models.calls[0].cancelled, "the zombie stops its model call")
    assert not pair.behind.models.calls[1].cancelled
    pair.behind.models.gate.open()
    await watching
    ended = await pair.watcher.wait(run.run_id)
    assert (ended.status, ended.output_text, ended.attempt) == (OK, "one two three four", 2)
    assert shown_text(events) == "one two three four"
    own = [e.attempt for e in events if e.attempt]
    assert own == sorted(own)
    await check_log(pair, run, events)
    assert "run_lost" in pair.first.output()
    # It is fit for further work.
    assert (await pair.client.wait((await pair.client.start("say again")).run_id)).status == OK


async def test_sigterm_lets_the_step_end_and_hands_over(pair):
    pair.behind.tools.gate.close()
    run, events, watching = await start_watched(pair, f"{SUM}\n{SUM}")
    await testing.eventually_async(lambda: pair.behind.tools.gate.waiting, "the tool is at work")
    pair.first.signal(signal.SIGTERM)
    await testing.eventually_async(lambda: "draining" in pair.first.output(), "it drains")
    pair.behind.tools.gate.open()
    assert await asyncio.to_thread(pair.first.wait) == 0
    await watching
    ended = await pair.watcher.wait(run.run_id)
    assert (ended.status, ended.attempt) == (OK, 2)
    # Handed over between steps: nothing was lost, so nothing is superseded or made again.
    assert "attempt_superseded" not in types(events)
    assert len(pair.behind.models.calls) == 3
    await check_log(pair, run, events)


@pytest.mark.system
async def test_sigterm_hands_over_a_step_that_does_not_end(pair):
    pair.behind.models.gate.close()
    run, events, watching = await start_watched(pair, "say one two three four")
    await testing.eventually_async(lambda: shown_text(events) == "one two", "text is shown")
    pair.first.signal(signal.SIGTERM)
    assert await asyncio.to_thread(pair.first.wait) == 0
    assert "run_released" in pair.first.output()
    await testing.eventually_async(lambda: len(pair.behind.models.calls) == 2, "another owner")
    pair.behind.models.gate.open()
    await watching
    ended = await pair.watcher.wait(run.run_id)
    assert (ended.status, ended.output_text, ended.attempt) == (OK, "one two three four", 2)
    assert shown_text(events) == "one two three four"
    await check_log(pair, run, events)


@pytest.mark.system
async def test_a_cancel_sent_to_the_other_replica_reaches_the_owner(pair):
    pair.behind.models.gate.close()
    run, events, watching = await start_watched(pair, "say one two three four")
    await testing.eventually_async(lambda: shown_text(events) == "one two", "text is shown")
    await pair.watcher.cancel(run.run_id)
    await watching
    assert types(events)[-1] == "run_cancelled"
    assert data_of(events[-1])["output_text"] == "one two"


@pytest.mark.system
async def test_killed_during_a_cancel_the_run_ends_cancelled_with_its_text(pair):
    pair.behind.models.gate.close()
    run, events, watching = await start_watched(pair, "say one two three four")
    await testing.eventually_async(lambda: shown_text(events) == "one two", "text is shown")
    # Stopped, the owner cannot act on the cancel; then it is gone for good.
    pair.first.signal(signal.SIGSTOP)
    await pair.watcher.cancel(run.run_id)
    pair.first.kill()
    await watching
    ended = await pair.watcher.wait(run.run_id)
    assert (ended.status, ended.output_text) == (CANCELLED, "one two")
    assert len(pair.behind.models.calls) == 1
    await check_log(pair, run, events)


@pytest.mark.system
async def test_killed_before_the_outbox_was_sent(pair, valkey):
    pair.behind.sessions.gate.close()
    run = await pair.client.start("say hi", agent="helper", thread_id="t")
    await pair.client.wait(run.run_id)
    await testing.eventually_async(lambda: pair.behind.sessions.gate.waiting, "the turn is on its way")
    pair.first.kill()
    # Whatever the first had sent is lost with it.
    pair.behind.sessions.turns.clear()
    # The sender's lease on the entry is over.
    await valkey.hset(f"t:{{acme/t}}:run:{run.run_id}", "outbox_until", 0)
    pair.behind.sessions.gate.open()
    await testing.eventually_async(lambda: run.run_id in pair.behind.sessions.turns["acme", "t"], "the other replica sends it")


@pytest.mark.system
async def test_a_run_accepted_by_a_process_that_died_at_once_is_found(pair, valkey):
    """Written durably, never offered to anybody: only the sweeper can know."""
    store = Store(valkey, "gone")
    digest = json.loads(await valkey.hget(await any_run(pair, valkey), "spec"))["agent_digest"]
    ref = RunRef("acme", "t9", "orphan")
    principal = testing.principal_of().as_dict()
    spec = RunSpec("t9", "quick", "1", digest, [{"role": "user", "text": "say found"}], Limits(), principal)
    reservation = await store.reserve(ref, "ana", 0, "", "")
    await store.accept(ref, "ana", spec, "stable", reservation, "", (b'{"input":[]}', b"{}"))
    assert (await pair.watcher.wait("orphan")).output_text == "found"


async def any_run(pair, valkey):
    run = await pair.client.start("say x", thread_id="t0")
    await pair.client.wait(run.run_id)
    return f"t:{{acme/t0}}:run:{run.run_id}"


@pytest.mark.system
async def test_a_wake_up_taken_by_a_process_that_died_is_made_up_for(pair, valkey):
    pair.behind.models.gate.close()
    run = await pair.client.start("say one two three")
    await testing.eventually_async(lambda: pair.behind.models.gate.waiting, "at work")
    queued = await pair.client.start("say next", thread_id=run.thread_id)
    pair.first.kill()
    pair.behind.models.gate.open()
    await pair.watcher.wait(run.run_id)
    assert (await pair.watcher.wait(queued.run_id)).output_text == "next"
