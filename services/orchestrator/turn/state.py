"""What a turn knows of itself: the part that is checkpointed, and the part that lives with its owner."""

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from services.common.identity import Principal
from services.common.rpc import context as call_context
from services.orchestrator.agents import AgentDefinition
from services.orchestrator.approvals.ports import Interrupts
from services.orchestrator.blobs.ports import Keeper
from services.orchestrator.ports import Children, Memory, Message, Models, ToolDefinition, ToolOutcome, Tools
from services.orchestrator.records import Command, RunRef, RunSpec
from services.orchestrator.turn.guardrails import AllowAll, Guardrails
from services.orchestrator.writer import RunWriter

COUNTED = ("input_tokens", "output_tokens", "cached_input_tokens", "reasoning_tokens", "cost_microusd", "model_calls", "tool_calls")
# Name, among the parts of a turn's state, of the agent's status with which the run was parked.
RESTING = "resting"
# Less than this is no time for a call; the run's deadline counts as passed.
NO_TIME_S = 0.05


class RunStopped(Exception):
    """The run ends with an error that its user should read."""

    def __init__(self, reason: str, message: str, retryable: bool = False) -> None:
        super().__init__(message)
        self.reason, self.message, self.retryable = reason, message, retryable


class RunParked(Exception):
    """The run waits for somebody or something else: until a command comes or, where it is not 0, `until_ms` has passed."""

    def __init__(self, until_ms: int = 0) -> None:
        super().__init__("the run is parked")
        self.until_ms = until_ms


@dataclass(slots=True)
class PendingCall:
    """A tool call that was asked for and has no result yet. `number` counts within its step; `repeatable`: read-only or idempotent.

    `started`: it may have been sent, and this is written before it is. `alone`: nothing runs beside it, and nothing overtakes
    it. `over`: it is one more than the run may make, so it is refused. `read_only`: it changes nothing.
    """

    number: int
    call_id: str
    name: str
    version: str
    arguments: str
    repeatable: bool
    timeout_s: float
    started: bool = True
    alone: bool = False
    over: bool = False
    read_only: bool = False


@dataclass(slots=True)
class TurnState:
    """The checkpoint, apart from the messages, which are kept beside it. Phases: prepare, model, tools.

    `spent` is what the newest model call took: tokens and micro-USD. `asked` counts the tool calls by the digest of what they
    ask, `fresh` are those of this step that ask something new, `idle_steps` the steps in a row that brought nothing new, and
    `warned_step` is the step after which the model was warned of that. `plan` belongs to the strategy; `inbox` is the
    last command absorbed, `parts` what each further part keeps under a name of its own.
    """

    phase: str = "prepare"
    step: int = 0
    started_step: int = 0
    usage: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTED, 0))
    active_ms: int = 0
    citations: dict[str, Any] = field(default_factory=dict)
    pending: list[PendingCall] = field(default_factory=list)
    tool_log: list[dict[str, Any]] = field(default_factory=list)
    spent: tuple[int, int] = (0, 0)
    asked: dict[str, int] = field(default_factory=dict)
    fresh: list[int] = field(default_factory=list)
    idle_steps: int = 0
    warned_step: int = 0
    plan: dict[str, Any] = field(default_factory=dict)
    inbox: int = 0
    parts: dict[str, Any] = field(default_factory=dict)

    def encode(self) -> bytes:
        """JSON."""
        data = {
            "v": 1,
            "phase": self.phase,
            "step": self.step,
            "started_step": self.started_step,
            "usage": self.usage,
            "active_ms": self.active_ms,
            "citations": self.citations,
            "tool_log": self.tool_log,
            "pending": [[p.number, p.call_id, p.name, p.version, p.arguments, p.repeatable, p.timeout_s] for p in self.pending],
            # In places of their own: a replica of the version before reads the rest.
            "spent": self.spent,
            "guard": [self.asked, self.fresh, self.idle_steps, self.warned_step],
        }
        marks = {
            name: numbers
            for name, numbers in (
                ("waiting", [p.number for p in self.pending if not p.started]),
                ("alone", [p.number for p in self.pending if p.alone]),
                ("over", [p.number for p in self.pending if p.over]),
                ("read_only", [p.number for p in self.pending if p.read_only]),
            )
            if numbers
        }
        if marks:
            data["marks"] = marks
        if self.plan:
            data["plan"] = self.plan
        if self.inbox:
            data["inbox"] = self.inbox
        if parts := {name: part for name, part in self.parts.items() if part}:
            data["parts"] = parts
        return orjson.dumps(data)

    @classmethod
    def decode(cls, data: Mapping[str, Any]) -> "TurnState":
        """The inverse of `encode`; an empty mapping is a turn that has not begun."""
        if not data:
            return cls()
        usage = {**dict.fromkeys(COUNTED, 0), **data["usage"]}
        marks = data.get("marks", {})
        waiting, alone, over, harmless = (frozenset(marks.get(name, ())) for name in ("waiting", "alone", "over", "read_only"))
        pending = [
            replace(PendingCall(*p), started=p[0] not in waiting, alone=p[0] in alone, over=p[0] in over, read_only=p[0] in harmless)
            for p in data["pending"]
        ]
        asked, fresh, idle_steps, warned_step = data.get("guard") or ({}, [], 0, 0)
        tokens, cost = data.get("spent") or (0, 0)
        return cls(
            data["phase"], data["step"], data["started_step"], usage, data["active_ms"], data["citations"], pending, data["tool_log"],
            (tokens, cost), asked, fresh, idle_steps, warned_step, data.get("plan", {}),
            data.get("inbox", 0), data.get("parts", {}),
        )  # fmt: skip


@dataclass(slots=True)
class Services:
    """The ports that a turn uses."""

    models: Models
    tools: Tools
    memory: Memory
    # None where nobody can be asked.
    interrupts: Interrupts | None = None
    # Set once there is what accepts runs, which needs the worker first.
    children: Children | None = None
    guardrails: Guardrails = field(default_factory=AllowAll)
    # None where nothing keeps blobs, as among the fakes of some tests.
    blobs: Keeper | None = None


@dataclass(slots=True)
class Turn:
    """One turn in the hands of its owner.

    `delivered` is text of the current step that was shown and stays valid; `wait_for_memory` waits, for a short time,
    until earlier turns of the thread are stored and answers whether they are; `mint` gives the run's internal token. `leaving`
    says that the process goes away: what is at work ends, and nothing else begins. `tools` are all that the run may use.
    `carried` is what it was given of a run that was cut off, as of turn/carried.py. `stored` counts the messages that are durable.
    `commands` are those not absorbed yet; a stage that wants one at once listens for its kind in `listening` while it is at work.
    `intent` tells of the next model call what turn/intent.py writes, None where it does not know yet; `announced` is the last step that
    this owner announced, `meant` and `called` the model calls that it told of and made last, `hashed` how far the messages are digested.
    """

    ref: RunRef
    spec: RunSpec
    agent: AgentDefinition
    state: TurnState
    messages: list[Message]
    writer: RunWriter
    services: Services
    principal: Principal
    mint: Callable[[], str]
    wait_for_memory: Callable[[], Awaitable[bool]] | None = None
    delivered: str = ""
    began: float = field(default_factory=time.monotonic)
    tools: list[ToolDefinition] | None = None
    leaving: Callable[[], bool] = lambda: False
    carried: Mapping[str, Any] = field(default_factory=dict)
    stored: int = field(init=False)
    commands: list[Command] = field(default_factory=list)
    listening: dict[str, Callable[[Command], None]] = field(default_factory=dict)
    # Takes the result of a call and ends the step with its last one, where a strategy has steps of its own.
    settle: Callable[["Turn", PendingCall, ToolOutcome], None] | None = None
    intent: Callable[["Turn"], Mapping[str, str] | None] | None = None
    announced: int = 0
    meant: Mapping[str, str] = field(default_factory=dict)
    called: Mapping[str, str] = field(default_factory=dict)
    hashed: tuple[int, Message | None, Any] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.stored = len(self.messages)

    @property
    def heard(self) -> int:
        """Number of the last command that its owner knows of."""
        return max(self.state.inbox, self.commands[-1].number if self.commands else 0)

    def hear(self, commands: Sequence[Command]) -> None:
        """Takes commands that came just now."""
        for command in commands:
            if command.number > self.heard:
                self.commands.append(command)
                if (listener := self.listening.get(command.kind)) is not None:
                    listener(command)

    def unstored(self) -> list[bytes]:
        """The messages that are not durable yet, which the caller writes with the next checkpoint; none before the conversation is
        prepared."""
        fresh = [message.encode() for message in self.messages[self.stored :]]
        self.stored = len(self.messages)
        return fresh

    def remaining_s(self) -> float | None:
        """Active time left; None without a limit."""
        limit = self.spec.limits.deadline_s
        return None if not limit else limit - self.active_ms() / 1000

    def active_ms(self) -> int:
        """Active time spent by all owners, this one included."""
        return self.state.active_ms + int((time.monotonic() - self.began) * 1000)

    def check_time(self) -> None:
        """Raises RunStopped when the active time is used up."""
        left = self.remaining_s()
        if left is not None and left <= NO_TIME_S:
            limit = self.spec.limits.deadline_s
            raise RunStopped("DEADLINE_EXCEEDED", f"The run reached its limit of {limit:g} s active time.", retryable=True)

    def enter_call(self) -> None:
        """Makes the run's context the current one, with its deadline and a fresh token."""
        left = self.remaining_s()
        call_context.enter(
            call_context.CallContext(
                request_id=self.spec.request_id,
                canary=self.spec.canary,
                principal=self.principal,
                token=self.mint(),
                deadline=None if left is None else time.monotonic() + left,
            )
        )

    def tell_rest(self, status: str, detail: str = "") -> None:
        """Tells what the run waits for, which is about to be parked; once, however often somebody looks after it meanwhile."""
        if self.writer.status.told[0] or self.state.parts.get(RESTING) != [status, detail]:
            self.writer.tell(status, detail)

    def snapshot(self, *, parked: bool = False) -> bytes:
        """The checkpoint as of now. That of a run that is `parked` tells the next owner what was said of it last."""
        if not parked:
            self.state.parts.pop(RESTING, None)
        elif self.writer.status.told[0]:
            self.state.parts[RESTING] = list(self.writer.status.told)
        now = time.monotonic()
        self.state.active_ms += int((now - self.began) * 1000)
        self.began = now
        return self.state.encode()
