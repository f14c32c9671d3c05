"""What a caller asks of a run, and all that can be told to be wrong with it before anybody else is asked."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from services.common.errors import FieldViolation, InvalidInput
from services.common.idempotency import fingerprint, key_violations
from services.orchestrator.client_asks import (
    choice_violations,
    format_violations,
    message_violations,
    size_of,
    tools_violations,
)
from services.orchestrator.records import ID_PATTERN, Limits

ROLES = frozenset({"system", "user", "assistant", "tool"})
MOST_INPUT_BYTES = 512 * 1024
MOST_MESSAGES = 512
MOST_LABELS = 16
MOST_LABEL_BYTES = 512
MOST_PRIORITY = 10
MOST_AHEAD_S = 366 * 86_400


@dataclass(frozen=True, slots=True)
class RunRequest:
    """What a caller asks for; empty values mean the defaults."""

    thread_id: str = ""
    agent: str = ""
    # As of turn/said.py.
    input: tuple[Mapping[str, Any], ...] = ()
    limits: Limits = field(default_factory=Limits)
    run_id: str = ""
    idempotency_key: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    append_only: bool = False
    temperature: float | None = None
    max_tokens: int | None = None
    on_disconnect: str = ""
    priority: int = 0
    start_ms: int = 0
    reset_memory: bool = False
    # Goes on with the run that its thread was forked in; `input` is that run's.
    continues: bool = False
    # What becomes of it where its thread is busy: reject, interrupt, rollback, steer; '' for its turn.
    on_busy: str = ""
    # '' for the one of the process that accepts it.
    track: str = ""
    # As of RunSpec.
    client_tools: tuple[Mapping[str, Any], ...] = ()
    tool_choice: str = ""
    response_format: str = ""

    def violations(self) -> list[FieldViolation]:
        """All that is wrong with it."""
        found = [
            *id_violations("thread_id", self.thread_id),
            *id_violations("run_id", self.run_id),
            *label_violations(self.metadata),
            *key_violations(self.idempotency_key),
        ]
        if not self.input:
            found.append(FieldViolation("input", "must hold at least one message"))
        elif self.input[-1]["role"] not in ("user", "tool"):
            found.append(FieldViolation("input", "the last message must be of role user, or of role tool"))
        elif self.input[-1]["role"] == "user" and not self.input[-1]["text"].strip() and not self.input[-1].get("images"):
            found.append(FieldViolation("input", "the last message is empty"))
        if len(self.input) > MOST_MESSAGES:
            found.append(FieldViolation("input", f"must hold at most {MOST_MESSAGES} messages"))
        if sum(map(size_of, self.input)) > MOST_INPUT_BYTES:
            found.append(FieldViolation("input", f"must hold at most {MOST_INPUT_BYTES} bytes of text"))
        found += [
            FieldViolation(f"input[{i}].role", "must be system, user, assistant or tool")
            for i, m in enumerate(self.input)
            if m["role"] not in ROLES
        ]
        found += [*message_violations(self.input), *tools_violations(self.client_tools)]
        found += [*choice_violations(self.tool_choice), *format_violations(self.response_format)]
        if self.on_busy == "steer" and self.input and len(self.input[-1]) > len(("role", "text")):
            found.append(FieldViolation("on_busy", "must not be steer for an input that is more than text"))
        if self.temperature is not None and not 0 <= self.temperature <= 2:
            found.append(FieldViolation("temperature", "must be from 0 to 2"))
        if self.max_tokens is not None and self.max_tokens < 1:
            found.append(FieldViolation("max_tokens", "must be at least 1"))
        if not -MOST_PRIORITY <= self.priority <= MOST_PRIORITY:
            found.append(FieldViolation("priority", f"must be from -{MOST_PRIORITY} to {MOST_PRIORITY}"))
        if self.on_busy and self.start_ms:
            found.append(FieldViolation("on_busy", "must be enqueue for a run that has a start_at"))
        if self.start_ms < 0 or self.start_ms / 1000 - time.time() > MOST_AHEAD_S:
            found.append(FieldViolation("start_at", "must lie within 366 days from now"))
        for name in ("deadline_s", "max_steps", "max_tool_calls", "max_cost_microusd", "max_total_tokens"):
            if getattr(self.limits, name) < 0:
                found.append(FieldViolation(f"limits.{name.removesuffix('_s')}", "must be positive"))
        return found

    def fingerprint(self) -> str:
        """Digest of all but the idempotency key."""
        body: list[Any] = [
            self.thread_id, self.agent, list(self.input), self.run_id, dict(self.metadata), self.append_only, self.temperature,
            self.max_tokens, self.on_disconnect, self.limits.deadline_s, self.limits.max_steps, self.limits.max_tool_calls,
            self.limits.max_cost_microusd,
        ]  # fmt: skip
        # Keys that a replica of the version before took hold on.
        if self.limits.max_total_tokens:
            body.append(self.limits.max_total_tokens)
        if self.priority or self.start_ms:
            # Only where they are asked for: the same request keeps its digest over versions.
            body += [self.priority, self.start_ms]
        if self.reset_memory:
            body.append("reset_memory")
        if self.continues:
            body.append("continues")
        if self.on_busy:
            body.append(self.on_busy)
        if self.client_tools or self.tool_choice or self.response_format:
            body.append([list(self.client_tools), self.tool_choice, self.response_format])
        return fingerprint("CreateRun", orjson.dumps(body, option=orjson.OPT_SORT_KEYS))


def id_violations(name: str, value: str) -> list[FieldViolation]:
    """What is wrong with an id; empty is well."""
    if value and not ID_PATTERN.fullmatch(value):
        return [FieldViolation(name, "must be 1 to 128 characters out of A-Z a-z 0-9 . _ : -")]
    return []


def label_violations(labels: Mapping[str, str]) -> list[FieldViolation]:
    """What is wrong with a caller's own labels."""
    if len(labels) > MOST_LABELS or any(len(k.encode()) + len(v.encode()) > MOST_LABEL_BYTES for k, v in labels.items()):
        return [FieldViolation("metadata", f"must hold at most {MOST_LABELS} entries of {MOST_LABEL_BYTES} bytes")]
    return []


def checked_labels(labels: Mapping[str, str]) -> Mapping[str, str]:
    """`labels`, a caller's own. Raises InvalidInput."""
    if violations := label_violations(labels):
        raise InvalidInput("the request is not valid", violations=violations)
    return labels


def checked_id(name: str, value: str) -> str:
    """`value`, which names something. Raises InvalidInput."""
    if not value or not ID_PATTERN.fullmatch(value):
        raise InvalidInput.field(name, "must be 1 to 128 characters out of A-Z a-z 0-9 . _ : -")
    return value
