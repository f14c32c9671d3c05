"""Workflows as they are declared: conditions, templates, and every problem at once with its path."""

import contextlib

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from services.common.config import ConfigProblem
from services.orchestrator.agents import AgentDefinition, parse_agents
from services.orchestrator.workflows.checks import workflow_problems
from services.orchestrator.workflows.definition import Workflow
from services.orchestrator.workflows.expressions import Condition, ExpressionError, Missing, Template, as_templates, fill
from services.orchestrator.workflows.schema import misfits, schema_problems

SCOPE = {
    "input": {"text": "hi", "data": {"items": [1, 2, {"id": "x"}], "a b": 1}},
    "run": {"id": "r"},
    "steps": {"pay": {"visits": 2, "output": {"total": 30.5, "ok": True, "none": None}}},
}


@pytest.mark.parametrize(
    "text",
    [
        "steps.pay.output.total <= 30.5 and input.text == 'hi'",
        "not (steps.pay.output.total < 1) or nothing.at.all",
        "len(input.data.items) == 3 and len(input.text) > 1 and len(input.gone) == 0",
        "2 in input.data.items and 'x' not in input.data.items",
        "input.text in ['ho', \"hi\"] and 'h' in input.text and 'ok' in steps.pay.output",
        "input.data.items[2].id == 'x' and input.data.items[-1]['id'] == 'x' and input.data['a b'] == 1",
        "steps.pay.output.none == null and input.data.items[7] == null and not steps.pay.output.none",
        "not not true and (false or true) and not steps.pay.output.gone",
        "steps.pay.output.ok != 1 and -1 < 0 and 'a' < 'b' and [1, [2]] == [1, [2]]",
        "not ('x' in input.gone)",
        "number('12.50') > 12 and number(' -1e2') < 0 and number(steps.pay.output.total) == 30.5 and number(input.gone) == null",
    ],
)
def test_conditions_that_hold(text):
    assert Condition(text).holds(SCOPE) is True
    assert Condition(f"not ({text})").holds(SCOPE) is False


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("input.text < 3", "a text < a number has no meaning"),
        ("input.data.items and true", "a list is neither true nor false"),
        ("len(run.id) == 1 and len(true) == 1", "a boolean has no length"),
        ("number(input.text) > 1", "a text is no number"),
        ("number(input.data.items) > 1", "a list is no number"),
        ("1 in 2", "a number in a number has no meaning"),
    ],
)
def test_conditions_without_a_meaning_say_why(text, problem):
    with pytest.raises(ExpressionError, match=problem):
        Condition(text).holds(SCOPE)


@pytest.mark.parametrize(
    "text",
    ["", "a ==", "a = 1", "a b", "(a", "a.", "a[1", "a[x]", "a[1.5]", "len a", "and", "a == 'x", "__import__('os')", "a.b()", "1 +2",
     "a not b", "f{x}", "lambda: 1", "a == 1 == 2", "(" * 40 + "a" + ")" * 40, "a" * 5000],
)  # fmt: skip
def test_what_is_no_condition_is_refused_when_it_is_read(text):
    with pytest.raises(ExpressionError):
        Condition(text)


@given(st.text(alphabet="ab.()[]'\"<>=! 1and or not in len,", max_size=30))
def test_any_text_is_a_condition_or_refused_and_has_a_value_or_none(text):
    with contextlib.suppress(ExpressionError):
        assert Condition(text).holds(SCOPE) in (True, False)


def test_templates_take_values_as_they_are_and_texts_around_them():
    assert Template("{input.data.items[2]}").value(SCOPE) == {"id": "x"}
    assert Template("<{input.data.items}> {{x}} {steps.pay.output.ok}").render(SCOPE) == '<[1,2,{"id":"x"}]> {x} true'
    assert fill(as_templates({"a": ["{run.id}", 1, None], "b": {"c": "{input.text}!"}}), SCOPE) == {"a": ["r", 1, None], "b": {"c": "hi!"}}
    with pytest.raises(Missing, match=r"input\.data\.items\[9\] leads nowhere"):
        Template("{input.data.items[9]}").render(SCOPE)
    for wrong in ("{", "}", "{}", "{a b}", "{1}", "{len(a)}", "{a == 1}", "{a!r}", "{a:>10}"):
        with pytest.raises(ExpressionError):
            Template(wrong)
    # Braces in a value are text and nothing more.
    assert Template("{input.text}").render({"input": {"text": "{run.id}"}}) == "{run.id}"


SCHEMA = {
    "type": "object", "required": ["kind", "lines"], "additionalProperties": False,
    "properties": {
        "kind": {"enum": ["a", "b"]}, "n": {"type": ["integer", "null"], "minimum": 1},
        "lines": {"type": "array", "minItems": 1, "items": {"type": "string", "maxLength": 3}},
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("value", "wrong"),
    [
        ({"kind": "a", "lines": ["x"]}, []),
        ({"kind": "a", "lines": ["x"], "n": None}, []),
        ({"kind": "a", "lines": ["x"], "n": 2.0}, []),
        ({"kind": "c", "lines": []}, ["answer.kind: must be one of ['a', 'b']", "answer.lines: minItems is 1"]),
        ({"lines": ["long text"], "n": 0}, ["answer.kind: is missing", "answer.lines.0: maxLength is 3", "answer.n: minimum is 1"]),
        ({"kind": "a", "lines": ["x"], "secret": 1}, ["answer: has a property that is not allowed; there are kind, n, lines"]),
        ({"kind": "a", "lines": ["x"], "n": True}, ["answer.n: must be of the type integer or null"]),
        ([], ["answer: must be of the type object"]),
    ],
)
def test_an_answer_is_held_to_its_schema_without_being_repeated(value, wrong):
    assert list(schema_problems(SCHEMA)) == []
    assert sorted(misfits(SCHEMA, value)) == sorted(wrong)


def test_a_schema_that_would_not_be_checked_is_refused():
    bad = {"type": "text", "properties": {"a": {"pattern": "x"}}, "items": [], "minimum": "1", "required": "a", "enum": []}
    problems = list(schema_problems(bad))
    for part in ("schema.type", "schema.properties.a.pattern", "schema.items", "schema.minimum", "schema.required", "schema.enum"):
        assert any(problem.startswith(f"{part}:") for problem in problems), part


BROKEN = """
steps:
  - {name: a, kind: tool, tool: unknown, arguments: {x: ["{steps.nobody.output}"]}, next: loop}
  - {name: left, kind: tool, tool: look, on_error: nowhere}
  - {name: loop, kind: tool, tool: "mail@9", next: back}
  - {name: back, kind: choice, cases: [{when: "steps.a.result == 1", next: loop}], next: fan}
  - name: fan
    kind: parallel
    branches:
      one: [{name: over, kind: end, output: x}]
      two: [{name: b, kind: wait, next: a}, {name: c, kind: wait, seconds: 1, until: "{world}"}]
  - {name: trap, kind: wait, seconds: 1, next: trap2, max_visits: 2}
  - {name: trap2, kind: wait, seconds: 1, next: trap}
  - {name: a, kind: model, prompt: "{input}", answer: {type: x}, retry: {attempts: 2, codes: [tool_outcome_unknown]}}
  - {name: end, kind: end}
  - {name: last, kind: wait, seconds: 1}
"""


def test_every_problem_of_a_workflow_is_named_with_its_path():
    problems = workflow_problems(Workflow.model_validate(yaml.safe_load(BROKEN)), ("look", "mail@1.0.0"))
    for expected in (
        "steps.0.tool: 'unknown' is none of the agent's tools",
        "steps.0.arguments.x.0: steps.nobody.output: there is no step 'nobody'",
        "steps.1.on_error: there is no step 'nowhere'",
        "steps.1: no step leads to 'left'",
        "steps.2.tool: 'mail@9' is none of the agent's tools",
        "steps.3.cases.0.when: steps.a.result: a step has output, error, visits",
        "steps: loop → back → loop goes round without end; one of them needs max_visits",
        "steps.4.branches.one.0: a branch cannot end the run; its last step ends it",
        "steps.4.branches.two.0: must have one of seconds and until",
        "steps.4.branches.two.0.next: 'a' stands in another list of steps",
        "steps.4.branches.two.1: must have one of seconds and until",
        "steps.4.branches.two.1.until: world begins with none of input, run, steps",
        "steps.5: no way leads from 'trap' to an end",
        "steps.7.name: 'a' stands twice",
        "steps.7.prompt: input is not a value",
        "steps.7.answer.type: there is no type 'x'",
        "steps.7.retry.codes: 'tool_outcome_unknown' may have taken effect and cannot be retried",
        "steps.8: must have one of output and fail",
        "steps.9: leads nowhere; it needs a next, or a step after it",
    ):
        assert expected in problems, f"{expected} is not in {problems}"


@pytest.mark.parametrize(
    "step",
    [
        "{name: a, kind: model, prompt: x, max_steps: 0}",
        "{name: a, kind: tool, tool: look, max_visits: 0}",
        "{name: a, kind: tool, tool: look, timeout_s: 0}",
        "{name: a, kind: tool, tool: look, retry: {attempts: 0}}",
        "{name: a, kind: tool, tool: look, retry: {attempts: 2, backoff_s: 0}}",
        "{name: a, kind: wait, seconds: 0}",
        "{name: a, kind: wait, seconds: .inf}",
        "{name: a, kind: choice, cases: []}",
        "{name: a, kind: choice, cases: [{when: 'a ==', next: b}]}",
        "{name: a, kind: parallel, branches: {}}",
        "{name: a, kind: parallel, branches: {one: [], two: []}}",
        "{name: a, kind: nothing}",
        "{name: a/b, kind: end, output: x}",
        "{name: a, kind: end, output: '{'}",
        "{name: a, kind: end, output: x, other: 1}",
    ],
)
def test_limits_of_zero_and_other_nonsense_are_refused(step):
    with pytest.raises(ValidationError):
        Workflow.model_validate({"steps": [yaml.safe_load(step)]})


def test_a_bound_that_leads_back_by_its_error_bounds_nothing():
    text = """
    steps:
      - {name: try, kind: tool, tool: look, max_visits: 2, on_error: again}
      - {name: over, kind: end, output: x}
      - {name: again, kind: wait, seconds: 1, next: try}
    """
    assert workflow_problems(Workflow.model_validate(yaml.safe_load(text)), ("look",)) == [
        "steps: try → again → try goes round without end; one of them needs max_visits"
    ]


AGENT = """
agents:
  refund:
    current: "1"
    versions:
      "1":
        prompt: a.md
        model: m
        strategy: workflow
        tools: [look]
        workflow:
          steps:
            - {name: look, kind: tool, tool: look, arguments: {q: "{input.text}"}, retry: {attempts: 3}}
            - {name: over, kind: end, output: "{steps.look.output}"}
"""


@pytest.fixture
def prompts(tmp_path):
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts/a.md").write_text("Be good.\n")
    return tmp_path / "prompts"


def test_a_run_is_pinned_to_the_workflow_of_its_agent_version(prompts):
    agents = parse_agents(yaml.safe_load(AGENT), prompts)
    agent = agents.get("refund")
    assert AgentDefinition.decode(agent.encode()) == agent
    assert AgentDefinition.decode(agent.encode()).encode() == agent.encode()
    changed = parse_agents(yaml.safe_load(AGENT.replace("attempts: 3", "attempts: 4")), prompts)
    assert agents.by_digest.keys().isdisjoint(changed.by_digest)


def test_an_agent_with_a_workflow_that_cannot_work_is_refused_with_every_path(prompts):
    where = "agents.yaml: agents.refund.versions.1.workflow"
    alone = f"{where}: the strategy workflow works off one, and no other strategy does"
    cases = [
        (AGENT.replace("tool: look,", "tool: post,"), [f"{where}.steps.0.tool: 'post' is none of the agent's tools"]),
        (
            AGENT.replace("strategy: workflow", "strategy: react"),
            [alone],
        ),
        (AGENT[: AGENT.index("        workflow:\n")], [alone]),
    ]
    for text, problems in cases:
        with pytest.raises(ConfigProblem) as caught:
            parse_agents(yaml.safe_load(text), prompts)
        assert caught.value.problems == problems
    broken = AGENT.replace("attempts: 3", "attempts: 1").replace("{steps.look.output}", "{steps.look")
    with pytest.raises(ConfigProblem) as caught:
        parse_agents(yaml.safe_load(broken), prompts)
    assert [problem.rpartition(": ")[0].split(": ")[1] for problem in caught.value.problems] == [
        "agents.refund.versions.1.workflow.steps.0.tool.retry.attempts",
        "agents.refund.versions.1.workflow.steps.1.end.output",
    ]
