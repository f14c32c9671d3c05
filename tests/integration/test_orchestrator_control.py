"""What callers ask of runs at work, over gRPC and a real store: stop, steer, end a tool call, end the run."""

import asyncio

import pytest
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from services.common import testing
from services.common.errors import Conflict, IdempotencyMismatch, InvalidInput, NotFound
from services.common.identity import Principal
from services.orchestrator.testing.fakes import RUNNING, UNKNOWN
from services.orchestrator.testing.harness import data_of, dialed, served, settings_for, shown_text, types, write_config
from services.orchestrator.worker import Worker

OK, FAILED, CANCELLED = pb.RUN_STATUS_SUCCEEDED, pb.RUN_STATUS_FAILED, pb.RUN_STATUS_CANCELLED
SUM = 'tool calculator {"expression": "1+2"}'
MAIL = 'tool send_mail {"to": "bob"}'
SKIP, FAIL = pb.TOOL_CALL_CONTINUATION_SKIP, pb.TOOL_CALL_CONTINUATION_FAIL
RETRY, SUBSTITUTE = pb.TOOL_CALL_CONTINUATION_RETRY, pb.TOOL_CALL_CONTINUATION_SUBSTITUTE
EVE = Principal("acme", "eve", scopes=("runs:write", "runs:read"))


@pytest.fixture
async def control_settings(identities, behind, state_url, tmp_path):
    return settings_for(identities, behind, state_url, write_config(tmp_path / "config"))


@pytest.fixture
async def client(control_settings, identities, behind):
    async with served(control_settings, identities) as client:
        yield client
        # Nobody should have to wait for what is held.
        behind.models.gate.open()
        behind.tools.gate.open()


async def stop(client, run_id, **fields):
    with client.calling():
        return await client.runs.StopGeneration(pb.StopGenerationRequest(run_id=run_id, **fields))


async def steer(client, run_id, text, **fields):
    with client.calling():
        return await client.runs.SteerRun(pb.SteerRunRequest(run_id=run_id, text=text, **fields))


async def end_call(client, run_id, call_id="c0", **fields):
    with client.calling():
        return await client.runs.CancelToolCall(pb.CancelToolCallRequest(run_id=run_id, call_id=call_id, **fields))


async def generating(client, behind, text="say one two three four", **fields):
    """A run whose model has said two words and is held."""
    behind.models.gate.close()
    run = await client.start(text, **fields)
    await testing.eventually_async(lambda: behind.models.gate.waiting == 1, "the model is held midway")
    await shown(client, run.run_id, "one two")
    return run


async def shown(client, run_id, text):
    async def there():
        return shown_text(await client.log(run_id)).startswith(text)

    await until(there, f"{text!r} is shown")


async def until(condition, what):
    async with asyncio.timeout(testing.PATIENCE_S):
        while not await condition():
            await asyncio.sleep(0.01)


async def calling_a_tool(client, behind, text=MAIL):
    """A run whose tool call is at work and held."""
    behind.tools.gate.close()
    run = await client.start(text)
    await testing.eventually_async(lambda: behind.tools.gate.waiting == 1, "the tool is at work")
    return run


def of(events, *kinds):
    return [data_of(event) for event in events if event.type in kinds]


# --- stop ---


async def test_stopping_ends_the_model_call_and_keeps_its_text_as_the_answer(client, behind):
    run = await generating(client, behind)
    answer = await stop(client, run.run_id, wait=True)
    assert (answer.run.status, answer.run.finish_reason, answer.run.output_text) == (OK, "stopped", "one two")
    events = await client.log(run.run_id)
    assert of(events, "stop_received") == [{"number": 1}]
    assert of(events, "message_completed")[0]["text"] == "one two"
    await testing.eventually_async(lambda: behind.models.calls[0].cancelled, "the model call is ended, not left alone")
    assert len(behind.models.calls) == 1


async def test_a_stop_that_comes_while_a_tool_is_at_work_holds_for_the_next_model_call(client, behind):
    run = await calling_a_tool(client, behind)
    first = await stop(client, run.run_id, idempotency_key="k")
    assert (await stop(client, run.run_id, idempotency_key="k")).number == first.number == 1
    behind.tools.gate.open()
    ended = await client.wait(run.run_id)
    assert (ended.status, ended.finish_reason, ended.output_text, behind.tools.sent) == (OK, "stopped", "", ["bob"])
    assert len(behind.models.calls) == 1


async def test_a_run_that_is_stopped_goes_on_where_somebody_has_said_something(client, behind):
    run = await generating(client, behind)
    assert (await steer(client, run.run_id, "say instead")).number == 1
    await stop(client, run.run_id)
    behind.models.gate.open()
    ended = await client.wait(run.run_id)
    assert (ended.status, ended.finish_reason, ended.output_text) == (OK, "stop", "instead")
    told = [(m.role, m.text) for m in behind.models.calls[-1].request.messages][-3:]
    assert told == [("user", "say one two three four"), ("assistant", "one two"), ("user", "say instead")]


# --- steer ---


async def test_a_message_to_a_run_at_work_is_acknowledged_and_seen_before_the_next_step(client, behind):
    run = await calling_a_tool(client, behind)
    assert (await steer(client, run.run_id, "say thanks", idempotency_key="k")).number == 1
    assert (await steer(client, run.run_id, "say thanks", idempotency_key="k")).number == 1
    behind.tools.gate.open()
    ended = await client.wait(run.run_id)
    assert (ended.status, ended.output_text) == (OK, "thanks")
    events = await client.log(run.run_id)
    assert of(events, "steer_received") == [{"number": 1}]
    assert of(events, "steer_applied") == [{"number": 1, "step": 2, "text": "say thanks"}]
    assert [m.role for m in behind.models.calls[-1].request.messages] == ["system", "user", "assistant", "tool", "user"]


async def test_a_message_that_comes_during_the_last_answer_gets_one_of_its_own(client, behind):
    run = await generating(client, behind)
    await steer(client, run.run_id, "say more")
    behind.models.gate.open()
    ended = await client.wait(run.run_id)
    assert (ended.status, ended.output_text, ended.usage.model_calls) == (OK, "more", 2)
    assert [m["text"] for m in of(await client.log(run.run_id), "message_completed")] == ["one two three four", "more"]


async def test_a_message_that_nobody_can_read_any_more_is_told_as_dropped(client, behind):
    run = await generating(client, behind, limits=pb.RunLimits(max_steps=1))
    await steer(client, run.run_id, "say more")
    behind.models.gate.open()
    assert (await client.wait(run.run_id)).output_text == "one two three four"
    events = await client.log(run.run_id)
    assert types(events)[-2:] == ["steer_dropped", "run_finished"]
    assert data_of(events[-2]) == {"number": 1}
    cancelled = await generating(client, behind)
    await steer(client, cancelled.run_id, "say more")
    await client.cancel(cancelled.run_id)
    await client.wait(cancelled.run_id)
    assert types(await client.log(cancelled.run_id))[-2:] == ["steer_dropped", "run_cancelled"]


async def test_a_message_for_a_run_that_has_ended_is_refused_with_where_to_say_it(client):
    run = await client.wait((await client.start("say done")).run_id)
    with pytest.raises(Conflict) as refused:
        await steer(client, run.run_id, "more")
    assert refused.value.reason == "RUN_ENDED"
    assert refused.value.metadata == {
        "run_status": "succeeded", "run_id": run.run_id, "thread_id": run.thread_id, "offer": "CreateRun"
    }  # fmt: skip


# --- ending one tool call ---


@pytest.mark.parametrize("tool", ["calculator", "send_mail"])
async def test_a_skipped_call_is_ended_at_the_executor_and_told_as_it_is(client, behind, tool):
    run = await calling_a_tool(client, behind, SUM if tool == "calculator" else MAIL)
    if tool == "send_mail":
        behind.tools.forced[f"{run.run_id}/1/0"] = UNKNOWN
    number = (await end_call(client, run.run_id, continuation=SKIP, idempotency_key="k")).number
    ended = await client.wait(run.run_id)
    assert ended.status == OK
    assert behind.tools.cancels == [(f"{run.run_id}/1/0", True)]
    (failed,) = of(await client.log(run.run_id), "tool_call_failed")
    became, code = ("cancelled", "cancelled.skipped") if tool == "calculator" else ("unknown", "tool_outcome_unknown")
    assert failed["cancel"] == {"number": number, "continuation": "skip", "executor": became}
    assert failed["error"]["code"] == code
    assert code in ended.output_text


async def test_another_result_can_stand_in_for_a_call(client, behind):
    run = await calling_a_tool(client, behind, SUM)
    await end_call(client, run.run_id, continuation=SUBSTITUTE, result_json=b'{"result": 42}')
    ended = await client.wait(run.run_id)
    assert ended.output_text == 'Results: {"result":42}'
    (completed,) = of(await client.log(run.run_id), "tool_call_completed")
    assert (completed["output"], completed["cancel"]["executor"]) == ({"result": 42}, "cancelled")


async def test_a_run_can_end_with_the_call_that_is_ended(client, behind):
    run = await calling_a_tool(client, behind, f"tools\n{SUM}\n{MAIL}")
    await end_call(client, run.run_id, continuation=FAIL)
    ended = await client.wait(run.run_id)
    assert (ended.status, ended.error.reason) == (FAILED, "TOOL_CALL_CANCELLED")
    assert not behind.tools.sent


async def test_a_call_is_made_again_under_its_key_where_that_does_no_harm(client, behind):
    run = await calling_a_tool(client, behind, SUM)
    await end_call(client, run.run_id, continuation=RETRY)
    await testing.eventually_async(lambda: behind.tools.gate.waiting == 2, "it is made again")
    behind.tools.gate.open()
    ended = await client.wait(run.run_id)
    assert ended.output_text == 'Results: {"result": 3}'
    assert list(behind.tools.calls) == [f"{run.run_id}/1/0"]
    assert behind.tools.cancels == [(f"{run.run_id}/1/0", False)]


async def test_a_call_that_waits_for_its_turn_is_skipped_without_being_sent(client, behind):
    run = await calling_a_tool(client, behind, f"tools\n{SUM}\n{MAIL}")
    await end_call(client, run.run_id, "c1", continuation=SKIP)
    # Commands are heard in their order, and this one shows.
    await end_call(client, run.run_id, "c0", continuation=RETRY)
    await testing.eventually_async(lambda: behind.tools.gate.waiting == 2, "the first call is made again")
    behind.tools.gate.open()
    ended = await client.wait(run.run_id)
    assert (ended.status, behind.tools.sent, behind.tools.cancels) == (OK, [], [(f"{run.run_id}/1/0", False)])
    assert "cancelled.skipped" in ended.output_text


# --- ending a run ---


async def test_a_cancelled_run_says_what_became_of_its_calls(client, behind):
    """A call at work may be done, stopped in time, or nobody knows."""
    behind.tools.gate.close()
    run = await client.start(f'tools\n{SUM}\ntool calculator {{"expression": "3+4"}}\n{MAIL}')
    await testing.eventually_async(lambda: behind.tools.gate.waiting == 2, "two calls are at work")
    keys = [f"{run.run_id}/1/{number}" for number in (0, 1)]
    behind.tools.forced[keys[1]] = UNKNOWN
    with client.calling():
        answer = await client.runs.CancelRun(pb.CancelRunRequest(run_id=run.run_id, wait=True))
    assert answer.run.status == CANCELLED
    assert sorted(behind.tools.cancels) == [(key, True) for key in keys]
    failed = {data["call_id"]: data["error"]["code"] for data in of(await client.log(run.run_id), "tool_call_failed")}
    assert failed == {"c0": "cancelled", "c1": "tool_outcome_unknown"}
    assert not behind.tools.sent


async def test_a_cancel_stops_what_is_at_work_and_the_next_run_of_the_thread_is_not_held_up(client, behind):
    """langgraphjs#2755 (cancel does not stop) and deer-flow#1087 (ghost runs block the queue)."""
    run = await generating(client, behind)
    following = await client.start("say next", thread_id=run.thread_id)
    await client.cancel(run.run_id)
    await testing.eventually_async(lambda: behind.models.calls[0].cancelled, "the model call is ended")
    behind.models.gate.open()
    assert (await client.wait(following.run_id)).output_text == "next"
    ended = await client.wait(run.run_id)
    assert (ended.status, ended.output_text) == (CANCELLED, "one two")


async def test_no_tool_is_started_after_a_cancel_that_its_owner_was_not_told_of(identities, behind, control_settings, monkeypatch):
    """The write that would announce a call hears of it, and no notice or heartbeat has to come first."""
    monkeypatch.setattr(Worker, "cancel", lambda self, ref: None)
    unheard = control_settings.model_copy(update={"lease_s": 120.0, "heartbeat_s": 60.0})
    async with served(unheard, identities) as client:
        behind.models.gate.close()
        run = await client.start(MAIL)
        await testing.eventually_async(lambda: behind.models.gate.waiting, "the model is asked")
        await testing.eventually_async(lambda: client.told(run.run_id, "step_started"), "the write before that one has been made")
        assert (await client.cancel(run.run_id)).run.cancel_requested
        behind.models.gate.open()
        assert (await client.wait(run.run_id)).status == CANCELLED
        assert not behind.tools.sent
        failed = of(await client.log(run.run_id), "tool_call_failed")
        assert [data["error"]["code"] for data in failed] == ["cancelled"]


async def test_a_cancel_that_beats_the_start_holds(client):
    """ag-ui#2759."""
    assert not (await client.cancel("early-1")).HasField("run")
    run = await client.start("say x", run_id="early-1")
    assert run.status == CANCELLED


# --- what is refused ---


async def test_what_cannot_be_done_is_refused_by_name_and_leaves_no_trace(client, behind, control_settings, identities):
    first = await generating(client, behind)
    waiting = await client.start("say later", thread_id=first.thread_id)
    with pytest.raises(Conflict) as not_started:
        await stop(client, waiting.run_id)
    assert not_started.value.reason == "RUN_NOT_STARTED"
    verbs = [lambda of: stop(of[0], of[1]), lambda of: steer(of[0], of[1], "x"), lambda of: end_call(of[0], of[1], continuation=SKIP)]
    async with dialed(control_settings, identities, EVE) as eve:
        for verb in verbs:
            for known in ((client, "nobody"), (eve, first.run_id)):
                with pytest.raises(NotFound) as hidden:
                    await verb(known)
                assert hidden.value.reason == "RUN_NOT_FOUND"
    with pytest.raises(NotFound) as no_call:
        await end_call(client, first.run_id, "c9", continuation=SKIP)
    assert no_call.value.reason == "TOOL_CALL_NOT_FOUND"
    for wrong in ({}, {"continuation": SUBSTITUTE, "result_json": b"{"}, {"continuation": SKIP, "result_json": b"1"}):
        with pytest.raises(InvalidInput):
            await end_call(client, first.run_id, **wrong)
    with pytest.raises(InvalidInput):
        await steer(client, first.run_id, "  ")
    await steer(client, first.run_id, "say b", idempotency_key="k")
    with pytest.raises(IdempotencyMismatch):
        await steer(client, first.run_id, "say c", idempotency_key="k")
    behind.models.gate.open()
    ended = await client.wait(first.run_id)
    assert ended.output_text == "b"
    for verb in verbs:
        with pytest.raises(Conflict) as over:
            await verb((client, first.run_id))
        assert over.value.reason == "RUN_ENDED"
    assert RUNNING not in [seen.outcome for seen in behind.tools.calls.values()]


# --- a run for a thread that has one at work ---

REJECT, INTERRUPT = pb.ON_BUSY_REJECT, pb.ON_BUSY_INTERRUPT
ROLLBACK, STEER = pb.ON_BUSY_ROLLBACK, pb.ON_BUSY_STEER


async def again(client, run, text, principal=None, **fields):
    """CreateRun in the thread of `run`."""
    with testing.calling(client.identities, principal or client.principal):
        said = [pb.InputMessage(role="user", text=text)]
        request = pb.CreateRunRequest(thread_id=run.thread_id, input=said, **{"agent": "quick", **fields})
        return await client.runs.CreateRun(request)


async def test_a_busy_thread_refuses_by_the_run_that_is_at_work(client, behind):
    run = await generating(client, behind, thread_id="busy-1", idempotency_key="first", on_busy=REJECT)
    with pytest.raises(Conflict) as busy:
        await again(client, run, "say no", on_busy=REJECT, idempotency_key="second")
    assert (busy.value.reason, busy.value.metadata["run_id"]) == ("THREAD_BUSY", run.run_id)
    same = await again(client, run, "say one two three four", on_busy=REJECT, idempotency_key="first")
    assert (same.run.run_id, same.created) == (run.run_id, False)
    behind.models.gate.open()
    await client.wait(run.run_id)
    made = await again(client, run, "say yes", on_busy=REJECT, idempotency_key="second")
    assert made.created
    assert (await client.wait(made.run.run_id)).output_text == "yes"


async def test_an_interrupted_run_keeps_its_text_for_the_one_that_follows_and_one_rolled_back_does_not(client, behind):
    for policy, remembered in ((INTERRUPT, ["say one two three four|one two"]), (ROLLBACK, [])):
        run = await generating(client, behind, agent="helper")
        waiting = (await again(client, run, "say never", agent="helper")).run
        made = await again(client, run, "say instead", agent="helper", on_busy=policy)
        behind.models.gate.open()
        assert (await client.wait(made.run.run_id)).output_text == "instead"
        cut, queued = await client.wait(run.run_id), await client.wait(waiting.run_id)
        assert (cut.status, cut.output_text, queued.status) == (CANCELLED, "one two", CANCELLED)
        turns = behind.sessions.turns["acme", run.thread_id]
        await testing.eventually_async(lambda turns=turns, made=made: made.run.run_id in turns, "the turn is remembered")
        kept = [f"{turn.user_text}|{turn.assistant_text}" for run_id, turn in turns.items() if run_id != made.run.run_id]
        assert kept == remembered


async def test_what_is_said_to_a_busy_thread_can_steer_its_run(client, behind):
    run = await calling_a_tool(client, behind)
    first = await again(client, run, "say ok", on_busy=STEER, idempotency_key="k")
    second = await again(client, run, "say ok", on_busy=STEER, idempotency_key="k")
    assert [(a.run.run_id, a.created, a.steer_number) for a in (first, second)] == [(run.run_id, False, 1)] * 2
    behind.tools.gate.open()
    assert (await client.wait(run.run_id)).output_text == "ok"
    late = await again(client, run, "say ok", on_busy=STEER, idempotency_key="k")
    assert (late.run.run_id, late.steer_number) == (run.run_id, 1), "the same key is never two messages"
    idle = await again(client, run, "say new", on_busy=STEER, idempotency_key="l")
    assert (idle.created, idle.steer_number) == (True, 0)
    assert (await client.wait(idle.run.run_id)).output_text == "new"
    repeated = await again(client, run, "say new", on_busy=STEER, idempotency_key="l")
    assert (repeated.run.run_id, repeated.created) == (idle.run.run_id, False)


async def test_a_message_whose_sender_died_before_it_was_answered_is_not_said_again(client, behind, valkey):
    run = await calling_a_tool(client, behind)
    assert (await again(client, run, "say ok", on_busy=STEER, idempotency_key="k")).steer_number == 1
    behind.tools.gate.open()
    await client.wait(run.run_id)
    # What a process leaves that dies between the message and its answer, once its claim has run out.
    (claim,) = await valkey.keys("idem:*:CreateRun.steer:*")
    await valkey.delete(claim)
    late = await again(client, run, "say ok", on_busy=STEER, idempotency_key="k")
    assert (late.run.run_id, late.created, late.steer_number) == (run.run_id, False, 1)
    with pytest.raises(NotFound):
        await again(client, run, "say ok", principal=EVE, on_busy=STEER, idempotency_key="k")


async def test_a_policy_for_a_run_that_starts_later_is_refused(client):
    request = pb.CreateRunRequest(agent="quick", input=[pb.InputMessage(role="user", text="x")], on_busy=INTERRUPT)
    request.start_at.GetCurrentTime()
    request.start_at.seconds += 3600
    with client.calling(), pytest.raises(InvalidInput):
        await client.runs.CreateRun(request)
