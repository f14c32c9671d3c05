"""agents.yaml: every problem at once, versions, prompts, reload."""

from typing import get_args

import orjson
import pytest
import yaml

from services.common import testing
from services.common.config import ConfigProblem
from services.common.errors import NotFound
from services.common.limits import TierPolicy
from services.common.settings import StartRefused
from services.orchestrator.accepting import bounded
from services.orchestrator.agents import AgentCatalog, AgentDefinition, Strategy, parse_agents
from services.orchestrator.app import build
from services.orchestrator.records import Limits
from services.orchestrator.settings import Settings
from services.orchestrator.turn.strategy import STRATEGIES

SHIPPED = testing.ROOT / "k8s/environments/local/config"
GOOD = """
agents:
  one:
    current: "2"
    versions:
      "1": {prompt: a.md, model: m}
      "2": {prompt: a.md, model: m, tools: [x, "y@1.2"], recall: {documents: false}}
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts/a.md").write_text("Be good.\n")
    (tmp_path / "agents.yaml").write_text(GOOD)
    return tmp_path


def parse(folder, text):
    return parse_agents(yaml.safe_load(text), folder / "prompts")


def test_the_shipped_agents_are_valid_and_in_their_order():
    agents = AgentCatalog(SHIPPED).agents
    assert list(agents.current) == ["assistant", "bench", "bench-recall", "plain", "price-check"]
    assistant, bench, plain = agents.get(""), agents.get("bench"), agents.get("plain")
    assert assistant.tools == ("calculator", "current_time", "search_documents", "http_fetch", "python")
    assert (assistant.temperature, assistant.max_tokens) == (0.2, 2000)
    assert assistant.recall is not None
    assert (bench.tools, bench.recall, plain.tools, plain.recall) == (("calculator",), None, (), None)
    assert agents.get("bench-recall").recall is not None


@pytest.mark.parametrize(
    ("version", "problem"),
    [
        ("experiment: {name: tone}", "experiment.arm: Field required"),
        ("strategy: supervisor", "asks other agents, and no other strategy does"),
        ("agents: [{name: two}]", "asks other agents, and no other strategy does"),
        ("strategy: supervisor, agents: [{name: three}]", "agents.one: there is no agent 'three' to ask"),
        ("strategy: supervisor, agents: [{name: two}, {name: two, mode: hand_over}]", "agents: 'two' stands twice"),
        ("strategy: supervisor, agents: [{name: two, share: 0}]", "share"),
        ("strategy: supervisor, agents: [{name: one}]", "in a circle: one -> one"),
        ("strategy: supervisor, agents: [{name: two}], tools: [delegate_to_two]", "that the strategy supervisor brings itself"),
        ("strategy: supervisor, agents: [{name: t.o}]", "cannot be asked"),
    ],
)
def test_what_cannot_be_asked_is_refused_with_the_file(folder, version, problem):
    text = f"""
agents:
  one: {{current: "1", versions: {{"1": {{prompt: a.md, model: m, {version}}}}}}}
  two: {{current: "1", versions: {{"1": {{prompt: a.md, model: m}}}}}}
  t.o: {{current: "1", versions: {{"1": {{prompt: a.md, model: m}}}}}}
"""
    with pytest.raises(ConfigProblem) as refused:
        parse(folder, text)
    assert any(problem in line for line in refused.value.problems), refused.value.problems


def test_a_circle_over_several_agents_and_older_versions_is_named(folder):
    text = """
agents:
  one: {current: "1", versions: {"1": {prompt: a.md, model: m, strategy: supervisor, agents: [{name: two}]}}}
  two:
    current: "2"
    versions:
      "1": {prompt: a.md, model: m, strategy: supervisor, agents: [{name: one}]}
      "2": {prompt: a.md, model: m}
"""
    with pytest.raises(ConfigProblem) as refused:
        parse(folder, text)
    assert refused.value.problems == ["agents.yaml: agents ask each other in a circle: one -> two -> one"]


def test_the_current_version_serves_and_the_others_stay_known(folder):
    agents = parse(folder, GOOD)
    assert (agents.get("one").version, agents.get("one").prompt) == ("2", "Be good.")
    assert {a.version for a in agents.by_digest.values()} == {"1", "2"}
    with pytest.raises(NotFound):
        agents.get("two")


def test_a_definition_survives_being_stored(folder):
    agent = parse(folder, GOOD).get("one")
    assert AgentDefinition.decode(agent.encode()) == agent


def test_the_documented_agent_is_valid_and_every_field_is_documented():
    text = (testing.ROOT / "docs/agents.md").read_text()
    example = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    definition = parse_agents(example, SHIPPED / "prompts").get("")
    assert (definition.strategy, definition.loop_guard.repeats, definition.limits.max_total_tokens) == ("plan_execute", 4, 200_000)
    fields = {*AgentDefinition.model_fields, *type(definition.limits).model_fields, *type(definition.loop_guard).model_fields}
    assert not [name for name in fields - {"name", "version"} if f"`{name}" not in text and f"{name}:" not in text]


def test_every_strategy_that_an_agent_may_name_is_there():
    assert get_args(Strategy) == tuple(STRATEGIES)


def test_what_came_later_is_left_out_of_a_definition_that_does_not_use_it(folder):
    agent = parse(folder, GOOD).get("one")
    stored = orjson.loads(agent.encode())
    fields = {
        "name",
        "version",
        "description",
        "prompt",
        "model",
        "tools",
        "recall",
        "temperature",
        "max_tokens",
        "continues_prefix",
        "limits",
    }
    assert (set(stored), set(stored["limits"])) == (fields, {"deadline_s", "max_steps", "max_tool_calls", "max_cost_microusd"})
    # What a later version adds is left unread.
    assert AgentDefinition.decode(orjson.dumps({**stored, "from_a_later_version": 1})) == agent
    text = "{prompt: a.md, model: m, tools: [x, y], sequential_tools: [y], tool_concurrency: 2, strategy: plan_execute}"
    working = parse(folder, f'agents: {{one: {{current: "1", versions: {{"1": {text}}}}}}}').get("one")
    assert AgentDefinition.decode(working.encode()) == working
    assert (working.most_at_once, agent.most_at_once) == (2, None)


def test_every_problem_is_listed(folder):
    bad = """
agents:
  one:
    current: "9"
    versions:
      "1": {prompt: missing.md, model: m}
      "2": {prompt: ../secret.md, model: m}
      "3": {prompt: a.md, model: m, tools: [x, "x@2"]}
"""
    with pytest.raises(ConfigProblem) as caught:
        parse(folder, bad)
    problems = "\n".join(caught.value.problems)
    for part in ("current", "missing.md", "secret.md", "stands twice"):
        assert part in problems


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ("prompt: a.md, model: m, temperature: 3", "temperature"),
        ("prompt: a.md, model: m, max_tokens: 0", "max_tokens"),
        ("prompt: a.md, model: m, limits: {max_steps: 0}", "max_steps"),
        ("prompt: a.md, model: m, limits: {deadline_s: -1}", "deadline_s"),
        ("prompt: a.md, model: m, colour: red", "colour"),
        ("prompt: a.md", "model"),
        ("prompt: a.md, model: m, tools: ['a b']", "tools"),
        ("prompt: a.md, model: m, limits: {max_total_tokens: 0}", "max_total_tokens"),
        ("prompt: a.md, model: m, strategy: guesswork", "strategy"),
        ("prompt: a.md, model: m, tool_concurrency: 0", "tool_concurrency"),
        ("prompt: a.md, model: m, loop_guard: {repeats: 1}", "repeats"),
        ("prompt: a.md, model: m, tools: [x], sequential_tools: [y]", "sequential_tools: 'y'"),
        ("prompt: a.md, model: m, parallel_tool_calls: false, tool_concurrency: 2", "tool_concurrency"),
        ("prompt: a.md, model: m, strategy: plan_execute, tools: [update_plan]", "agents.one.versions.1.tools: 'update_plan'"),
        # Whatever the strategy: what was written down of a call is read by its name.
        ("prompt: a.md, model: m, tools: [update_plan]", "the strategy plan_execute brings itself: have the tool executor serve this one"),
        ("prompt: a.md, model: m, tools: ['request_approval@2']", "agents.one.versions.1.tools: 'request_approval' is the name of a tool"),
        ("prompt: a.md, model: m, tools: [delegate_to_b]", "the strategy supervisor brings itself: have the tool executor serve this one"),
        ("prompt: a.md, model: m, tools: [hand_over_to_b]", "under another name"),
        ("prompt: a.md, model: m, strategy: plan_execute, approval: {tools: {update_plan: {}}}", "approval.tools: 'update_plan'"),
        ("prompt: a.md, model: m, strategy: supervisor, agents: [{name: b}], approval: {tools: {hand_over_to_b: {}}}", "'hand_over_to_b'"),
    ],
)
def test_a_wrong_value_is_named(folder, change, where):
    with pytest.raises(ConfigProblem) as caught:
        parse(folder, f'agents: {{one: {{current: "1", versions: {{"1": {{{change}}}}}}}}}')
    assert any(where in problem for problem in caught.value.problems)


def test_a_change_of_either_file_takes_effect_and_a_bad_one_does_not(folder):
    catalog = AgentCatalog(folder)
    (folder / "prompts/a.md").write_text("Be better.")
    catalog.reload()
    assert catalog.agents.get("one").prompt == "Be better."
    (folder / "prompts/a.md").write_text("   ")
    catalog.reload()
    assert catalog.agents.get("one").prompt == "Be better."
    # What was refused is told for as long as it is.
    assert (catalog.name, "prompts/a.md is empty" in "".join(catalog.problem)) == ("agents.yaml", True)
    (folder / "prompts/a.md").write_text("Be good again.")
    (folder / "agents.yaml").write_text(GOOD.replace("one:", "uno:"))
    catalog.reload()
    assert catalog.agents.get("uno").prompt == "Be good again."
    assert not catalog.problem
    (folder / "agents.yaml").write_text("agents: [")
    catalog.reload()
    assert catalog.agents.get("uno")
    assert catalog.problem


def test_a_start_is_refused_with_the_problems_of_all_files(folder, identities, tmp_path):
    (folder / "agents.yaml").write_text("agents: {}")
    (folder / "policies.yaml").write_text("sets: 3")
    bad_key = tmp_path / "bad.pem"
    bad_key.write_text("no key")
    settings = Settings(
        state_url="redis://127.0.0.1:1/0", config_dir=folder, identity_keys_file=identities.keys_file, identity_signing_key_file=bad_key
    )
    with pytest.raises(StartRefused) as caught:
        build(settings)
    problems = "\n".join(caught.value.problems)
    for part in ("agents.yaml", "policies.yaml", "bad.pem"):
        assert part in problems


def test_settings_name_what_is_missing():
    problems = "\n".join(Settings(lease_s=1.0, heartbeat_s=0.9).problems())
    for part in ("STATE_URL", "LLM_GATEWAY_ADDRESS", "MEMORY_ADDRESS", "IDENTITY_SIGNING_KEY_FILE", "HEARTBEAT_S"):
        assert part in problems


def test_documented_defaults():
    settings = Settings()
    assert (settings.lease_s, settings.heartbeat_s, settings.sweep_s, settings.crash_budget) == (3.0, 1.0, 0.5, 3)
    assert (settings.grpc_port, settings.metrics_port, settings.watch_heartbeat_s) == (50051, 9462, 10.0)
    assert 0.02 <= settings.delta_batch_s <= 0.05


@pytest.mark.parametrize(
    ("asked", "agent", "tier", "expected"),
    [
        (Limits(), {}, TierPolicy(), Limits()),
        (Limits(), {"max_steps": 5}, TierPolicy(max_steps=9), Limits(max_steps=5)),
        (Limits(max_steps=7), {"max_steps": 5}, TierPolicy(max_steps=9), Limits(max_steps=5)),
        (Limits(max_steps=3), {"max_steps": 5}, TierPolicy(max_steps=9), Limits(max_steps=3)),
        (Limits(max_steps=70), {}, TierPolicy(max_steps=9), Limits(max_steps=9)),
        (Limits(), {}, TierPolicy(task_seconds=60), Limits(deadline_s=60)),
        (Limits(deadline_s=0.5), {}, TierPolicy(task_seconds=60), Limits(deadline_s=0.5)),
        (Limits(max_cost_microusd=9), {}, TierPolicy(), Limits(max_cost_microusd=9)),
        (Limits(max_total_tokens=9), {"max_total_tokens": 8}, TierPolicy(max_run_tokens=7), Limits(max_total_tokens=7)),
    ],
)
def test_limits_are_bounded(asked, agent, tier, expected):
    definition = AgentDefinition(name="a", version="1", description="", prompt="p", model="m", limits=agent)
    assert bounded(asked, definition, tier) == expected
