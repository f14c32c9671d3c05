"""An interrupt of a run as it is stored: what is asked, of whom, and what they did with it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

import orjson

from services.orchestrator.records import ENDED, Posted, RunRef

TOOL_CALL, OUTCOME_UNKNOWN = "tool_call", "outcome_unknown"
# How an interrupt is answered; `open` is none of them, and `cancelled` is never stored: the run has ended without an answer.
OPEN = "open"
COMMAND = "decision"


@dataclass(frozen=True, slots=True)
class Who:
    """Who may decide: users, holders of scopes, the user of the run; not those who passed their right on."""

    users: tuple[str, ...] = ()
    scopes: tuple[str, ...] = ()
    requester: bool = True
    barred: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Decision:
    """One thing that somebody did. `verb`: approve, edit, reject, delegate, done, failed, retry, cancel_run, expire.

    `key` and `print_` are of the caller's idempotency key and what came with it.
    """

    verb: str
    user: str
    at_ms: int
    digest: str = ""
    reason: str = ""
    to: str = ""
    key: str = ""
    print_: str = ""


@dataclass(frozen=True, slots=True)
class Interrupt:
    """A question to a person. `arguments` is canonical JSON and `digest` its SHA-256; `outcome` is `open` until it is answered, then
    approved, rejected, expired, done, failed, retry or cancel_run. `again` counts the retries that people have asked for before."""

    interrupt_id: str
    kind: str
    run_id: str
    thread_id: str
    step: int
    call: int
    call_id: str
    requester: Mapping[str, Any]
    tool: str
    version: str
    arguments: str
    digest: str
    schema: str
    reason: str
    created_ms: int
    expires_ms: int
    on_expiry: str
    who: Who = Who()
    four_eyes: bool = False
    again: int = 0
    outcome: str = OPEN
    output: str = ""
    decisions: tuple[Decision, ...] = ()
    # As it was read, for whoever replaces it.
    raw: bytes = field(default=b"", compare=False)

    @property
    def open(self) -> bool:
        """Whether nobody has answered it."""
        return self.outcome == OPEN

    @property
    def user(self) -> str:
        """The user of the run."""
        return self.requester["user"]

    def approvers(self) -> list[str]:
        """Who has approved the arguments as they are now."""
        return [d.user for d in self.decisions if d.verb in ("approve", "edit") and d.digest == self.digest]

    def encode(self) -> bytes:
        """JSON."""
        data = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("raw", "who", "decisions")}
        data["v"] = 1
        data["who"] = {f.name: list(found) if isinstance(found := getattr(self.who, f.name), tuple) else found for f in fields(Who)}
        data["decisions"] = [{f.name: getattr(decision, f.name) for f in fields(Decision)} for decision in self.decisions]
        return orjson.dumps(data)

    @classmethod
    def decode(cls, raw: bytes) -> "Interrupt":
        """The inverse of `encode`; unknown keys are ignored, so that N reads what N+1 wrote."""
        data = orjson.loads(raw)
        known = {f.name: data[f.name] for f in fields(cls) if f.name in data}
        known["who"] = Who(
            **{f.name: tuple(v) if isinstance(v := data["who"][f.name], list) else v for f in fields(Who) if f.name in data["who"]}
        )
        known["decisions"] = tuple(Decision(**{f.name: d[f.name] for f in fields(Decision) if f.name in d}) for d in data["decisions"])
        return cls(**known, raw=bytes(raw))

    def answered(self, outcome: str, decision: Decision, **changes: Any) -> "Interrupt":
        """This interrupt with its answer."""
        return replace(self, outcome=outcome, decisions=(*self.decisions, decision), **changes)

    def command(self) -> bytes:
        """The command that tells the run of the answer."""
        last = self.decisions[-1]
        return orjson.dumps({
            "interrupt_id": self.interrupt_id, "kind": self.kind, "step": self.step, "call": self.call, "outcome": self.outcome,
            "arguments": self.arguments, "digest": self.digest, "edited": any(d.verb == "edit" for d in self.decisions),
            "by": self.approvers() or [last.user], "reason": last.reason, "output": self.output, "on_expiry": self.on_expiry,
        })  # fmt: skip

    def raised_event(self) -> bytes:
        """Data of interrupt_raised."""
        return orjson.dumps({
            "interrupt_id": self.interrupt_id, "kind": self.kind, "call_id": self.call_id, "tool": self.tool, "version": self.version,
            "arguments": orjson.Fragment(self.arguments), "arguments_digest": self.digest, "schema": orjson.Fragment(self.schema),
            "reason": self.reason, "expires_at_ms": self.expires_ms, "on_expiry": self.on_expiry, "four_eyes": self.four_eyes,
            "approvers": {"users": self.who.users, "scopes": self.who.scopes, "requester": self.who.requester and not self.four_eyes},
        })  # fmt: skip

    def decided_event(self) -> bytes:
        """Data of interrupt_updated and interrupt_resolved: the last decision, and how the interrupt stands."""
        last = self.decisions[-1]
        return orjson.dumps({
            "interrupt_id": self.interrupt_id, "kind": self.kind, "call_id": self.call_id, "tool": self.tool, "outcome": self.outcome,
            "verb": last.verb, "by": last.user, "reason": last.reason, "delegated_to": last.to, "decided_at_ms": last.at_ms,
            "arguments": orjson.Fragment(self.arguments), "arguments_digest": self.digest,
        })  # fmt: skip


class Settled(NamedTuple):
    """What came of replacing an interrupt: done, none (there is none), changed (it is another by now), expired, young (its time has
    not passed), ended or cancelled (the run). `posted` where the run was sent a command; `status` of the run."""

    verdict: str
    status: str = ""
    posted: Posted | None = None


class Listed(NamedTuple):
    """An entry of a tenant's list of interrupts."""

    thread_id: str
    interrupt_id: str
    position: int

    def run(self, tenant: str) -> RunRef:
        """The run that asks."""
        return RunRef(tenant, self.thread_id, self.interrupt_id.partition("/")[0])


class Standing(NamedTuple):
    """How far a run is: its status, "" where there is none, and whether somebody has asked for its end."""

    status: str = ""
    cancel: bool = False

    @property
    def over(self) -> bool:
        """Whether nothing more will happen to it."""
        return not self.status or self.status in ENDED
