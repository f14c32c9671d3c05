"""Lines of the ledger and their share of the day's report. Pure."""

import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson

from services.llm_gateway.accounting.plans import Plan, report_field
from services.llm_gateway.money import Usage
from services.llm_gateway.ports import Ask

_REPORT = struct.Struct("<8d")
# What callers add to a line is a note and no store.
MOST_METADATA_BYTES = 4_096
LOST, CORRECTED = "lost", "corrected"


class Counts(NamedTuple):
    """What the lines of one day add up to for one key, user, team and model; in the order of the Lua side."""

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    cost_nanousd: int = 0
    estimated: int = 0
    failed: int = 0

    def packed(self) -> bytes:
        """The form that the Lua side adds up."""
        return _REPORT.pack(*self)

    @classmethod
    def unpacked(cls, raw: bytes) -> "Counts":
        """The inverse of `packed`."""
        return cls(*map(int, _REPORT.unpack(raw)))


class Entry(NamedTuple):
    """A line and its counts, as a settlement carries them."""

    line: bytes
    counts: bytes


class _Call(NamedTuple):
    """What a reservation says of its call, in the order of `about_of` and with the names of `Ask`."""

    call_id: str
    number: int
    run_id: str
    run_budget_microusd: int | None
    group: str
    deployment_id: str
    provider: str
    operation: str


def about_of(plan: Plan, ask: Ask) -> bytes:
    """What a reservation says of itself, so that anybody can write its line when it is lost: two JSON texts, one a line."""
    run_budget = ask.run_budget_microusd if ask.run_id else None
    fields = (ask.call_id, ask.number, ask.run_id, run_budget, ask.group, ask.deployment_id, ask.provider, ask.operation)
    return orjson.dumps(fields) + b"\n" + plan.about


def settled(plan: Plan, ticket_id: str, ask: Ask, usage: Usage, status: str, latency_s: float, metadata: Mapping[str, Any] | None) -> Entry:
    """The line of an attempt that ended in time."""
    line = _line(ticket_id, ask, usage, ask.cost_nanousd, status, round(latency_s * 1000, 1))
    if metadata:
        sealed = plan.subject.seal(metadata)
        line["sealed" if len(sealed) <= MOST_METADATA_BYTES else "dropped"] = sealed if len(sealed) <= MOST_METADATA_BYTES else "metadata"
    return Entry(plan.line + orjson.dumps(line)[1:], _counts(usage, failed=status != "ok"))


def corrected(
    plan: Plan, ticket_id: str, ask: Ask, usage: Usage, status: str, booked_nanousd: int, booked_tokens: int, *, billed: bool
) -> Entry:
    """The line that turns what was booked as lost into what it was; its numbers are differences. `billed` is false for a release."""
    line = {
        **_line(ticket_id + "/corrected", ask, usage, 0, CORRECTED),
        "corrects": ticket_id,
        # A lost line counts the whole bound as input.
        "input_tokens": usage.input - booked_tokens,
        "cost_nanousd": usage.cost_nanousd - booked_nanousd,
        "outcome": status,
    }
    counts = Counts(
        0 if billed else -1,
        usage.input - booked_tokens,
        usage.output,
        usage.cached_input,
        usage.reasoning,
        usage.cost_nanousd - booked_nanousd,
        int(usage.estimated) - 1,
        int(billed and status != "ok") - 1,
    )
    return Entry(plan.line + orjson.dumps(line)[1:], counts.packed())


class Lost(NamedTuple):
    """What a lost reservation says of itself (see `about_of`)."""

    keys: list[str]
    run_id: str
    run_budget_microusd: int | None
    report: bytes
    report_rest: bytes
    line: bytes
    counts: bytes


def lost(ticket_id: str, about: bytes, cost_nanousd: int, tokens: int) -> Lost:
    """The line of a reservation whose process died: booked at its bound, all of its tokens as input, flagged as estimated."""
    fields, who = (orjson.loads(part) for part in about.split(b"\n", 1))
    call = _Call(*fields)
    usage = Usage(input=tokens, cost_picousd=cost_nanousd * 1000, estimated=True)
    line = {
        "schema_version": 1,
        **{name: who[name] for name in ("tenant", "user", "team", "key")},
        "model": call.group,
        **_line(ticket_id, call, usage, cost_nanousd, LOST),
    }
    report, rest = report_field(who["key"], who["user"], who["team"], call.group), report_field("", "", "", call.group)
    counts = _counts(usage, failed=True)
    return Lost(who["keys"], call.run_id, call.run_budget_microusd, report, rest, orjson.dumps(line), counts)


def _line(line_id: str, call: Ask | _Call, usage: Usage, reserved_nanousd: int, status: str, latency_ms: float = 0) -> dict[str, Any]:
    """What every line says of an attempt; whose it is and which model group it asked stand before it."""
    return {
        "id": line_id,
        "call_id": call.call_id,
        "attempt": call.number,
        "run": call.run_id,
        "deployment": call.deployment_id,
        "provider": call.provider,
        "operation": call.operation,
        "input_tokens": usage.input,
        "output_tokens": usage.output,
        "cached_tokens": usage.cached_input,
        "cache_write_tokens": usage.cache_write,
        "reasoning_tokens": usage.reasoning,
        "cost_nanousd": usage.cost_nanousd,
        "reserved_nanousd": reserved_nanousd,
        "estimated": usage.estimated,
        "status": status,
        "latency_ms": latency_ms,
    }


def _counts(usage: Usage, *, failed: bool) -> bytes:
    return _REPORT.pack(
        1,
        usage.input,
        usage.output,
        usage.cached_input,
        usage.reasoning,
        usage.cost_nanousd,
        1 if usage.estimated else 0,
        1 if failed else 0,
    )
