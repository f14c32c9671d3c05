"""Turns from the outside: one orchestrator over gRPC, a real store, and deterministic services behind it."""

import asyncio
import json

import pytest
from bulkhead.common.v1 import common_pb2
from bulkhead.llm.v1 import llm_pb2
from bulkhead.memory.v1 import memory_pb2
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from services.common import testing
from services.common.errors import InvalidInput, Overloaded, UpstreamFailed
from services.orchestrator.testing.fakes import fakes
from services.orchestrator.testing.harness import data_of, served, settings_for, shown_text, types, write_config

OK, FAILED, CANCELLED = pb.RUN_STATUS_SUCCEEDED, pb.RUN_STATUS_FAILED, pb.RUN_STATUS_CANCELLED
SUM = 'tool calculator {"expression": "1+2"}'
MAIL = 'tool send_mail {"to": "bob"}'


@pytest.fixture
async def client(identities, behind, state_url, tmp_path):
    settings = settings_for(identities, behind, state_url, write_config(tmp_path / "config"))
    async with served(settings, identities) as client:
        yield client


async def test_a_turn_streams_its_text_and_ends_with_one_terminal_event(client, behind):
    run = await client.start("say hello big world", temperature=0.7, max_tokens=99)
    events = await client.follow(run.run_id, [])
    assert types(events)[:3] == ["run_queued", "run_started", "agent_status"]
    assert types(events)[-3:] == ["message_completed", "step_completed", "run_finished"]
    assert shown_text(events) == "hello big world"
    assert all(e.provisional == (e.type == "message_delta") for e in events)
    assert [e.seq for e in events] == list(range(1, len(events) + 1))
    done = data_of(events[-1])
    assert (done["output_text"], done["finish_reason"], done["usage"]["cost_microusd"]) == ("hello big world", "stop", 7)
    ended = await client.wait(run.run_id)
    assert (ended.status, ended.output_text, ended.terminal_seq, ended.attempt) == (OK, "hello big world", events[-1].seq, 1)
    asked = behind.models.calls[0].request
    assert (asked.temperature, asked.max_tokens, asked.model, asked.run_id) == (0.7, 99, "m", run.run_id)
    assert [(m.role, m.text) for m in asked.messages] == [("system", "You are a helper."), ("user", "say hello big world")]


async def test_the_agents_defaults_are_filled_in(client, behind):
    await client.wait((await client.start("say x")).run_id)
    asked = behind.models.calls[0].request
    assert (asked.temperature, asked.max_tokens) == (0.2, 2000)
    assert {t.name for t in asked.tools} == {"calculator", "send_mail"}


async def test_tools_run_step_by_step_under_their_keys(client, behind):
    behind.tools.progress = True
    run = await client.start(f'{SUM}\n{MAIL}\ntool calculator {{"expression": "3+4"}}')
    events = await client.follow(run.run_id, [])
    ended = await client.wait(run.run_id)
    assert ended.output_text == 'Results: {"result": 3} ; {"sent":true} ; {"result": 7}'
    assert (ended.usage.model_calls, ended.usage.tool_calls, ended.usage.input_tokens) == (4, 3, 40)
    assert list(behind.tools.calls) == [f"{run.run_id}/{step}/0" for step in (1, 2, 3)]
    pairs = [t for t in types(events) if t.startswith("tool_call") and t != "tool_call_progress"]
    assert pairs == ["tool_call_started", "tool_call_completed"] * 3
    assert "tool_call_progress" in types(events)
    started = data_of(next(e for e in events if e.type == "tool_call_started"))
    assert (started["call_id"], started["tool"], started["arguments"]) == ("c0", "calculator", {"expression": "1+2"})
    completed = next(e for e in events if e.type == "tool_call_completed")
    assert data_of(completed)["output"] == {"result": 3}


async def test_tools_of_one_step_run_side_by_side_and_effects_alone_in_their_order(client, behind):
    behind.tools.gate.close()
    run = await client.start(f'tools\n{SUM}\ntool calculator {{"expression": "3+4"}}\n{MAIL}\ntool calculator {{"expression": "5+6"}}')
    await testing.eventually_async(lambda: behind.tools.gate.waiting == 2, "two calls at work at once, and none behind the mail")
    assert sorted(behind.tools.calls) == [f"{run.run_id}/1/{number}" for number in (0, 1)]
    behind.tools.gate.open()
    ended = await client.wait(run.run_id)
    assert (ended.usage.model_calls, ended.usage.tool_calls) == (2, 4)
    assert sorted(behind.tools.calls) == [f"{run.run_id}/1/{number}" for number in range(4)]
    told = [(e.type, data_of(e)["call_id"]) for e in await client.log(run.run_id) if e.type.startswith("tool_call")]
    assert told[-4:] == [(f"tool_call_{kind}", name) for name in ("c2", "c3") for kind in ("started", "completed")]


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("tool nonsense {}", "input.unknown_tool"),
        ("tool calculator {broken", "input.malformed_json"),
        ("tool calculator [1]", "input.malformed_json"),
        # Deeper than what is read is written again.
        ("tool calculator " + '{"a":' + "[" * 400 + "]" * 400 + "}", "input.malformed_json"),
        ("tool calculator " + '{"a":' + "[" * 253 + "]" * 253 + "}", "input.malformed_json"),
    ],
)
async def test_a_call_that_makes_no_sense_is_told_to_the_model(client, behind, line, code):
    run = await client.start(line)
    ended = await client.wait(run.run_id)
    assert ended.status == OK
    assert code in ended.output_text
    assert not behind.tools.calls
    failed = [e for e in await client.log(run.run_id) if e.type == "tool_call_failed"]
    assert data_of(failed[0])["error"]["code"] == code


async def test_tool_calls_without_or_with_repeated_ids_are_told_apart(client, behind):
    def reply(request):
        if sum(m.role == "tool" for m in request.messages) < 2:
            call = llm_pb2.ToolCall(tool_call_id="same", name="calculator", arguments_json=b'{"expression":"1+1"}')
            return llm_pb2.Message(role="assistant", tool_calls=[call])
        ids = [m.tool_call_id for m in request.messages if m.role == "tool"]
        return llm_pb2.Message(role="assistant", text=" ".join(ids))

    behind.models.reply = reply
    ended = await client.wait((await client.start("go")).run_id)
    assert ended.output_text == "same call_2_0"


async def test_what_a_model_wants_back_of_its_answer_goes_back(client, behind):
    thought = b'{"thinking_blocks":[{"type":"thinking","signature":"c2ln"}],"reasoning_details":[{"text":"hm"}]}'
    signature = b'{"extra_content":{"google":{"s":"x"}}}'

    def reply(request):
        if request.messages[-1].role == "tool":
            (asked,) = [m for m in request.messages if m.tool_calls]
            return llm_pb2.Message(role="assistant", text=f"{asked.extra_json == thought} {asked.tool_calls[0].extra_json == signature}")
        call = llm_pb2.ToolCall(tool_call_id="x", name="calculator", arguments_json=b'{"expression":"1+1"}', extra_json=signature)
        return llm_pb2.Message(role="assistant", tool_calls=[call], extra_json=thought[:-1] + b',"annotations":[]}')

    behind.models.reply = reply
    ended = await client.wait((await client.start("go")).run_id)
    assert ended.output_text == "True True"


@pytest.mark.parametrize(("extra", "back"), [(b"", {"reasoning_content": "hm"}), (b'{"reasoning":"hm"}', {"reasoning": "hm"})])
async def test_thoughts_of_a_turn_with_tools_go_back_under_the_name_they_came_by(client, behind, extra, back):
    def reply(request):
        if request.messages[-1].role == "tool":
            return llm_pb2.Message(role="assistant", text=request.messages[-2].extra_json.decode())
        call = llm_pb2.ToolCall(tool_call_id="x", name="calculator", arguments_json=b'{"expression":"1+1"}')
        return llm_pb2.Message(role="assistant", tool_calls=[call], reasoning="hm", extra_json=extra)

    behind.models.reply = reply
    ended = await client.wait((await client.start("go")).run_id)
    assert json.loads(ended.output_text) == back


@pytest.mark.parametrize(
    ("text", "limits", "reason"),
    [
        ("\n".join([SUM] * 5), pb.RunLimits(max_steps=3), "STEP_LIMIT"),
        ("\n".join([SUM] * 5), pb.RunLimits(max_tool_calls=2), "TOOL_LIMIT"),
        ("\n".join([SUM] * 5), pb.RunLimits(max_cost_microusd=10), "COST_LIMIT"),
        ("\n".join([SUM] * 5), pb.RunLimits(max_total_tokens=20), "TOKEN_LIMIT"),
        ("\n".join([SUM] * 5), pb.RunLimits(), "ABNORMAL_USAGE"),
    ],
)
async def test_a_limit_ends_the_run_readably(client, text, limits, reason):
    run = await client.start(text, limits=limits)
    ended = await client.wait(run.run_id)
    assert (ended.status, ended.error.reason, ended.error.retryable) == (FAILED, reason, False)
    assert ended.error.message
    assert (await client.log(run.run_id))[-1].type == "run_failed"


async def test_the_deadline_is_active_time_and_reaches_the_leaf(client, behind):
    behind.models.gate.close()
    limits = pb.RunLimits()
    limits.deadline.FromMilliseconds(600)
    run = await client.start("say one two three four", limits=limits)
    ended = await client.wait(run.run_id)
    assert (ended.status, ended.error.reason) == (FAILED, "DEADLINE_EXCEEDED")
    assert ended.output_text == "one two"
    call = behind.models.calls[0]
    await testing.eventually_async(lambda: call.cancelled, "the model call ends with the run")
    waited = (ended.ended_at.ToMilliseconds() - ended.started_at.ToMilliseconds()) / 1000
    assert 0.4 < waited < 30


async def test_what_is_at_work_when_the_time_is_over_is_told(client, behind):
    behind.tools.gate.close()
    limits = pb.RunLimits()
    limits.deadline.FromMilliseconds(800)
    run = await client.start(MAIL, limits=limits)
    assert (await client.wait(run.run_id)).error.reason == "DEADLINE_EXCEEDED"
    behind.tools.gate.open()
    events = await client.log(run.run_id)
    assert types(events)[-2:] == ["tool_call_failed", "run_failed"]
    assert data_of(events[-2])["error"]["code"] == "tool_outcome_unknown"


async def test_context_of_the_request_travels_with_the_run(client, behind):
    run = await client.start(f"{SUM}\n{MAIL}", canary=True, agent="helper", thread_id="t1")
    await client.wait(run.run_id)
    contexts = [c.context for c in behind.models.calls] + [c.context for c in behind.tools.calls.values()] + behind.sessions.contexts
    assert len(contexts) == 6
    assert all(c.canary for c in contexts)
    assert len({c.request_id for c in contexts}) == 1
    assert all((c.principal.tenant, c.principal.user, c.principal.run_id) == ("acme", "ana", run.run_id) for c in contexts)
    assert all(c.deadline is not None for c in contexts)
    plain = await client.start("say x", agent="helper", thread_id="t2")
    await client.wait(plain.run_id)
    assert not behind.models.calls[-1].context.canary


async def test_recalled_context_reaches_the_model_and_citations_are_resolved(client, behind):
    citation = common_pb2.Citation(citation_id="c1", document_id="doc", title='A "b" <c>', heading="H > I", char_start=3, char_end=9)
    behind.sessions.extra = [
        memory_pb2.RecallPart(kind=memory_pb2.RECALL_KIND_MEMORY, text="likes <tea> & cake", source_id="m1"),
        memory_pb2.RecallPart(kind=memory_pb2.RECALL_KIND_DOCUMENT, text="a < b", citation=citation),
    ]
    run = await client.start("say as stated [c1] and [c7]", agent="helper", thread_id="t")
    ended = await client.wait(run.run_id)
    system = behind.models.calls[0].request.messages[1]
    assert (system.role, system.text) == (
        "system",
        '<context>\n<memory id="m1">likes &lt;tea&gt; &amp; cake</memory>\n'
        '<document citation="c1" title="A &quot;b&quot; &lt;c&gt;" heading="H &gt; I">a &lt; b</document>\n'
        "</context>\nCite documents as [c1].",
    )
    assert [c.document_id for c in ended.citations] == ["doc"]
    events = await client.log(run.run_id)
    assert [data_of(e)["char_end"] for e in events if e.type == "citation"] == [9]
    assert [data_of(e)["code"] for e in events if e.type == "warning"] == ["citation_unresolved"]
    assert data_of(next(e for e in events if e.type == "memory_recalled")) == {"parts": 2, "kinds": {"memory": 1, "document": 1}}


async def test_the_next_turn_of_a_thread_sees_the_one_before(client, behind):
    await client.wait((await client.start("say my name is Ana", agent="helper", thread_id="t")).run_id)
    ended = await client.wait((await client.start("echo context", agent="helper", thread_id="t")).run_id)
    assert ended.output_text == "user:say my name is Ana|assistant:my name is Ana|user:echo context"


async def test_runs_of_a_thread_queue_and_each_sees_those_before_it(client, behind):
    behind.models.gate.close()
    behind.sessions.gate.close()
    first = await client.start("say one two three", agent="helper", thread_id="t")
    second = await client.start("echo context", agent="helper", thread_id="t")
    await testing.eventually_async(lambda: behind.models.gate.waiting, "the first is at work")
    assert (await client.get(second.run_id)).status == pb.RUN_STATUS_QUEUED
    behind.models.gate.open()
    await client.wait(first.run_id)
    # Its turn is still on the way to memory, and the second waits for it.
    behind.sessions.gate.open()
    ended = await client.wait(second.run_id)
    assert ended.output_text == "user:say one two three|assistant:one two three|user:echo context"


async def test_a_turn_goes_on_without_memory_and_says_so(client, behind):
    behind.sessions.failure = Overloaded("away")
    run = await client.start("say hi", agent="helper", thread_id="t")
    assert (await client.wait(run.run_id)).output_text == "hi"
    warnings = [data_of(e) for e in await client.log(run.run_id) if e.type == "warning"]
    assert [w["code"] for w in warnings] == ["memory_unavailable"]
    assert warnings[0]["capability_lost"] == "memory"


async def test_a_finished_turn_arrives_in_memory_once_although_memory_was_away(client, behind):
    behind.sessions.append_failure = Overloaded("away")
    run = await client.start("say hi", agent="helper", thread_id="t")
    await client.wait(run.run_id)
    await testing.eventually_async(lambda: len(behind.sessions.appends) >= 2, "tried again")
    behind.sessions.append_failure = None
    await testing.eventually_async(lambda: behind.sessions.turns["acme", "t"], "delivered")
    turn = behind.sessions.turns["acme", "t"][run.run_id]
    assert (turn.user_text, turn.assistant_text) == ("say hi", "hi")
    assert set(behind.sessions.appends) == {f"{run.run_id}/turn"}


async def test_a_turn_waits_for_the_turn_before_it_for_a_short_time_only(client, behind):
    behind.sessions.gate.close()
    await client.wait((await client.start("say one", agent="helper", thread_id="t")).run_id)
    run = await client.start("say two", agent="helper", thread_id="t")
    await client.wait(run.run_id)
    behind.sessions.gate.open()
    assert [data_of(e)["code"] for e in await client.log(run.run_id) if e.type == "warning"] == ["memory_behind"]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("say ok. Please remember that my cat is called Tom", "my cat is called Tom"),
        ("say ok. Do you remember that my cat is called Tom?", None),
        ("say nothing to keep", None),
    ],
)
async def test_what_the_user_asks_to_remember_becomes_a_memory(client, behind, text, kept):
    run = await client.start(text, agent="helper", thread_id="t")
    await client.wait(run.run_id)
    await testing.eventually_async(lambda: behind.sessions.turns["acme", "t"], "the turn is stored")
    if kept is None:
        assert not behind.memories.added
    else:
        await testing.eventually_async(lambda: behind.memories.added, "the memory is stored")
        memory = behind.memories.added[f"{run.run_id}/remember"]
        assert (memory.text, memory.importance) == (kept, 0.9)


async def test_agents_without_recall_ask_memory_nothing(client, behind):
    await client.wait((await client.start("say hi", thread_id="t")).run_id)
    await client.wait((await client.start("say hi", agent="helper", thread_id="t")).run_id)
    await testing.eventually_async(lambda: behind.sessions.turns["acme", "t"], "the second turn is stored")
    assert len(behind.sessions.contexts) == len(behind.sessions.turns["acme", "t"]) == 1


async def test_warnings_of_the_model_gateway_are_events(client, behind):
    behind.models.warnings = [common_pb2.Warning(code="model_switched", user_message="Another model answers.")]
    run = await client.start("say hi")
    await client.wait(run.run_id)
    assert [data_of(e)["code"] for e in await client.log(run.run_id) if e.type == "warning"] == ["model_switched"]


async def test_a_model_that_fails_fails_the_run_with_its_reason(client, behind):
    behind.models.failure = UpstreamFailed("all models failed", reason="ALL_MODELS_FAILED")
    run = await client.start("say hi")
    ended = await client.wait(run.run_id)
    assert (ended.status, ended.error.reason, ended.error.message, ended.error.retryable) == (
        FAILED, "ALL_MODELS_FAILED", "The model is not available at the moment. Please try again later.", True,
    )  # fmt: skip
    behind.models.failure = InvalidInput("too long", reason="CONTEXT_LENGTH_EXCEEDED")
    ended = await client.wait((await client.start("say hi")).run_id)
    assert (ended.error.reason, ended.error.retryable) == ("CONTEXT_LENGTH_EXCEEDED", False)


@pytest.mark.parametrize("reason", ["length", "content_filter"])
async def test_the_finish_reason_of_the_answer_is_kept(client, behind, reason):
    behind.models.finish_reason = reason
    assert (await client.wait((await client.start("say hi")).run_id)).finish_reason == reason


async def test_cancel_keeps_the_text_and_ends_the_model_call(client, behind):
    behind.models.gate.close()
    run = await client.start("say one two three four")
    events = []
    watching = asyncio.create_task(client.follow(run.run_id, events))
    await testing.eventually_async(lambda: shown_text(events) == "one two", "the model is midway")
    answer = await client.cancel(run.run_id)
    assert answer.run.cancel_requested
    await watching
    assert types(events)[-1] == "run_cancelled"
    assert data_of(events[-1])["output_text"] == shown_text(events) == "one two"
    ended = await client.wait(run.run_id)
    assert (ended.status, ended.output_text) == (CANCELLED, "one two")
    await testing.eventually_async(lambda: behind.models.calls[0].cancelled, "the model call is ended")
    # Asked again, nothing changes.
    again = await client.cancel(run.run_id)
    assert again.run.terminal_seq == ended.terminal_seq


async def test_cancel_reports_the_tool_calls_in_flight(client, behind):
    behind.tools.gate.close()
    sums, mail = await client.start(f"tools\n{SUM}\n{SUM}\n{MAIL}"), await client.start(MAIL)
    await testing.eventually_async(lambda: behind.tools.gate.waiting == 3, "all calls at work that may be")
    for run, codes in ((sums, ["cancelled", "cancelled"]), (mail, ["tool_outcome_unknown"])):
        await client.cancel(run.run_id)
        assert (await client.wait(run.run_id)).status == CANCELLED
        failed = [data_of(e) for e in await client.log(run.run_id) if e.type == "tool_call_failed"]
        # What had not started is not told of: nothing of it can have happened.
        assert [f["error"]["code"] for f in failed] == codes
    behind.tools.gate.open()
    assert f"{sums.run_id}/1/2" not in behind.tools.calls


async def test_a_cancel_that_beats_the_start_holds(client):
    assert not (await client.cancel("early")).HasField("run")
    run = await client.start("say hi", run_id="early")
    assert run.status == CANCELLED
    assert types(await client.log("early")) == ["run_queued", "run_cancelled"]


async def test_a_tool_whose_outcome_is_unknown_is_told_so_and_not_repeated(client, behind):
    def reply(request):
        if request.messages[-1].role == "tool":
            return llm_pb2.Message(role="assistant", text=request.messages[-1].text)
        call = llm_pb2.ToolCall(tool_call_id="x", name="send_mail", arguments_json=b'{"to":"bob"}')
        return llm_pb2.Message(role="assistant", tool_calls=[call])

    behind.models.reply = reply
    original = behind.tools._run

    async def lost(seen):
        raise Overloaded("the mail server hung up")

    behind.tools._run = lost
    run = await client.start("go")
    ended = await client.wait(run.run_id)
    behind.tools._run = original
    assert json.loads(ended.output_text)["error"]["code"] == "tool_outcome_unknown"
    assert behind.tools.calls[f"{run.run_id}/1/0"].executions == 1


@pytest.mark.system
async def test_without_the_tool_executor_a_turn_is_answered_without_tools(identities, state_url, tmp_path):
    async with fakes(identities, without=frozenset({"tool_executor"})) as behind:
        settings = settings_for(identities, behind, state_url, write_config(tmp_path / "config"))
        async with served(settings, identities) as client:
            run = await client.start("say hi")
            assert (await client.wait(run.run_id)).output_text == "hi"
            assert [data_of(e)["code"] for e in await client.log(run.run_id) if e.type == "warning"] == ["tools_unavailable"]
            assert not behind.models.calls[0].request.tools
