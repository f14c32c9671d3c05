"""Scripted conversations from YAML: what the model says at each step, whatever it is asked.

    scenarios:
      five-steps:                       # by header x-sim-scenario: five-steps
        match:                          # or by either of these, each a regular expression
          model: sim-five-steps         # the whole model name, without faults
          text: five-steps              # anywhere in the last user message
        steps:
          - tool_calls: [{tool: calculator, arguments: {expression: 1+1}}]
          - text: "Done: {results}"     # {results} are the values that the tools of this turn brought
            fault: cut_after=5          # a step may fail, always

The step is the number of assistant messages since the last user message, so a script needs no memory here, survives
retries and restarts, and its last step repeats.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import yaml

from services.simulator import faults
from services.simulator.chat_request import ChatRequest
from services.simulator.faults import Faults
from services.simulator.refusals import Refused
from services.simulator.tool_fit import PlannedCall
from services.simulator.tool_results import results_of_turn

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
MAX_SCENARIOS = 1_000


class BadScenarios(Exception):
    """Scenarios that cannot be used; `problems` has a line for each thing wrong."""

    def __init__(self, problems: Sequence[str]):
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True)
class Step:
    """What the model does at one step: calls tools, or says a text, with or without a fault."""

    text: str
    calls: tuple[PlannedCall, ...]
    faults: Faults


@dataclass(frozen=True, slots=True)
class Scenario:
    """A script and what it is chosen by."""

    name: str
    model: re.Pattern[str] | None
    pattern: re.Pattern[str] | None
    steps: tuple[Step, ...]

    def step_for(self, request: ChatRequest) -> Step:
        """The step that this request is at."""
        done = sum(message.role == "assistant" for message in request.messages[request.asked_at + 1 :])
        if done and request.prefilled:
            # The beginning of this step's own answer.
            done -= 1
        return self.steps[min(done, len(self.steps) - 1)]


def step_text(step: Step, request: ChatRequest) -> str:
    """The step's text with the tools' results put in."""
    if "{results}" not in step.text:
        return step.text
    results = results_of_turn(request.messages, max(request.asked_at, 0))
    return step.text.replace("{results}", ", ".join(result.error or result.value for result in results))


class ScenarioBook:
    """All scenarios by name. Those set by the control endpoint come before those from files, later ones first."""

    def __init__(self, scenarios: Sequence[Scenario] = ()):
        self._scenarios: dict[str, Scenario] = {scenario.name: scenario for scenario in scenarios}

    def names(self) -> list[str]:
        """The names, in alphabetical order."""
        return sorted(self._scenarios)

    def find(self, wanted: str | None, model: str, asked: str) -> Scenario | None:
        """The scenario that a request is under; raises Refused (400) for a name that does not exist."""
        if wanted is not None:
            named = self._scenarios.get(wanted)
            if named is None:
                raise Refused(f"Unknown scenario '{wanted}'. Known: {', '.join(self.names())}.", code="unknown_scenario")
            return named
        for scenario in reversed(self._scenarios.values()):
            if scenario.model and scenario.model.fullmatch(model):
                return scenario
            if scenario.pattern and scenario.pattern.search(asked[-20_000:]):
                return scenario
        return None

    def put(self, name: str, body: Mapping[str, Any]) -> Scenario:
        """Add or replace one scenario; raises Refused (400) with every problem."""
        problems: list[str] = []
        scenario = _scenario(name, body, "scenario", problems)
        if scenario is None or problems:
            raise Refused("; ".join(problems), code="invalid_scenario")
        if name not in self._scenarios and len(self._scenarios) >= MAX_SCENARIOS:
            raise Refused(f"There are {MAX_SCENARIOS} scenarios already; delete some.", status=409)
        self._scenarios.pop(name, None)
        self._scenarios[name] = scenario
        return scenario

    def remove(self, name: str) -> bool:
        """Delete one scenario; whether there was one."""
        return self._scenarios.pop(name, None) is not None


def load(folders: Sequence[Path]) -> ScenarioBook:
    """Read every *.yaml in the folders, later ones winning; raises BadScenarios with every problem of every file."""
    problems: list[str] = []
    found: list[Scenario] = []
    for folder in folders:
        if not folder.is_dir():
            problems.append(f"{folder}: no such folder")
            continue
        for path in sorted(folder.glob("*.yaml")):
            found.extend(_read(path, problems))
    if problems:
        raise BadScenarios(problems)
    return ScenarioBook(found)


def _read(path: Path, problems: list[str]) -> list[Scenario]:
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        problems.append(f"{path}: {error}")
        return []
    entries = document.get("scenarios") if isinstance(document, dict) else None
    if not isinstance(entries, dict):
        problems.append(f"{path}: 'scenarios' must be a mapping of names to scenarios")
        return []
    read = (_scenario(str(name), body, f"{path}: {name}", problems) for name, body in entries.items())
    return [scenario for scenario in read if scenario is not None]


def _scenario(name: str, body: Any, where: str, problems: list[str]) -> Scenario | None:
    if not _NAME.fullmatch(name):
        problems.append(f"{where}: a name has lower-case letters, digits, '-' and '_', at most 64")
    if not isinstance(body, Mapping) or body.keys() - {"match", "steps", "description"}:
        problems.append(f"{where}: has 'steps' and may have 'match' and 'description'")
        return None
    match = body.get("match") or {}
    if not isinstance(match, Mapping) or match.keys() - {"model", "text"}:
        problems.append(f"{where}: 'match' may have 'model' and 'text'")
        match = {}
    model = _pattern(match.get("model"), f"{where}: match.model", problems)
    text = _pattern(match.get("text"), f"{where}: match.text", problems)
    steps = body.get("steps")
    if not isinstance(steps, list) or not steps:
        problems.append(f"{where}: 'steps' must be a list with at least one step")
        return None
    read = (_step(step, f"{where}: step {number}", problems) for number, step in enumerate(steps, 1))
    return Scenario(name, model, text, tuple(step for step in read if step is not None))


def _pattern(value: Any, where: str, problems: list[str]) -> re.Pattern[str] | None:
    if value is None:
        return None
    if not isinstance(value, str):
        problems.append(f"{where} must be a string")
        return None
    try:
        return re.compile(value, re.IGNORECASE)
    except re.error as error:
        problems.append(f"{where} is no regular expression: {error}")
        return None


def _step(step: Any, where: str, problems: list[str]) -> Step | None:
    if not isinstance(step, Mapping) or not step or step.keys() - {"text", "tool_calls", "fault"}:
        problems.append(f"{where}: has any of 'text', 'tool_calls' and 'fault', and nothing else")
        return None
    text, calls, fault = step.get("text", ""), step.get("tool_calls", []), step.get("fault", "")
    if not isinstance(text, str):
        problems.append(f"{where}: 'text' must be a string")
        text = ""
    read: list[PlannedCall] = []
    for call in calls if isinstance(calls, list) else [None]:
        arguments = call.get("arguments", {}) if isinstance(call, Mapping) else None
        if not isinstance(call, Mapping) or not isinstance(call.get("tool"), str) or not isinstance(arguments, Mapping):
            problems.append(f"{where}: 'tool_calls' is a list of {{tool: name, arguments: {{…}}}}")
            break
        try:
            orjson.dumps(dict(arguments))
        except orjson.JSONEncodeError as error:
            problems.append(f"{where}: the arguments of '{call['tool']}' are no JSON: {error}")
        read.append(PlannedCall(call["tool"], dict(arguments)))
    try:
        parsed = faults.parse_mapping(fault, where) if isinstance(fault, Mapping) else faults.parse_text(str(fault), where)
    except Refused as refused:
        problems.append(f"{where}: {refused.message}")
        parsed = faults.NO_FAULTS
    return Step(text, tuple(read), parsed)
