"""What a turn knows of itself: the part that is checkpointed, and the part that lives with its owner."""

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from services.common.identity import Principal
from services.common.rpc import context as call_context
from services.orchestrator.agents import AgentDefinition
from services.orchestrator.ports import Memory, Message, Models, ToolDefinition, Tools
from services.orchestrator.records import RunRef, RunSpec
from services.orchestrator.writer import RunWriter

COUNTED = ("input_tokens", "output_tokens", "cached_input_tokens", "reasoning_tokens", "cost_microusd", "model_calls", "tool_calls")
# Less than this is no time for a call; the run's deadline counts as passed.
NO_TIME_S = 0.05


class RunStopped(Exception):
    """The run ends with an error that its user should read."""

    def __init__(self, reason: str, message: str, retryable: bool = False) -> None:
        super().__init__(message)
        self.reason, self.message, self.retryable = reason, message, retryable


@dataclass(slots=True)
class PendingCall:
    """A tool call that was asked for and has no result yet. `number` counts within its step; `repeatable`: read-only or idempotent."""

    number: int
    call_id: str
    name: str
    version: str
    arguments: str
    repeatable: bool
    timeout_s: float


@dataclass(slots=True)
class TurnState:
    """The checkpoint, apart from the messages, which are kept beside it. Phases: prepare, model, tools."""

    phase: str = "prepare"
    step: int = 0
    started_step: int = 0
    usage: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTED, 0))
    active_ms: int = 0
    citations: dict[str, Any] = field(default_factory=dict)
    pending: list[PendingCall] = field(default_factory=list)
    tool_log: list[dict[str, Any]] = field(default_factory=list)

    def encode(self) -> bytes:
        """JSON."""
        return orjson.dumps(
            {
                "v": 1,
                "phase": self.phase,
                "step": self.step,
                "started_step": self.started_step,
                "usage": self.usage,
                "active_ms": self.active_ms,
                "citations": self.citations,
                "tool_log": self.tool_log,
                "pending": [[p.number, p.call_id, p.name, p.version, p.arguments, p.repeatable, p.timeout_s] for p in self.pending],
            }
        )

    @classmethod
    def decode(cls, data: Mapping[str, Any]) -> "TurnState":
        """The inverse of `encode`; an empty mapping is a turn that has not begun."""
        if not data:
            return cls()
        usage = {**dict.fromkeys(COUNTED, 0), **data["usage"]}
        return cls(
            data["phase"], data["step"], data["started_step"], usage, data["active_ms"], data["citations"],
            [PendingCall(*p) for p in data["pending"]], data["tool_log"],
        )  # fmt: skip


@dataclass(slots=True)
class Services:
    """The ports that a turn uses."""

    models: Models
    tools: Tools
    memory: Memory


@dataclass(slots=True)
class Turn:
    """One turn in the hands of its owner.

    `delivered` is text of the current step that was shown and stays valid; `wait_for_memory` waits, for a short time,
    until earlier turns of the thread are stored and answers whether they are; `mint` gives the run's internal token.
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
    in_flight: dict[int, PendingCall] = field(default_factory=dict)

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

    def snapshot(self) -> bytes:
        """The checkpoint as of now."""
        now = time.monotonic()
        self.state.active_ms += int((now - self.began) * 1000)
        self.began = now
        return self.state.encode()
