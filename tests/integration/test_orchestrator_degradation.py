"""The degradation ladder from the outside: one orchestrator over gRPC, a real store, and parts behind it that fail."""

import itertools
import json

import pytest
from bulkhead.common.v1 import common_pb2
from bulkhead.llm.v1 import llm_pb2
from bulkhead.memory.v1 import memory_pb2
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb
from bulkhead.orchestrator.v1 import webhooks_pb2, webhooks_pb2_grpc

from services.common import testing
from services.common.errors import BudgetExceeded, InvalidInput, Overloaded, PermissionDenied, UpstreamFailed
from services.orchestrator.testing.fakes import obedient
from services.orchestrator.testing.harness import data_of, served, settings_for, shown_text, types, write_config
from services.orchestrator.testing.receivers import receiver
from services.orchestrator.testing.whole_threads import fork

OK, FAILED = pb.RUN_STATUS_SUCCEEDED, pb.RUN_STATUS_FAILED
SUM = 'tool calculator {"expression": "1+2"}'
HAND_OFF = 'tool hand_off_to_human {"reason": "wants a refund", "summary": "order 4711"}'
REPHRASE = "Please say it differently."
AGENTS = """
agents:
  plain: {current: "1", versions: {"1": {prompt: helper.md, model: m, tools: [calculator]}}}
  strict: {current: "1", versions: {"1": {prompt: helper.md, model: m, tools: [calculator], degradation: {rungs: []}}}}
  recalls:
    current: "1"
    versions:
      "1": {prompt: helper.md, model: m, recall: {}, degradation: {reset_memory: true}}
  recalls_with_tools: {current: "1", versions: {"1": {prompt: helper.md, model: m, tools: [calculator], recall: {}}}}
  careful:
    current: "1"
    versions:
      "1":
        prompt: helper.md
        model: m
        tools: [calculator]
        degradation: {cheaper_model: small, stale_answers_s: 60, rephrase: Please say it differently.}
  escalates:
    current: "1"
    versions:
      "1":
        prompt: helper.md
        model: m
        tools: [calculator, send_mail, hand_off_to_human]
        recall: {}
        degradation:
          hand_off: {target: support/first-line, label: our support, text: "Over to {label}."}
"""


@pytest.fixture
async def client(identities, behind, state_url, tmp_path):
    config = write_config(tmp_path / "config", AGENTS)
    settings = settings_for(identities, behind, state_url, config, webhook_allow_private=True, webhook_retries_s=(0.1,))
    async with served(settings, identities) as client:
        client.address = f"127.0.0.1:{settings.grpc_port}"
        yield client


def failing(error, when=lambda request: True):
    """A model that fails for some requests and obeys in all others."""

    def reply(request):
        if when(request):
            raise error
        return obedient(request)

    return reply


async def ended(client, text="say hi", **fields):
    """A run to its end: the run, its log, and its warnings in the one form."""
    run = await client.wait((await client.start(text, **fields)).run_id)
    log = await client.log(run.run_id)
    terminal = [e.type for e in log if e.type in ("run_finished", "run_failed", "run_cancelled")]
    assert (len(terminal), log[-1].type) == (1, terminal[0])
    warnings = [data_of(e) for e in log if e.type == "warning"]
    for warning in warnings:
        assert warning.keys() == {"code", "capability_lost", "fallback", "user_message", "attributes"}
        assert warning["attributes"].keys() >= {"rung", "reason"}
        assert warning["user_message"]
    return run, log, [(w["code"], w["attributes"]["rung"], w["attributes"]["reason"]) for w in warnings]


DOWN = UpstreamFailed("HTTPError: 500 at 10.0.0.7", reason="UPSTREAM_UNAVAILABLE")
TOO_LONG = InvalidInput("too long", reason="CONTEXT_LENGTH_EXCEEDED")
REFUSED = InvalidInput("flagged: violence/graphic", reason="CONTENT_POLICY_VIOLATION")


async def test_a_model_that_fails_with_tools_is_asked_without(client, behind):
    behind.models.reply = failing(DOWN, lambda request: bool(request.tools))
    run, _, warnings = await ended(client, agent="plain")
    assert (run.status, run.output_text) == (OK, "hi")
    assert warnings == [("answered_without_tools", "without_tools", "UPSTREAM_UNAVAILABLE")]
    run, _, warnings = await ended(client, agent="strict")
    assert (run.status, run.error.reason, warnings) == (FAILED, "UPSTREAM_UNAVAILABLE", [])


async def test_a_model_that_is_down_ends_the_run_in_words_for_its_user(client, behind):
    behind.models.reply = failing(DOWN)
    run, _, warnings = await ended(client, agent="plain")
    assert (run.status, run.error.reason, run.error.retryable) == (FAILED, "UPSTREAM_UNAVAILABLE", True)
    assert run.error.message == "The model is not available at the moment. Please try again later."
    assert [code for code, _, _ in warnings] == ["answered_without_tools"]


async def test_a_conversation_that_is_too_long_goes_on_with_its_newest_turn_then_with_none_and_is_forgotten(client, behind):
    def recalled(request):
        return len(request.messages) - 2

    thread = "long"
    for text in ("say one", "say two", "say three"):
        await client.wait((await client.start(text, agent="recalls", thread_id=thread)).run_id)
        await testing.eventually_async(lambda text=text: text in _remembered(behind), f"{text} is kept")
    behind.sessions.extra = [memory_pb2.RecallPart(kind=memory_pb2.RECALL_KIND_MEMORY, text="likes tea", source_id="m1")]
    behind.models.reply = failing(TOO_LONG, lambda request: recalled(request) > 2)
    run, log, warnings = await ended(client, "echo context", agent="recalls", thread_id=thread)
    assert run.output_text == "user:say three|assistant:three|user:echo context"
    assert warnings == [("context_shortened", "shorter_context", "CONTEXT_LENGTH_EXCEEDED")]
    assert "memory_reset" not in types(log)
    behind.models.reply = failing(TOO_LONG, lambda request: recalled(request) > 0)
    run, log, warnings = await ended(client, "echo context", agent="recalls", thread_id=thread)
    assert run.output_text == "user:echo context"
    assert [code for code, _, _ in warnings] == ["context_shortened", "answered_without_memory", "memory_reset"]
    told = next(data_of(e) for e in log if e.type == "memory_reset")
    assert told["reason"] == "context_too_long"
    # Only the run that found it out is left of the conversation.
    await testing.eventually_async(lambda: _remembered(behind) == ["echo context"], "the session is forgotten")
    assert len(behind.sessions.resets) == 1


def _remembered(behind):
    return [turn.user_text for turns in behind.sessions.turns.values() for turn in turns.values()]


async def test_a_refused_request_is_asked_to_be_said_differently(client, behind):
    behind.models.reply = failing(REFUSED)
    run, log, warnings = await ended(client, agent="careful")
    assert (run.status, run.finish_reason, run.output_text) == (OK, "rephrase", REPHRASE)
    assert shown_text(log) == REPHRASE
    assert warnings == [("asked_to_rephrase", "rephrase", "CONTENT_POLICY_VIOLATION")]
    run, _, _ = await ended(client, agent="plain")
    assert (run.error.reason, run.error.message) == (
        "CONTENT_POLICY_VIOLATION", "The model's content policy does not allow an answer to this. Please put it differently.",
    )  # fmt: skip
    # Who may not ask the model is told so: other words would not help.
    behind.models.reply = failing(PermissionDenied("key k-1 has no model m", reason="MODEL_NOT_ALLOWED"))
    run, _, warnings = await ended(client, agent="careful")
    assert (run.error.reason, warnings) == ("MODEL_NOT_ALLOWED", [])
    assert "k-1" not in run.error.message


async def test_an_answer_that_a_filter_held_back_is_no_empty_one(client, behind):
    behind.models.finish_reason = "content_filter"
    behind.models.reply = lambda request: llm_pb2.Message(role="assistant")
    run, log, warnings = await ended(client, agent="plain")
    assert (run.status, run.finish_reason) == (OK, "content_filter")
    assert run.output_text == shown_text(log) == "The answer was held back by the content filter of the model."
    assert warnings == [("answer_filtered", "none", "content_filter")]
    run, log, _ = await ended(client, agent="careful")
    assert run.output_text == shown_text(log) == REPHRASE
    behind.models.reply = obedient
    run, log, _ = await ended(client, "say a bit", agent="careful")
    assert run.output_text == shown_text(log) == f"a bit\n\n{REPHRASE}"


async def test_a_budget_that_refuses_a_model_is_tried_with_the_cheaper_one(client, behind):
    broke = BudgetExceeded("budget of team t-1 in store valkey:6379 is used up")
    behind.models.reply = failing(broke, lambda request: request.model == "m")
    run, _, warnings = await ended(client, f"{SUM}\n{SUM}", agent="careful")
    assert run.status == OK
    assert warnings == [("cheaper_model", "cheaper_model", "BUDGET_EXCEEDED")]
    # The later steps do not try the other one again.
    assert [seen.request.model for seen in behind.models.calls] == ["m", "small", "small", "small"]
    behind.models.reply = failing(broke)
    run, _, _ = await ended(client, agent="careful")
    assert (run.status, run.error.reason, run.error.message) == (FAILED, "BUDGET_EXCEEDED", "The budget for model calls is used up.")


async def test_near_the_money_of_the_run_the_cheaper_model_answers(client, behind):
    lines = "\n".join(f'tool calculator {{"expression": "1+{number}"}}' for number in range(8))
    limits = pb.RunLimits(max_cost_microusd=70)
    run, _, warnings = await ended(client, lines, agent="careful", limits=limits)
    assert run.status == OK
    assert warnings == [("cheaper_model", "cheaper_model", "COST_LIMIT")]
    assert [seen.request.model for seen in behind.models.calls] == ["m"] * 8 + ["small"]


async def test_old_answers_are_asked_of_the_model_gateway_by_those_who_want_them(client, behind):
    await ended(client, agent="careful")
    await ended(client, agent="plain")
    careful, plain = [seen.request for seen in behind.models.calls]
    assert (careful.cache.stale_if_error.ToSeconds(), plain.HasField("cache")) == (60, False)


async def test_a_run_that_would_fail_is_handed_to_a_person(client, behind):
    behind.models.reply = failing(DOWN)
    run, log, warnings = await ended(client, agent="escalates", thread_id="th")
    assert (run.status, run.finish_reason, run.output_text) == (OK, "handed_off", "Over to our support.")
    assert shown_text(log) == run.output_text
    assert [code for code, _, _ in warnings] == ["answered_without_tools", "handed_off"]
    told = next(data_of(e) for e in log if e.type == "handoff_requested")
    assert told.items() >= {
        "target": "support/first-line", "label": "our support", "requested_by": "ladder", "reason": "UPSTREAM_UNAVAILABLE",
        "thread_id": "th", "run_id": run.run_id, "user": "ana",
    }.items()  # fmt: skip
    assert "HTTPError" not in json.dumps(told)
    # A limit is no other end than that.
    behind.models.reply = obedient
    run, _, _ = await ended(client, f"{SUM}\n{SUM}", agent="escalates", limits=pb.RunLimits(max_steps=1))
    assert run.finish_reason == "handed_off"


async def test_a_model_hands_over_with_a_tool_and_nothing_is_done_after_it(client, behind):
    mail = 'tool send_mail {"to": "bob"}'
    run, log, _ = await ended(client, f"tools\n{HAND_OFF}\n{mail}", agent="escalates")
    assert (run.finish_reason, run.output_text) == ("handed_off", "Over to our support.")
    told = next(data_of(e) for e in log if e.type == "handoff_requested")
    assert (told["requested_by"], told["reason"], told["summary"]) == ("model", "wants a refund", "order 4711")
    assert [e for e in types(log) if e.startswith("tool_call")] == ["tool_call_started", "tool_call_completed"]
    assert not behind.tools.sent
    run, log, _ = await ended(client, 'tool hand_off_to_human {"why": 1}', agent="escalates")
    assert data_of(next(e for e in log if e.type == "tool_call_failed"))["error"]["code"] == "input.invalid"
    assert run.finish_reason == "stop"


async def test_an_endpoint_is_told_of_a_handover_beside_the_end(client, behind):
    types_of = ["run.finished", "run.handed_off"]
    async with receiver() as got, testing.dialer("gateway", {"orchestrator": client.address}) as dialer:
        stub = webhooks_pb2_grpc.WebhookServiceStub(dialer.channel("orchestrator"))
        with testing.calling(client.identities, testing.principal_of(scopes=("webhooks:write",))):
            await stub.CreateWebhook(webhooks_pb2.CreateWebhookRequest(url=got.url(), event_types=types_of))
        run, _, _ = await ended(client, HAND_OFF, agent="escalates")
        await testing.eventually_async(lambda: len(got.got) == 2, "both messages")
        bodies = sorted((json.loads(request.body) for request in got.got), key=lambda body: body["type"])
        assert [body["type"] for body in bodies] == types_of
        assert bodies[0]["data"]["finish_reason"] == "handed_off"
        assert bodies[1]["data"]["run_id"] == run.run_id
        assert bodies[1]["data"]["handoff"]["target"] == "support/first-line"


async def test_a_tool_that_does_not_work_is_told_to_the_user_and_one_asked_wrongly_is_not(client, behind):
    run, _, warnings = await ended(client, "tool calculator nonsense", agent="plain")
    assert (run.status, warnings) == (OK, [])

    behind.tools.failure = PermissionDenied("missing scope: tools:execute", reason="SCOPE_MISSING")
    run, _, warnings = await ended(client, SUM, agent="plain")
    assert run.status == OK
    assert warnings == [("tool_unavailable", "tell_model", "refused.scope_missing")]


@pytest.mark.parametrize("code", ["tool_fallback", "tool_stale_result"])
async def test_the_model_is_told_as_the_user_is_that_something_stands_in_for_a_tool(client, behind, code):
    behind.tools.warnings = [
        common_pb2.Warning(code="tool_retried", user_message="The tool calculator is tried again."),
        common_pb2.Warning(code=code, user_message="The tool calculator failed; this is its result of 42 seconds ago."),
    ]
    run, log, warnings = await ended(client, SUM, agent="recalls_with_tools", thread_id="th")
    note = "[The tool calculator failed; this is its result of 42 seconds ago.]\n"
    assert run.output_text == f'Results: {note}{{"result": 3}}'
    assert [told for told, _, _ in warnings] == ["tool_retried", code]
    done = next(data_of(e) for e in log if e.type == "tool_call_completed")
    assert (done["output"], done["note"]) == ({"result": 3}, note)
    # So is the model of a fork, which knows the log alone, and whoever remembers the turn.
    await testing.eventually_async(lambda: _remembered(behind) == [SUM], "the turn is kept")
    assert json.loads(behind.sessions.turns["acme", "th"][run.run_id].tool_calls_json)[0]["output"] == note + '{"result": 3}'
    made = await fork(client, "th", pb.Checkpoint(run_id=run.run_id, step=1), continue_run=True)
    assert (await client.wait(made.run.run_id)).output_text == run.output_text
    behind.tools.warnings = []
    run, log, _ = await ended(client, SUM, agent="recalls_with_tools")
    assert run.output_text == 'Results: {"result": 3}'
    assert "note" not in next(data_of(e) for e in log if e.type == "tool_call_completed")


async def test_a_caller_has_the_session_forgotten(client, behind):
    for text in ("say one", "say two"):
        await client.wait((await client.start(text, agent="recalls", thread_id="t")).run_id)
        await testing.eventually_async(lambda text=text: text in _remembered(behind), f"{text} is kept")
    run, log, warnings = await ended(client, "echo context", agent="recalls", thread_id="t", reset_memory=True)
    assert (run.output_text, warnings) == ("user:echo context", [])
    assert [data_of(e)["reason"] for e in log if e.type == "memory_reset"] == ["asked"]
    await testing.eventually_async(lambda: _remembered(behind) == ["echo context"], "only the new turn is there")


async def test_a_session_is_forgotten_although_memory_was_away(client, behind):
    await client.wait((await client.start("say one", agent="recalls", thread_id="t")).run_id)
    await testing.eventually_async(lambda: _remembered(behind) == ["say one"], "the turn is kept")
    behind.sessions.failure = Overloaded("away", reason="STORE_UNAVAILABLE")
    run, _, warnings = await ended(client, "echo context", agent="recalls", thread_id="t", reset_memory=True)
    assert run.output_text == "user:echo context"
    assert [code for code, _, _ in warnings] == ["memory_reset_postponed", "memory_unavailable"]
    assert _remembered(behind) == ["say one"]
    behind.sessions.failure = None
    await testing.eventually_async(lambda: _remembered(behind) == ["echo context"], "the session is forgotten")


async def test_a_session_is_forgotten_although_the_run_that_asked_for_it_was_cancelled(client, behind):
    await client.wait((await client.start("say one", agent="recalls", thread_id="t")).run_id)
    await testing.eventually_async(lambda: _remembered(behind) == ["say one"], "the turn is kept")
    behind.sessions.failure = Overloaded("away", reason="STORE_UNAVAILABLE")
    behind.models.gate.close()
    run = await client.start("say one two three four", agent="recalls", thread_id="t", reset_memory=True)
    await testing.eventually_async(lambda: behind.models.gate.waiting, "the model is at work")
    await client.cancel(run.run_id)
    assert (await client.wait(run.run_id)).status == pb.RUN_STATUS_CANCELLED
    assert _remembered(behind) == ["say one"]
    behind.sessions.failure = None
    await testing.eventually_async(lambda: not _remembered(behind), "the session is forgotten")


@pytest.mark.parametrize(("tools", "memory", "model"), list(itertools.product([False, True], repeat=3)))
async def test_every_combination_of_failing_parts_ends_readably_and_names_what_is_lost(client, behind, tools, memory, model):
    behind.tools.failure = UpstreamFailed("Traceback: ConnectionError", reason="UPSTREAM_FAILED") if tools else None
    behind.sessions.failure = Overloaded("Traceback: timeout", reason="STORE_UNAVAILABLE") if memory else None
    behind.models.reply = failing(UpstreamFailed("Traceback: boom", reason="UPSTREAM_UNAVAILABLE")) if model else obedient
    run, log, warnings = await ended(client, SUM, agent="escalates")
    codes = [code for code, _, _ in warnings]
    assert (run.status, run.finish_reason) == (OK, "handed_off" if model else "stop")
    assert ("memory_unavailable" in codes) == memory
    assert ("tool_unavailable" in codes) == (tools and not model)
    assert ("handed_off" in codes) == model
    assert "Traceback" not in run.output_text
    assert not any(b"Traceback" in e.data_json for e in log if e.type == "warning")
