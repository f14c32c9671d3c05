"""What a call tells while it runs and how it ends."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any

import orjson

from services.tool_executor.failures import ToolFailure, Violation


class Outcome(StrEnum):
    """How a call ended. UNKNOWN: it may or may not have taken effect; that is never guessed."""

    DONE = "done"
    FAILED = "failed"
    UNKNOWN = "unknown"
    RUNNING = "running"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a tool is: a share from 0 to 1 (negative: not known) and one line for the user."""

    fraction: float
    message: str


@dataclass(frozen=True, slots=True)
class PartialOutput:
    """Text to append to what the tool has said so far."""

    text: str


@dataclass(frozen=True, slots=True)
class Warned:
    """A degradation that the user should be able to see."""

    code: str
    user_message: str
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Citation:
    """A source that the output refers to by `citation_id`."""

    citation_id: str
    document_id: str
    document_version: int
    title: str
    char_start: int
    char_end: int
    content_hash: str
    heading: str


@dataclass(frozen=True, slots=True)
class Failure:
    """The error of a result, as it is stored and sent."""

    code: str
    agent_message: str
    developer_message: str = ""
    retryable: bool = False
    retry_after_s: float | None = None
    violations: Sequence[Violation] = ()

    @classmethod
    def of(cls, failure: ToolFailure) -> "Failure":
        """The stored form of a raised failure."""
        return cls(
            failure.code, failure.agent_message, failure.developer_message, failure.retryable, failure.retry_after_s, failure.violations
        )


@dataclass(frozen=True, slots=True)
class CallResult:
    """The end of a call. `output` is JSON, empty unless done; `duration_s` is the time on the executor."""

    outcome: Outcome
    output: bytes = b""
    error: Failure | None = None
    version: str = ""
    attempts: int = 0
    replayed: bool = False
    duration_s: float = 0.0
    citations: Sequence[Citation] = ()

    def meta(self) -> bytes:
        """Everything but the output, as JSON; a reader ignores fields that it does not know."""
        content: dict[str, Any] = {
            "outcome": self.outcome,
            "version": self.version,
            "attempts": self.attempts,
            "duration_s": round(self.duration_s, 6),
        }
        if self.error is not None:
            content["error"] = asdict(self.error)
        if self.citations:
            content["citations"] = [asdict(c) for c in self.citations]
        return orjson.dumps(content)

    @classmethod
    def from_meta(cls, meta: bytes, output: bytes) -> "CallResult":
        """The inverse of `meta`, marked as replayed."""
        content = orjson.loads(meta)
        error = content.get("error")
        if error is not None:
            known = {name: error[name] for name in Failure.__dataclass_fields__ if name in error}
            known["violations"] = [Violation(v["path"], v["keyword"], v.get("expected")) for v in error.get("violations", ())]
            error = Failure(**known)
        citations = [
            Citation(**{name: c[name] for name in Citation.__dataclass_fields__ if name in c}) for c in content.get("citations", ())
        ]
        return cls(
            Outcome(content["outcome"]),
            output,
            error,
            content["version"],
            content["attempts"],
            replayed=True,
            duration_s=content["duration_s"],
            citations=citations,
        )

    def as_replay(self) -> "CallResult":
        """The same, marked as the outcome of an earlier call."""
        return replace(self, replayed=True)


Event = Progress | PartialOutput | Warned
