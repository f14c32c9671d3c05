"""Scripted conversations."""

import asyncio
from pathlib import Path

import pytest

from services.simulator import scenarios
from services.simulator.app import SHIPPED_SCENARIOS


async def run_agent(sim, content, tools, **more):
    """All answers of an agent loop."""
    messages, answers = [{"role": "user", "content": content}], []
    while True:
        _, _, answer = await sim.chat(messages, tools=tools, **more)
        message = answer["choices"][0]["message"]
        answers.append(message)
        if not message.get("tool_calls") or len(answers) > 10:
            return answers
        messages.append(message)
        for number, call in enumerate(message["tool_calls"]):
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": f"result {len(answers)}.{number}"})


@pytest.mark.parametrize(("name", "calls"), [("five-steps", 4), ("five-tools", 5)])
async def test_the_shipped_scripts_of_the_benchmarks(sim, tools, name, calls):
    answers = await run_agent(sim, f"Run the {name} script.", [tools.calculator])
    assert [len(answer.get("tool_calls") or []) for answer in answers] == [1] * calls + [0]
    assert len({str(answer["tool_calls"][0]["function"]) for answer in answers[:-1]}) == calls
    assert all(f"result {number}.0" in answers[-1]["content"] for number in range(1, calls + 1))
    lines = await sim.log()
    assert {line["scenario"] for line in lines} == {name}


async def test_a_script_is_chosen_by_model_header_or_text(sim, tools):
    async def scenario(**more):
        await sim.chat(more.pop("content", "hi"), **more)
        return (await sim.log())[-1]["scenario"]

    assert await scenario(model="sim-five-steps") == "five-steps"
    assert await scenario(headers={"x-sim-scenario": "five-steps"}) == "five-steps"
    assert await scenario(content="five-steps please") == "five-steps"
    assert await scenario(content="five steps please") is None
    assert await scenario() is None


async def test_the_same_step_asked_again_is_the_same_step(sim, tools):
    first = await sim.chat("five-steps", tools=[tools.calculator])
    again = await sim.chat("five-steps", tools=[tools.calculator])
    assert first[2]["choices"][0]["message"]["tool_calls"][0]["function"] == again[2]["choices"][0]["message"]["tool_calls"][0]["function"]


async def test_a_script_set_by_the_control_endpoint(sim, tools):
    script = {
        "match": {"text": "heron"},
        "steps": [
            {"text": "Let me see.", "tool_calls": [{"tool": "a", "arguments": {"n": 1}}, {"tool": "b"}]},
            {"text": "Got {results}.", "fault": "missing_usage"},
        ],
    }
    assert (await sim.call("PUT", "/sim/scenarios/mine", script))[0] == 200
    answers = await run_agent(sim, "the Heron", [tools.calculator])
    assert answers[0]["content"] == "Let me see."
    assert [call["function"]["name"] for call in answers[0]["tool_calls"]] == ["a", "b"]
    assert answers[1]["content"] == "Got result 1.0, result 1.1."
    assert (await sim.log())[-1]["usage_sent"] is False
    assert "mine" in (await sim.call("GET", "/sim/scenarios"))[1]["scenarios"]
    assert (await sim.call("DELETE", "/sim/scenarios/mine"))[0] == 200
    assert (await sim.call("DELETE", "/sim/scenarios/mine"))[0] == 404


@pytest.mark.parametrize(
    "script",
    [
        {},
        {"steps": []},
        {"steps": [{}]},
        {"steps": [{"text": 5}]},
        {"steps": [{"words": "x"}]},
        {"steps": [{"tool_calls": "x"}]},
        {"steps": [{"tool_calls": [{"arguments": {}}]}]},
        {"steps": [{"fault": "nonsense"}]},
        {"steps": [{"text": "x"}], "match": {"text": "("}},
        {"steps": [{"text": "x"}], "match": {"colour": "x"}},
        {"steps": [{"text": "x"}], "extra": 1},
    ],
)
async def test_a_script_that_is_not_clear_is_refused(sim, script):
    status, answer = await sim.call("PUT", "/sim/scenarios/mine", script)
    assert status == 400
    assert answer["error"]["message"]


def test_every_problem_of_every_file_is_listed(tmp_path: Path):
    (tmp_path / "a.yaml").write_text("scenarios: {one: {steps: []}, two: {steps: [{fault: nonsense}], match: {text: '('}}}")
    (tmp_path / "b.yaml").write_text("scenarios: [")
    (tmp_path / "c.yaml").write_text("nothing: here")
    with pytest.raises(scenarios.BadScenarios) as refused:
        scenarios.load([tmp_path, tmp_path / "missing"])
    assert len(refused.value.problems) == 6
    assert all(str(tmp_path) in problem for problem in refused.value.problems)


def test_files_of_a_user_win_over_shipped_ones(tmp_path: Path):
    (tmp_path / "mine.yaml").write_text("scenarios: {five-steps: {steps: [{text: mine}]}}")
    book = scenarios.load([SHIPPED_SCENARIOS, tmp_path])
    assert book.find("five-steps", "m", "").steps[0].text == "mine"


async def test_a_slow_story_can_be_left(sim):
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(sim.stream("slow-story"), 0.3)
    assert (await sim.last_line())["aborted"] is True
