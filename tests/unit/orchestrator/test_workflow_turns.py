"""Workflows at work: order, branches, retries, bounds, and owners that are lost at any write."""

import time

import orjson
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common import testing
from services.orchestrator.agents import parse_agents
from services.orchestrator.ports import ToolOutcome
from services.orchestrator.records import Limits
from services.orchestrator.testing.turn_world import Journal, World, agent
from services.orchestrator.turn import workflow as strategy
from services.orchestrator.turn import workflow_state
from services.orchestrator.workflows.checks import workflow_problems
from services.orchestrator.workflows.definition import (
    ApprovalStep,
    ChoiceStep,
    EndStep,
    Failure,
    ModelStep,
    ParallelStep,
    Retry,
    ToolStep,
    WaitStep,
    Workflow,
)
from services.orchestrator.workflows.schema import KNOWN

SHIPPED = testing.ROOT / "k8s/environments/local/config"
REFUND = """
steps:
  - {name: triage, kind: model, prompt: "Which kind? {input.text}", answer: {type: object, required: [kind, amount]}}
  - name: decide
    kind: choice
    cases:
      - {when: "steps.triage.output.kind == 'refund' and steps.triage.output.amount <= 100", next: both}
      - {when: "steps.triage.output.kind == 'refund'", next: refuse}
    next: answer
  - name: both
    kind: parallel
    on_error: refuse
    branches:
      money:
        - {name: pay, kind: tool, tool: mail, arguments: {amount: "{steps.triage.output.amount}", to: "{run.id}"}}
        - {name: note, kind: tool, tool: mail, arguments: {note: "paid {steps.triage.output.amount}"}}
      words:
        - {name: letter, kind: model, prompt: "Write a letter", tools: [look], max_steps: 3}
      stock:
        - {name: pause, kind: wait, seconds: 0.01}
        - {name: poll, kind: tool, tool: look, arguments: {visit: "{steps.poll.visits}"}, max_visits: 3, on_error: give_up}
        - {name: again, kind: choice, cases: [{when: "not steps.poll.output.ready", next: poll}], next: give_up}
        - {name: give_up, kind: wait, seconds: 0.001}
  - {name: done, kind: end, output: "{steps.letter.output} after {steps.poll.visits}, {steps.pay.output.n}"}
  - {name: answer, kind: end, output: "No refund of {steps.triage.output.amount}."}
  - {name: refuse, kind: end, fail: {reason: TOO_MUCH, message: "{steps.triage.output.amount} is too much."}}
"""


def flow(text, **fields):
    """An agent with this workflow."""
    workflow = Workflow.model_validate(yaml.safe_load(text))
    assert workflow_problems(workflow, ("look", "mail")) == []
    return agent(strategy="workflow", workflow=workflow, **fields)


FLOW = flow(REFUND)


def answers(kind="refund", amount=20, looks=1):
    """A model that does what the steps of REFUND ask for."""

    def reply(call):
        asked = next(message.text for message in call.messages if message.role == "user")
        if asked.startswith("Which kind?"):
            return orjson.dumps({"kind": kind, "amount": amount}).decode()
        done = sum(bool(message.tool_calls) for message in call.messages)
        return [("look", {"n": done})] if done < looks and call.tools else "Dear Ana"

    return reply


def ready_after(visits, made=None):
    """Tools of which `look` says that all is ready from this visit on; what they were asked for is added to `made`."""

    def tool(name, arguments):
        if made is not None:
            made.append((name, orjson.dumps(arguments)))
        return ToolOutcome("done", orjson.dumps({"n": 7, "ready": arguments.get("visit", 0) >= visits}))

    return tool


def names(world, kind="step_completed"):
    return [data["name"] for data in world.journal.of(kind)]


@settings(max_examples=120, deadline=None)
@given(
    kind=st.sampled_from(["refund", "other"]), amount=st.sampled_from([20, 500]), looks=st.integers(0, 2), visits=st.integers(1, 4),
    lost_at=st.dictionaries(st.integers(1, 30), st.booleans(), max_size=6),
)  # fmt: skip
def test_whoever_is_lost_a_workflow_comes_to_the_same_end_with_each_effect_once(kind, amount, looks, visits, lost_at):
    def run(journal):
        made = []
        world = World(answers(kind, amount, looks), FLOW, tool=ready_after(visits, made), journal=journal)
        return world, world.run(), made

    _, expected, wanted = run(Journal())
    world, result, made = run(Journal(lost_at))
    assert result == expected
    assert not world.faults
    # A8: the same calls, each under one key and once. A9 stands in the result: what was used is what the checkpointed steps took.
    assert sorted(made) == sorted(wanted)
    assert set(world.executed.values()) <= {1}
    if kind == "other":
        assert result["output_text"] == f"No refund of {amount}."
    elif amount == 500:
        assert result["error"] == {"reason": "TOO_MUCH", "message": "500 is too much.", "retryable": False}
    else:
        assert result["output_text"] == f"Dear Ana after {min(visits, 3)}, 7"
        assert len(world.sent) == 2 + looks + min(visits, 3)
    # What was told stays told once: the end of each step, and the end of each call.
    ends = [data["step"] for data in world.journal.of("step_completed")]
    assert len(ends) == len(set(ends))


def test_steps_are_told_by_name_and_the_plan_shows_where_the_flow_is():
    world = World(answers(), FLOW, tool=ready_after(1))
    world.run()
    assert names(world)[0] == "triage"
    assert names(world)[-1] == "done"
    assert {"letter", "done"} <= set(names(world))
    assert all(data["name"] for data in world.journal.of("step_started"))
    assert "pay" in names(world)[1]
    plans = world.journal.of("plan_updated")
    assert [plan["version"] for plan in plans] == list(range(1, len(plans) + 1))
    first, last = ({step["title"]: step["status"] for step in plan["steps"]} for plan in (plans[0], plans[-1]))
    assert (first["triage"], first["pay"], first["answer"]) == ("in_progress", "pending", "pending")
    assert (last["pay"], last["both"], last["done"], last["answer"]) == ("done", "done", "done", "skipped")
    # Nobody reads a letter before it is sent: only the end shows text.
    assert "".join(data["text"] for data in world.journal.of("message_delta")) == "Dear Ana after 1, 7"
    assert [data["text"] for data in world.journal.of("message_completed")] == ["Dear Ana after 1, 7"]


ONE_TOOL = """
steps:
  - name: send
    kind: tool
    tool: {tool}
    arguments: {{a: 1}}
    retry: {retry}
    on_error: sorry
  - {{name: done, kind: end, output: "sent"}}
  - {{name: sorry, kind: end, output: "{{steps.send.error.code}}"}}
"""


def one_tool(outcomes, tool="look", retry="{attempts: 3, backoff_s: 0.001}", **fields):
    """A run of ONE_TOOL whose calls come to these outcomes in turn, and its answer."""
    left = iter(outcomes)
    world = World(lambda call: "", flow(ONE_TOOL.format(tool=tool, retry=retry)), tool=lambda name, arguments: next(left), **fields)
    return world, world.run()["output_text"]


DONE, AWAY = ToolOutcome("done", b"{}"), ToolOutcome("failed", code="transport.timeout", message="too slow")
WRONG, UNSURE = ToolOutcome("failed", code="input.invalid", message="no"), ToolOutcome("unknown")


def test_only_a_failure_that_passes_or_is_named_is_tried_again_and_under_a_key_of_its_own():
    world, text = one_tool([AWAY, AWAY, DONE])
    assert (text, list(world.executed)) == ("sent", ["r/1/0", "r/2/0", "r/3/0"])
    assert one_tool([AWAY, AWAY, AWAY])[1] == "transport.timeout"
    assert one_tool([WRONG])[1] == "input.invalid"
    assert one_tool([WRONG, DONE], retry="{attempts: 2, backoff_s: 0.001, codes: ['input.*']}")[1] == "sent"
    assert one_tool([AWAY], retry="{attempts: 2, backoff_s: 0.001, codes: ['input.*']}")[1] == "transport.timeout"


def test_a_call_of_which_nobody_knows_whether_it_took_effect_is_not_made_again():
    world, text = one_tool([UNSURE], tool="mail", retry="{attempts: 3, backoff_s: 0.001}")
    assert (text, list(world.executed)) == ("tool_outcome_unknown", ["r/1/0"])


def test_a_result_that_would_burden_every_checkpoint_is_an_error_of_its_step(monkeypatch):
    large = ToolOutcome("done", orjson.dumps("x" * 70_000))
    assert one_tool([large])[1] == "output.too_large"
    monkeypatch.setattr(workflow_state, "MOST_KEPT_BYTES", 1)
    assert one_tool([DONE])[1] == "output.too_large"


@pytest.mark.parametrize("survives", [True, False])
def test_attempts_are_counted_over_owners(survives):
    lost_at = {2: survives, 5: survives, 7: survives}
    world, text = one_tool([AWAY, AWAY, AWAY, DONE], journal=Journal(lost_at))
    assert (text, sum(world.executed.values())) == ("transport.timeout", 3)


def test_while_all_is_waiting_the_run_is_parked_until_the_first_goes_on(monkeypatch):
    monkeypatch.setattr(strategy, "PARK_FROM_MS", 1)
    before = time.time()
    world, text = one_tool([AWAY, AWAY, DONE], retry="{attempts: 3, backoff_s: 0.03}")
    assert text == "sent"
    first, second = dict.fromkeys(world.parked)
    assert (second - first, first - before * 1000) >= (59, 29)
    told = [tuple(data.values()) for data in world.journal.of("agent_status")]
    assert [status for status in told if status[0] == "waiting"] == [("waiting", "send")] * 2


BOUNDED = """
steps:
  - {name: look, kind: tool, tool: look, max_visits: 2}
  - {name: more, kind: choice, cases: [{when: "true", next: look}], next: never}
  - {name: never, kind: end, output: x}
"""


def test_a_cycle_ends_at_its_bound_with_an_error_that_names_the_step():
    world = World(lambda call: "", flow(BOUNDED), tool=lambda name, arguments: DONE)
    error = world.run()["error"]
    assert (error["reason"], sum(world.executed.values())) == ("WORKFLOW_FAILED", 2)
    assert "look" in error["message"]
    assert "workflow.max_visits" in error["message"]


JSON_STEP = """
steps:
  - {name: ask, kind: model, prompt: "go", answer: {type: object, properties: {n: {type: integer}}, required: [n]}, on_error: sorry}
  - {name: done, kind: end, output: "{steps.ask.output.n}"}
  - {name: sorry, kind: end, output: "{steps.ask.error.code}: {steps.ask.error.message}"}
"""


TOOL_STEP = """
steps:
  - {name: ask, kind: tool, tool: look, retry: {attempts: 3, backoff_s: 0.01}, on_error: sorry}
  - {name: done, kind: end, output: "fine"}
  - {name: sorry, kind: end, output: "{steps.ask.error.code}: {steps.ask.error.message}"}
"""


def test_a_result_that_is_deeper_than_can_be_written_fails_its_step_alone():
    output = b'{"a":' + b"[" * 400 + b"]" * 400 + b"}"
    world = World(lambda call: "x", flow(TOOL_STEP), tool=lambda name, given: ToolOutcome("done", output))
    assert world.run()["output_text"] == "output.invalid: it is nested too deeply"
    assert world.executed.total() == 1


def test_an_answer_that_does_not_fit_is_corrected_once():
    said = []

    def reply(call):
        said.append([message.text for message in call.messages if message.role != "system"])
        return ['{"n": "secret"}', '```json\n{"n": 3}\n```'][len(said) - 1]

    assert World(reply, flow(JSON_STEP)).run()["output_text"] == "3"
    assert said[1][:2] == ["go", '{"n": "secret"}']
    assert "answer.n: must be of the type integer" in said[1][2]
    assert World(lambda call: '{"n": "x"}', flow(JSON_STEP)).run()["output_text"] == "output.invalid: answer.n: must be of the type integer"
    assert World(lambda call: "?", flow(JSON_STEP)).run()["output_text"] == "output.invalid: it is not JSON"
    # What is read may be deeper than what is written.
    deep = World(lambda call: '{"a":' + "[" * 400 + "]" * 400 + "}", flow(JSON_STEP))
    assert deep.run()["output_text"] == "output.invalid: it is nested too deeply"


LOOKING = """
steps:
  - {name: ask, kind: model, prompt: "go", tools: [look], max_steps: 3, on_error: sorry}
  - {name: done, kind: end, output: "{steps.ask.output}"}
  - {name: sorry, kind: end, output: "{steps.ask.error.code}"}
"""


def test_the_tool_loop_of_a_step_is_bounded_by_its_own_limit():
    def endless(call):
        return [("look", {"n": sum(bool(message.tool_calls) for message in call.messages)})]

    world = World(endless, flow(LOOKING))
    assert world.run()["output_text"] == "workflow.max_steps"
    assert [len(call.tools) for call in world.asked] == [1, 1, 0]
    # The mail tool is the agent's, and not this step's.
    assert World(lambda call: [("mail", {})] if call.tools else "ok", flow(LOOKING)).run()["output_text"] == "ok"


def test_limits_and_guard_of_the_run_hold():
    world = World(answers(looks=2), FLOW, Limits(max_steps=3), tool=ready_after(9))
    assert world.run()["error"]["reason"] == "STEP_LIMIT"
    assert len(world.asked) <= 3
    text = World(lambda call: "", flow(ONE_TOOL.format(tool="look", retry="null")), Limits(max_tool_calls=1), tool=lambda *_: DONE).run()
    assert text["output_text"] == "sent"
    circling = World(lambda call: [("look", {})] if call.tools else "ok", flow(LOOKING.replace("max_steps: 3", "max_steps: 50")))
    assert circling.run()["error"]["reason"] == "ABNORMAL_USAGE"


FAILING_BRANCH = """
steps:
  - name: both
    kind: parallel
    on_error: sorry
    branches:
      good: [{name: a, kind: tool, tool: look}, {name: b, kind: tool, tool: mail}]
      bad: [{name: c, kind: tool, tool: look, arguments: {fail: "yes"}}]
  - {name: done, kind: end, output: x}
  - {name: sorry, kind: end, output: "{steps.both.error.code} {steps.both.error.message}"}
"""


def test_a_branch_that_fails_ends_the_others_before_their_next_step():
    world = World(lambda call: "", flow(FAILING_BRANCH), tool=lambda name, arguments: WRONG if arguments else DONE)
    assert world.run()["output_text"] == "input.invalid c: no"
    assert len(world.executed) == 2


@pytest.mark.parametrize("first", ["good", "bad"])
def test_a_prompt_that_cannot_be_made_ends_the_branches_beside_it(first):
    steps = {"good": '{name: a, kind: model, prompt: "go"}', "bad": '{name: b, kind: model, prompt: "{steps.a.output.x}"}'}
    order = [first, *(steps.keys() - {first})]
    branches = ", ".join(f"{name}: [{steps[name]}]" for name in order)
    text = f"""
    steps:
      - {{name: both, kind: parallel, on_error: sorry, branches: {{{branches}}}}}
      - {{name: done, kind: end, output: x}}
      - {{name: sorry, kind: end, output: "{{steps.both.error.message}}"}}
    """
    world = World(lambda call: "said", flow(text))
    assert world.run()["output_text"] == "b: steps.a.output.x leads nowhere"


def test_a_tool_that_is_gone_and_a_path_that_leads_nowhere_are_errors_of_their_step():
    world = World(lambda call: "", flow(ONE_TOOL.format(tool="look", retry="null")))

    async def none(wanted):
        return []

    world.definitions = none
    assert world.run()["output_text"] == "tool_missing"
    assert not world.executed
    text = JSON_STEP.replace("{steps.ask.output.n}", "{steps.ask.output.m}")
    error = World(lambda call: '{"n": 1}', flow(text)).run()["error"]
    assert error["message"] == "The step done failed: expression.failed: steps.ask.output.m leads nowhere"


def documented():
    """The agent of docs/workflows.md."""
    example = yaml.safe_load((testing.ROOT / "docs/workflows.md").read_text().split("```yaml\n")[1].split("```")[0])
    return parse_agents(example, SHIPPED / "prompts").get("refund")


@pytest.mark.parametrize(
    ("kind", "state", "total", "paid", "answer"),
    [
        ("refund", "paid", 30, True, "Dear Ana"),
        ("refund", "paid", 300, False, "I pass this on to my colleagues."),
        ("other", "paid", 30, False, "I pass this on to my colleagues."),
        ("refund", "packed", 99.5, True, "Dear Ana"),
    ],
)
def test_the_documented_workflow_does_what_its_page_says(kind, state, total, paid, answer):
    made = {}

    def reply(call):
        return orjson.dumps({"kind": kind, "order": "o1"}).decode() if "ask for?" in call.messages[-1].text else "Dear Ana"

    def tool(name, arguments):
        made[name] = arguments
        return ToolOutcome("done", orjson.dumps({"state": state, "total": total}))

    assert World(reply, documented(), tool=tool).run()["output_text"] == answer
    assert made.get("pay") == ({"order": "o1", "amount": total} if paid else None)
    assert made.get("send_mail") == ({"text": "Dear Ana"} if paid else None)


def test_the_documented_workflow_fails_with_the_reason_that_it_declares():
    def tool(name, arguments):
        return WRONG if name == "pay" else ToolOutcome("done", b'{"state": "paid", "total": 3}')

    error = World(lambda call: '{"kind": "refund", "order": "o1"}', documented(), tool=tool).run()["error"]
    assert error == {"reason": "REFUND_FAILED", "message": "pay: no", "retryable": False}


def test_every_field_of_a_step_is_documented():
    text = (testing.ROOT / "docs/workflows.md").read_text()
    kinds = (ApprovalStep, ModelStep, ToolStep, ChoiceStep, WaitStep, ParallelStep, EndStep, Retry, Failure)
    fields = {name for kind in kinds for name in kind.model_fields}
    assert not [name for name in fields if f"`{name}`" not in text]
    assert not [name for name in KNOWN if name[:3] not in ("min", "max", "exc") and f"`{name}`" not in text]


@pytest.mark.parametrize(("total", "answer"), [("64.20", "That makes 64.20."), ("1000.01", "1000.01 is more than I may approve.")])
def test_the_shipped_workflow_puts_small_sums_into_words(total, answer):
    agents = parse_agents(yaml.safe_load((SHIPPED / "agents.yaml").read_text()), SHIPPED / "prompts")

    def tool(name, arguments):
        return ToolOutcome("done", orjson.dumps({"result": total} if name == "calculator" else {"time": "12:00"}))

    world = World(lambda call: f"That makes {call.messages[-1].text.split()[-1]}", agents.get("price-check"), tool=tool)
    assert world.run()["output_text"] == answer
