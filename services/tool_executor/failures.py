"""The error taxonomy of tool calls: what each code means for a repeat, and whether nothing can have happened.

Source: design page "tools", section Error taxonomy. docs/tools.md shows the table to users.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Kind:
    """A code's meaning.

    `retryable`: the same call may work later. `certain`: the tool has certainly not done its work. `retried`: this
    service tries again by itself, where the tool is read-only or idempotent.
    """

    retryable: bool
    certain: bool = True
    retried: bool = False


KINDS: Mapping[str, Kind] = {
    "input.invalid": Kind(False),
    "auth.scope_missing": Kind(False),
    "policy.denied": Kind(False),
    "policy.approval_required": Kind(False),
    "policy.approval_rejected": Kind(False),
    "policy.approval_expired": Kind(True),
    "limit.concurrency": Kind(True),
    "limit.breaker_open": Kind(True),
    "upstream.bad_request": Kind(False),
    "upstream.auth": Kind(False),
    "upstream.not_found": Kind(False),
    "upstream.conflict": Kind(False),
    "upstream.rate_limited": Kind(True),
    "upstream.server": Kind(True, certain=False, retried=True),
    "transport.timeout": Kind(True, certain=False, retried=True),
    "transport.unreachable": Kind(True, retried=True),
    # The connection broke after the request had gone out.
    "transport.broken": Kind(True, certain=False, retried=True),
    # The caller went away, or the service is being stopped.
    "transport.cancelled": Kind(True, certain=False),
    # The process that made the call is gone.
    "transport.lost": Kind(False, certain=False),
    "sandbox.deadline": Kind(False),
    "sandbox.oom": Kind(False),
    "sandbox.killed": Kind(True),
    "output.blocked": Kind(False),
    "output.invalid": Kind(False, certain=False),
    "output.too_large": Kind(False, certain=False),
    "internal": Kind(False, certain=False),
}


@dataclass(frozen=True, slots=True)
class Violation:
    """One violation of a JSON Schema. `expected` is what the schema asks for; the rejected value is never repeated."""

    path: str
    keyword: str
    expected: Any = None


class ToolFailure(Exception):
    """A tool that did not deliver. Tools raise it; it ends as the error of a ToolResult, never as a gRPC error.

    `agent_message` helps the model to go on; `developer_message` holds neither secrets nor argument values.
    """

    def __init__(
        self,
        code: str,
        agent_message: str,
        *,
        developer_message: str = "",
        retry_after_s: float | None = None,
        violations: Sequence[Violation] = (),
        certain: bool | None = None,
    ) -> None:
        super().__init__(f"{code}: {agent_message}")
        kind = KINDS[code]
        self.code = code
        self.agent_message = agent_message
        self.developer_message = developer_message
        self.retryable = kind.retryable
        self.retried = kind.retried
        self.retry_after_s = retry_after_s
        self.violations = tuple(violations)
        self.certain = kind.certain if certain is None else certain
