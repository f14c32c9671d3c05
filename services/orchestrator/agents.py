"""agents.yaml: agents, their versions, and the prompts that they name."""

import asyncio
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import orjson
import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from services.common.config import ConfigFile, ConfigProblem
from services.common.errors import NotFound
from services.orchestrator.approvals.policy import ApprovalPolicy
from services.orchestrator.graphs import find_cycles
from services.orchestrator.workflows.checks import workflow_problems
from services.orchestrator.workflows.definition import REQUEST_APPROVAL, Workflow

LOOK_EVERY_S = 1.0
# The tool with which an agent of the strategy plan_execute writes its plan.
UPDATE_PLAN = "update_plan"
# Prefixes of the tools with which a supervisor has another agent work for it, or take over.
DELEGATE, HAND_OVER = "delegate_to_", "hand_over_to_"
# The tool with which an agent ends its run and passes the conversation on to a person.
HAND_OFF = "hand_off_to_human"
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Tool = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}(@[A-Za-z0-9.+_-]{1,32})?$")]
Strategy = Literal["react", "plan_execute", "supervisor", "workflow"]
Rung = Literal["without_tools", "without_memory", "shorter_context"]
# What every provider takes as the name of a tool.
_CALLABLE = re.compile(r"[A-Za-z0-9_-]{1,64}")
log = structlog.get_logger("bulkhead.agents")


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Recall(_Strict):
    """What memory is asked for before a turn. Recent turns always come."""

    documents: bool = True
    memories: bool = True
    token_budget: Annotated[int, Field(ge=1, le=200_000)] = 2_000


class AgentLimits(_Strict):
    """Bounds of a run; what is absent is bounded by the tier alone."""

    deadline_s: Annotated[float, Field(gt=0)] | None = None
    max_steps: Annotated[int, Field(ge=1)] | None = None
    max_tool_calls: Annotated[int, Field(ge=1)] | None = None
    max_cost_microusd: Annotated[int, Field(ge=1)] | None = None
    max_total_tokens: Annotated[int, Field(ge=1)] | None = None


class LoopGuard(_Strict):
    """When a run is taken to go round in circles: so many equal tool calls, or so many steps in a row that bring nothing new."""

    repeats: Annotated[int, Field(ge=2, le=1_000)] = 3
    idle_steps: Annotated[int, Field(ge=2, le=1_000)] = 5


class HandOff(_Strict):
    """Who takes over where the agent cannot go on: `target` for those who route it, `label` and `text` for the user."""

    target: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}$")]
    label: Annotated[str, Field(min_length=1, max_length=100)] = "a person"
    text: Annotated[str, Field(min_length=1, max_length=2_000)] = "I cannot go on alone here. {label} will take over this conversation."


class Degradation(_Strict):
    """What a run may give up when a part fails, before it fails itself. The rungs that are declared by a value are off without it.

    `stale_answers_s`: how old an answer of before may be that is given where every model fails, in seconds. `reset_memory`: the session
    is forgotten where a model answers only without it.
    """

    rungs: Sequence[Rung] = ("without_tools", "without_memory", "shorter_context")
    stale_answers_s: Annotated[float, Field(ge=0, le=30 * 86_400)] = 0.0
    cheaper_model: Annotated[str, Field(max_length=256)] = ""
    reset_memory: bool = False
    rephrase: Annotated[str, Field(max_length=2_000)] = ""
    hand_off: HandOff | None = None


class ChildAgent(_Strict):
    """Another agent that a supervisor may ask: how, what for, and its share of what is left of the run's limits."""

    name: Name
    mode: Literal["delegate", "hand_over", "both"] = "delegate"
    description: Annotated[str, Field(max_length=1_000)] = ""
    share: Annotated[float, Field(gt=0, le=1)] = 0.5


class Experiment(_Strict):
    """The experiment that a version takes part in, and as which of its arms."""

    name: Name
    arm: Name


class _Working(_Strict):
    """How a version works, where it is not as all do."""

    strategy: Strategy = "react"
    sequential_tools: Sequence[Name] = ()
    parallel_tool_calls: bool = True
    tool_concurrency: Annotated[int, Field(ge=1, le=128)] | None = None
    loop_guard: LoopGuard = LoopGuard()
    approval: ApprovalPolicy = ApprovalPolicy()
    degradation: Degradation = Degradation()
    workflow: Workflow | None = None
    agents: Sequence[ChildAgent] = ()
    experiment: Experiment | None = None

    @property
    def most_at_once(self) -> int | None:
        """Tool calls of one answer that run side by side; None without a bound."""
        return self.tool_concurrency if self.parallel_tool_calls else 1


class _Version(_Working):
    description: str = ""
    prompt: str
    model: str
    tools: Sequence[Tool] = ()
    recall: Recall | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = 0.2
    max_tokens: Annotated[int, Field(ge=1)] | None = 2_000
    continues_prefix: bool = False
    limits: AgentLimits = AgentLimits()


class _Agent(_Strict):
    current: str
    versions: Annotated[Mapping[Name, _Version], Field(min_length=1)]


class _File(_Strict):
    agents: Annotated[Mapping[Name, _Agent], Field(min_length=1)]


class AgentDefinition(_Working):
    """One version of an agent with its prompt's text: what a run is pinned to.

    `recall` None: no context from memory, and turns are not remembered. `continues_prefix`: the model goes on from the
    text of a last assistant message.
    """

    # What a version after this one writes is left unread.
    model_config = ConfigDict(frozen=True, extra="ignore")
    name: str
    version: str
    description: str
    prompt: str
    model: str
    tools: tuple[str, ...] = ()
    sequential_tools: tuple[str, ...] = ()
    recall: Recall | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    continues_prefix: bool = False
    limits: AgentLimits = AgentLimits()

    def encode(self) -> bytes:
        """Canonical JSON. What came later and is as by default is left out, for a replica of the version before and for the digest."""
        data = self.model_dump()
        usual = _Working().model_dump()
        data = {name: value for name, value in data.items() if name not in usual or value != usual[name]}
        if self.workflow is not None:
            data["workflow"] = self.workflow.model_dump(exclude_defaults=True)
        if data["limits"]["max_total_tokens"] is None:
            del data["limits"]["max_total_tokens"]
        return orjson.dumps(data, option=orjson.OPT_SORT_KEYS)

    @classmethod
    def decode(cls, raw: bytes) -> "AgentDefinition":
        """The inverse of `encode`."""
        return cls.model_validate(orjson.loads(raw))


def arm_of(agent: AgentDefinition, asked_by: Mapping[str, Any] | None) -> dict[str, str]:
    """The `experiment` and the `arm` of a run: those of the version that works, else those of the run that asked for it, if one did."""
    if agent.experiment is not None:
        return {"experiment": agent.experiment.name, "arm": agent.experiment.arm}
    return {name: (asked_by or {}).get(name, "") for name in ("experiment", "arm")}


class Agents:
    """All agents of one valid configuration, in its order."""

    def __init__(self, current: Mapping[str, AgentDefinition], every: Sequence[AgentDefinition]) -> None:
        self.current = dict(current)
        self.digests = {(a.name, a.version): hashlib.sha256(a.encode()).hexdigest() for a in every}
        self.by_digest = {self.digests[a.name, a.version]: a for a in every}

    def get(self, name: str) -> AgentDefinition:
        """The newest version of an agent; an empty name means the first. Raises NotFound."""
        if not name:
            return next(iter(self.current.values()))
        if name not in self.current:
            raise NotFound(f"there is no agent {name[:64]!r}", reason="AGENT_NOT_FOUND", metadata={"agent": name[:64]})
        return self.current[name]


def parse_agents(data: Any, prompts: Path) -> Agents:
    """Validates the content of agents.yaml against the folder of prompts. Raises ConfigProblem with all that is wrong."""
    try:
        content = _File.model_validate(data)
    except ValidationError as error:
        raise ConfigProblem([f"agents.yaml: {'.'.join(str(p) for p in e['loc'])}: {e['msg']}" for e in error.errors()]) from error
    problems: list[str] = []
    current: dict[str, AgentDefinition] = {}
    every: list[AgentDefinition] = []
    for name, agent in content.agents.items():
        if agent.current not in agent.versions:
            problems.append(f"agents.yaml: agents.{name}.current: there is no version {agent.current!r}")
        for version, found in agent.versions.items():
            where = f"agents.yaml: agents.{name}.versions.{version}"
            names = [tool.partition("@")[0] for tool in found.tools]
            problems += [f"{where}.tools: {tool!r} stands twice" for tool in sorted({t for t in names if names.count(t) > 1})]
            problems += [f"{where}.{problem}" for problem in _contradictions(found, names)]
            try:
                prompt = _prompt(prompts, found.prompt)
            except ValueError as error:
                problems.append(f"{where}.prompt: {error}")
                continue
            fixed = {"prompt": prompt, "tools": tuple(found.tools), "sequential_tools": tuple(found.sequential_tools)}
            fixed["workflow"] = found.workflow
            definition = AgentDefinition(name=name, version=version, **{**found.model_dump(), **fixed})
            every.append(definition)
            if version == agent.current:
                current[name] = definition
    problems += _circles(content)
    if problems:
        raise ConfigProblem(problems)
    return Agents(current, every)


def _contradictions(version: _Version, names: Sequence[str]) -> list[str]:
    found = [f"sequential_tools: {name!r} is none of its tools" for name in version.sequential_tools if name not in names]
    if not version.parallel_tool_calls and (version.tool_concurrency or 1) > 1:
        found.append("tool_concurrency: must be 1 or absent where parallel_tool_calls is false")
    for name in names:
        if strategy := brought_by(name):
            found.append(
                f"tools: {name!r} is the name of a tool that the strategy {strategy} brings itself: have the tool executor serve this one"
                " under another name"
            )
    asked = [child.name for child in version.agents]
    if (version.strategy == "supervisor") != bool(asked):
        found.append("agents: the strategy supervisor asks other agents, and no other strategy does")
    found += [f"agents: {name!r} stands twice" for name in sorted({name for name in asked if asked.count(name) > 1})]
    for child in version.agents:
        tools = [prefix + child.name for prefix in (DELEGATE, HAND_OVER)]
        if not _CALLABLE.fullmatch(tools[0]) or not _CALLABLE.fullmatch(tools[1]):
            found.append(f"agents: {child.name!r} cannot be asked: its name has to be of at most 51 letters, digits, _ and -")
    if (version.strategy == "workflow") != (version.workflow is not None):
        found.append("workflow: the strategy workflow works off one, and no other strategy does")
    if version.workflow is not None:
        found += [f"workflow.{problem}" for problem in workflow_problems(version.workflow, version.tools)]
    own = {
        HAND_OFF,
        UPDATE_PLAN if version.strategy == "plan_execute" else "",
        *(p + name for name in asked for p in (DELEGATE, HAND_OVER)),
    }
    found += [f"approval.tools: {name!r} is asked of nobody" for name in sorted(own & set(version.approval.tools))]
    if HAND_OFF in names and version.degradation.hand_off is None:
        found.append(f"tools: {HAND_OFF!r} needs degradation.hand_off, which says to whom")
    return found


def brought_by(name: str) -> str:
    """The strategy that brings a tool of this name itself, '' where none does. Such a name is no other tool's, whatever the agent's own
    strategy: what was written down of a call is read by its name, also by a later version of the agent."""
    if name.startswith((DELEGATE, HAND_OVER)):
        return "supervisor"
    return {UPDATE_PLAN: "plan_execute", REQUEST_APPROVAL: "workflow"}.get(name, "")


def _circles(content: _File) -> list[str]:
    """Agents that ask agents that are not there, or that come to ask themselves. A child is always of the current version, but runs of
    every version may still be at work."""
    edges = {
        name: sorted({child.name for version in agent.versions.values() for child in version.agents})
        for name, agent in content.agents.items()
    }  # fmt: skip
    found = [
        f"agents.yaml: agents.{name}: there is no agent {asked!r} to ask"
        for name, every in edges.items()
        for asked in every
        if asked not in edges
    ]
    return found + [f"agents.yaml: agents ask each other in a circle: {' -> '.join([*way, way[0]])}" for way in find_cycles(edges)]


def _prompt(folder: Path, name: str) -> str:
    if "/" in name or name.startswith("."):
        raise ValueError(f"{name!r} must name a file of the folder prompts")
    try:
        text = (folder / name).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        raise ValueError(f"prompts/{name} cannot be read") from None
    if not text:
        raise ValueError(f"prompts/{name} is empty")
    return text


class AgentCatalog:
    """The watched agents.yaml and its prompts: a change of either takes effect, an invalid one is refused whole."""

    def __init__(self, config_dir: Path) -> None:
        """Raises StartRefused with every problem."""
        self._prompts = config_dir / "prompts"
        self._file = ConfigFile(config_dir / "agents.yaml", lambda data: parse_agents(data, self._prompts))
        self._path = config_dir / "agents.yaml"
        self._seen = self._stamp()
        self._prompts_problem: list[str] = []

    @property
    def name(self) -> str:
        """The file's name."""
        return self._path.name

    @property
    def problem(self) -> list[str]:
        """What is wrong with the newest agents.yaml or prompts; empty while they are in force."""
        return self._prompts_problem or self._file.problem

    @property
    def agents(self) -> Agents:
        """The last good configuration."""
        return self._file.current

    def _stamp(self) -> list[tuple[str, int, int]]:
        stats = [(p.name, p.stat()) for p in sorted(self._prompts.glob("*.md"))]
        return [(name, stat.st_mtime_ns, stat.st_size) for name, stat in stats]

    def reload(self) -> None:
        """Looks once."""
        seen = self._stamp()
        if seen == self._seen:
            self._file.reload()
            return
        self._seen = seen
        try:
            # Made anew, since the file itself may be as it was while a prompt is not.
            self._file = ConfigFile(self._path, lambda data: parse_agents(data, self._prompts))
        except Exception as error:
            if not hasattr(error, "problems"):
                raise
            self._prompts_problem = error.problems
            log.error("config_refused", file="prompts", problems=error.problems)
            return
        self._prompts_problem = []
        log.info("config_reloaded", file="prompts")

    async def watch(self) -> None:
        """Reloads on change, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            self.reload()
