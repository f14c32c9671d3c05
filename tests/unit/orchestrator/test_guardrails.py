"""Guardrails in the real loop: what each verdict does to each kind of text, and what a check that fails does."""

import asyncio

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.orchestrator.agents import Degradation, Recall
from services.orchestrator.ports import Recalled, RecalledPart, ToolOutcome
from services.orchestrator.records import Limits
from services.orchestrator.testing.turn_world import Journal, World, agent, steps_before
from services.orchestrator.turn.guarding import HELD_BACK, MOST_VERDICTS, PART, verdicts_of
from services.orchestrator.turn.guardrails import ALLOWED, ARGUMENTS, CONTEXT, INPUT, OUTPUT, RESULT, Verdict
from services.orchestrator.workflows.definition import Workflow

BAD = "s3cret"


class Watchful:
    """Does what it is told with each text that holds the word, and remembers what it was asked."""

    def __init__(self, stage, action="refuse", fails_open=frozenset(), text="[gone]", broken=None):
        self.stages, self.fails_open, self.timeout_s = frozenset({stage}), fails_open, 0.05
        self.action, self.text, self.broken, self.seen = action, text, broken, []

    async def check(self, what):
        self.seen.append(what)
        if self.broken is not None:
            await self.broken()
        if BAD not in what.text:
            return ALLOWED
        at = what.text.index(BAD)
        return Verdict(self.action, "secret", self.text, "words", "1", 0.9375, 0.8, [(at, at + len(BAD))])


class Recalling:
    """Memory that gives two parts; what it is asked for stands in `asked`."""

    def __init__(self):
        self.asked = []

    async def recall(self, session_id, query, *_):
        self.asked.append(query)
        return Recalled([RecalledPart("turn", f"about {BAD}", "I see"), RecalledPart("memory", "likes tea", source_id="m1")], [])


def answers(text, *calls):
    return lambda call: text if steps_before(call) or not calls else list(calls)


def heard(call):
    return [message.text for message in call.messages if message.role != "system"]


def everything(world):
    """All that is durable of a run."""
    ends = [terminal.data + terminal.result + terminal.outbox for terminal in world.journal.terminals]
    return orjson.dumps(world.journal.events) + b"".join(world.journal.messages) + world.journal.state + b"".join(ends)


def test_what_the_user_says_is_refused_before_anybody_hears_it():
    world = World(answers("hi"), agent(), text=f"my {BAD}", guardrails=Watchful(INPUT))
    result = world.run()
    assert result["error"] == {"reason": "GUARD_REFUSED", "message": "A policy does not allow this request.", "retryable": False}
    assert world.asked == []
    told = {"stage": "input", "action": "refuse", "reason": "secret", "detector": "words", "version": "1", "kind": "user"}
    assert world.journal.of("guard_triggered") == [{**told, "score": 0.9375, "threshold": 0.8, "spans": [[3, 9]]}]


def test_a_refusal_asks_to_say_it_differently_where_the_agent_does():
    world = World(answers("hi"), agent(degradation=Degradation(rephrase="Say it otherwise.")), text=BAD, guardrails=Watchful(INPUT))
    result = world.run()
    assert (result["output_text"], result["finish_reason"]) == ("Say it otherwise.", "rephrase")


@pytest.mark.parametrize("left", ["[gone]", ""])
def test_what_stands_in_for_the_users_words_is_all_that_the_model_and_memory_get(left):
    guard = Watchful(INPUT, "replace", text=left)
    world = World(answers("hi"), agent(recall=Recall()), text=f"remember that my code is {BAD}", guardrails=guard)
    world.recall = (memory := Recalling()).recall
    assert world.run()["output_text"] == "hi"
    assert memory.asked == [left]
    assert heard(world.asked[0])[-1] == left
    kept = orjson.loads(world.journal.terminals[0].outbox)
    assert kept["user_text"] == left
    assert BAD.encode() not in world.journal.terminals[0].outbox


def test_recalled_text_that_is_refused_is_left_out_and_the_rest_is_not():
    world = World(answers("hi"), agent(recall=Recall()), guardrails=Watchful(CONTEXT))
    world.recall = Recalling().recall
    assert world.run()["output_text"] == "hi"
    assert heard(world.asked[0]) == ["go"]
    assert "likes tea" in world.asked[0].messages[1].text
    assert world.journal.of("memory_recalled")[0]["parts"] == 1


@pytest.mark.parametrize("action", ["refuse", "replace"])
def test_an_answer_is_shown_only_when_it_was_looked_at(action):
    world = World(answers(f"it is {BAD}"), agent(), guardrails=Watchful(OUTPUT, action))
    result = world.run()
    # It was paid for.
    assert result["usage"]["model_calls"] == len(world.journal.of("usage")) == 1
    assert result["usage"]["input_tokens"] == 10
    shown = "".join(data["text"] for data in world.journal.of("message_delta"))
    if action == "replace":
        assert result["output_text"] == shown == "[gone]"
    else:
        assert (result["error"]["reason"], shown) == ("GUARD_REFUSED", "")
    assert BAD.encode() not in everything(world)


def test_an_allowed_answer_is_shown_whole():
    world = World(answers("all is well"), agent(), guardrails=Watchful(OUTPUT))
    assert world.run()["output_text"] == "all is well"
    assert [data["text"] for data in world.journal.of("message_delta")] == ["all is well"]
    assert world.journal.of("guard_triggered") == []


@settings(max_examples=60, deadline=None)
@given(lost_at=st.dictionaries(st.integers(1, 12), st.booleans(), max_size=4), approved=st.booleans())
def test_a_refused_call_is_never_made_whoever_owns_the_run(lost_at, approved):
    calls = [("mail", {"to": BAD}), ("mail", {"to": "bob"}), ("look", {"at": BAD})]
    world = World(answers("done", *calls), agent(), Limits(max_tool_calls=3), Journal(lost_at), guardrails=Watchful(ARGUMENTS))
    result = world.run()
    assert result["output_text"] == "done"
    assert dict(world.executed) == {"r/1/1": 1}
    assert result["usage"]["tool_calls"] == 1
    failed = {data["call_id"]: data["error"]["code"] for data in world.journal.of("tool_call_failed")}
    assert failed == {"s1c0": "guard.secret", "s1c2": "guard.secret"}
    # The model is told, and the user is not told of a tool that is broken.
    assert sum("refused by a policy" in text for text in heard(world.asked[-1])) == 2
    assert world.journal.of("warning") == []
    assert not world.faults


def test_arguments_that_are_replaced_are_those_that_are_told_approved_and_made():
    guard = Watchful(ARGUMENTS, "replace", text='{"to":"nobody"}')
    sent = []
    world = World(answers("done", ("mail", {"to": BAD})), agent(), guardrails=guard)
    world.tool = lambda name, arguments: sent.append(arguments) or ToolOutcome("done", b"{}")
    world.run()
    assert sent == [{"to": "nobody"}] == [data["arguments"] for data in world.journal.of("tool_call_started")]
    assert BAD.encode() not in everything(world)


@pytest.mark.parametrize("action", ["refuse", "replace"])
@pytest.mark.parametrize("outcome", [ToolOutcome("done", b'{"v":"s3cret"}'), ToolOutcome("failed", code="x", message=BAD)])
def test_a_result_is_looked_at_before_the_model_and_the_log_have_it(action, outcome):
    world = World(answers("done", ("mail", {})), agent(), guardrails=Watchful(RESULT, action), tool=lambda *_: outcome)
    assert world.run()["output_text"] == "done"
    assert BAD.encode() not in everything(world)
    assert BAD not in "".join(heard(world.asked[-1]))
    done, failed = world.journal.of("tool_call_completed"), world.journal.of("tool_call_failed")
    if (action, outcome.outcome) == ("replace", "done"):
        # A result is JSON, whatever stands in for it.
        assert [data["output"] for data in done] == ["[gone]"]
    elif outcome.outcome == "done":
        assert failed[0]["error"]["code"] == "guard.secret"
        assert "Do not make it again" in failed[0]["error"]["message"]
    else:
        assert failed[0]["error"]["code"] == "x"
    assert dict(world.executed) == {"r/1/0": 1}


def test_what_is_said_to_a_run_at_work_is_looked_at_as_well():
    world = World(answers("done", ("look", {})), agent(), guardrails=Watchful(INPUT))

    def tool(name, arguments):
        world.post("steer", text=f"use {BAD}")
        world.post("steer", text="be brief")
        return ToolOutcome("done", b"{}")

    world.tool = tool
    assert world.run()["output_text"] == "done"
    assert heard(world.asked[-1])[-2:] == [HELD_BACK, "be brief"]
    assert [data["text"] for data in world.journal.of("steer_applied")] == [HELD_BACK, "be brief"]
    assert [data["number"] for data in world.journal.of("guard_triggered")] == [1]


async def raises():
    raise RuntimeError("no detector")


async def hangs():
    await asyncio.sleep(60)


@pytest.mark.parametrize("broken", [raises, hangs])
def test_a_check_that_fails_refuses_unless_the_policy_lets_it_pass(broken):
    closed = World(answers("hi"), agent(), guardrails=Watchful(INPUT, broken=broken))
    error = closed.run()["error"]
    assert (error["reason"], error["retryable"]) == ("GUARD_UNAVAILABLE", True)
    assert closed.asked == []
    opened = World(answers("hi"), agent(), guardrails=Watchful(INPUT, fails_open={INPUT}, broken=broken))
    assert opened.run()["output_text"] == "hi"
    for world, action in ((closed, "refuse"), (opened, "allow")):
        assert [(data["action"], data["reason"]) for data in world.journal.of("guard_triggered")] == [(action, "guard_failed")]


def test_verdicts_stand_in_the_checkpoint_without_words_and_not_without_end():
    def reply(call):
        step = steps_before(call)
        return "done" if step > 9 else [("look", {"n": f"{BAD} {step}.{i}"}) for i in range(12)]

    world = World(reply, agent(), guardrails=Watchful(ARGUMENTS, "allow"))
    world.run()
    state = orjson.loads(world.journal.state)
    kept = verdicts_of(state)
    assert len(kept) == MOST_VERDICTS < len(world.journal.of("guard_triggered"))
    assert kept[0] == {
        "stage": "arguments", "action": "allow", "reason": "secret", "detector": "words", "version": "1", "score_milli": 938,
        "threshold_milli": 800, "step": 0,
    }  # fmt: skip
    assert BAD not in str(state["parts"][PART])


@settings(max_examples=30, deadline=None)
@given(lost_at=st.dictionaries(st.integers(1, 8), st.booleans(), max_size=3))
def test_a_step_of_a_workflow_whose_call_is_refused_fails_as_declared(lost_at):
    steps = [
        {"name": "ask", "kind": "model", "prompt": "Ask {input.text}", "tools": ["look"], "max_steps": 2},
        {"name": "send", "kind": "tool", "tool": "mail", "arguments": {"to": "{input.text}"}, "on_error": "sorry"},
        {"name": "sent", "kind": "end", "output": "sent"},
        {"name": "sorry", "kind": "end", "output": "{steps.send.error.code}"},
    ]
    flow = Workflow.model_validate({"steps": steps})
    made = agent(strategy="workflow", workflow=flow)
    world = World(answers("fine", ("look", {"at": BAD})), made, journal=Journal(lost_at), text=BAD, guardrails=Watchful(ARGUMENTS))
    assert world.run()["output_text"] == "guard.secret"
    assert dict(world.executed) == {}
    assert {data["error"]["code"] for data in world.journal.of("tool_call_failed")} == {"guard.secret"}
    assert len(world.journal.of("tool_call_failed")) == 2


def test_nothing_is_asked_of_a_guard_that_looks_at_nothing():
    guard = Watchful(INPUT)
    guard.stages = frozenset()
    world = World(answers(BAD, ("mail", {"to": BAD})), agent(), text=BAD, guardrails=guard)
    assert world.run()["output_text"] == BAD
    assert guard.seen == []
