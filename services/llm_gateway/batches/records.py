"""What is known of a file and of a batch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from services.common.identity import Principal
from services.llm_gateway.money import NOTHING, Usage

SCHEMA_VERSION = 1
VALIDATING, FAILED, IN_PROGRESS, FINALIZING = "validating", "failed", "in_progress", "finalizing"
COMPLETED, EXPIRED, CANCELLING, CANCELLED = "completed", "expired", "cancelling", "cancelled"
ENDED = frozenset({FAILED, COMPLETED, EXPIRED, CANCELLED})
# Purposes of files: what callers upload, and what batches leave behind.
INPUT, OUTPUT = "batch", "batch_output"


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One file. Times in Unix milliseconds, `expires_ms` 0 for never; `user` and `key_id` are those who made it."""

    id: str
    tenant: str
    user: str
    key_id: str
    name: str
    purpose: str
    size_bytes: int
    created_ms: int
    expires_ms: int = 0

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready form, as it is stored."""
        return {
            "schema_version": SCHEMA_VERSION, "id": self.id, "tenant": self.tenant, "user": self.user, "key_id": self.key_id,
            "name": self.name, "purpose": self.purpose, "size_bytes": self.size_bytes, "created_ms": self.created_ms,
            "expires_ms": self.expires_ms,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "FileRecord":
        """The inverse of `as_dict`."""
        return cls(
            data["id"], data["tenant"], data["user"], data["key_id"], data["name"], data["purpose"], data["size_bytes"],
            data["created_ms"], data.get("expires_ms", 0),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class BatchSpec:
    """What was asked for, which never changes. `output_kept_s` is the life of the result files, 0 for the setting's.

    The lines are executed for `principal`; with `key_checked` its key must still be valid when a line starts.
    """

    endpoint: str
    input_file_id: str
    completion_window: str
    window_s: int
    principal: Principal
    key_checked: bool
    metadata: Mapping[str, str] | None = None
    output_kept_s: int = 0

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready form, as it is stored."""
        return {
            "endpoint": self.endpoint, "input_file_id": self.input_file_id, "completion_window": self.completion_window,
            "window_s": self.window_s, "principal": self.principal.as_dict(), "key_checked": self.key_checked,
            "metadata": None if self.metadata is None else dict(self.metadata), "output_kept_s": self.output_kept_s,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "BatchSpec":
        """The inverse of `as_dict`."""
        return cls(
            data["endpoint"], data["input_file_id"], data["completion_window"], data["window_s"], Principal.from_dict(data["principal"]),
            data["key_checked"], data.get("metadata"), data.get("output_kept_s", 0),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a batch is. `usage` is what the lines that have an answer were charged with."""

    total: int = 0
    completed: int = 0
    failed: int = 0
    usage: Usage = NOTHING


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """One batch. `times_ms` are Unix milliseconds by the status that was entered; `errors` are {code, line, message, param}.

    `provider` is what must be known to go on with a batch that a provider executes. An `erased` batch ends as soon as can be and leaves
    nothing behind.
    """

    id: str
    tenant: str
    spec: BatchSpec
    status: str
    created_ms: int
    expires_ms: int
    times_ms: Mapping[str, int] = field(default_factory=dict)
    errors: Sequence[Mapping[str, Any]] = ()
    progress: Progress = Progress()
    model: str = ""
    output_file_id: str = ""
    error_file_id: str = ""
    provider: Mapping[str, Any] = field(default_factory=dict)
    erased: bool = False

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.status in ENDED


def usage_as_list(usage: Usage) -> list[int]:
    """The stored form of a usage; its cost in pico-USD."""
    return [
        usage.input, usage.output, usage.cached_input, usage.reasoning, usage.cost_picousd, int(usage.estimated), usage.cache_write
    ]  # fmt: skip


def usage_from_list(values: Sequence[int]) -> Usage:
    """The inverse of `usage_as_list`."""
    return Usage(values[0], values[1], values[2], values[3], values[4], bool(values[5]), values[6])
