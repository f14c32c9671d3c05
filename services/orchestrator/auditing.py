"""The audit record of a run: made from the run's own record after its end, before anybody forgets the run.

The end itself is the entry of the outbox: it is written in one step with the run's result, and the run stays in the sweeper's list
until this has been done. The record's id follows from the run's, so a second time changes nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import orjson
import structlog
from opentelemetry.metrics import get_meter

from services.common.audit import AuditStream, digest, user_hash, whom
from services.common.identity import Principal
from services.orchestrator.agents import AgentCatalog, AgentDefinition
from services.orchestrator.approvals.records import Interrupt
from services.orchestrator.records import RunRecord, RunRef
from services.orchestrator.turn.execute_tools import LEFT
from services.orchestrator.turn.guarding import verdicts_of

AUDIT_SCHEMA = 1
# More tool calls than these are counted and not listed.
MOST_TOOLS = 200
# More decisions than these, the oldest first, are not listed; a run has few.
MOST_DECISIONS = 200
log = structlog.get_logger("bulkhead.audit")
_appended = get_meter("bulkhead.orchestrator").create_counter(
    "bulkhead_audit_records_total", description="Audit records of runs that were appended, by how the run ended."
)


class Records(Protocol):
    """As RunStore."""

    async def run(self, ref: RunRef) -> RunRecord | None:
        """As RunStore.run."""
        ...

    async def definition(self, digest: str) -> bytes | None:
        """As RunStore.definition."""
        ...

    async def interrupts(self, ref: RunRef) -> list[Interrupt]:
        """As InterruptStore.interrupts."""
        ...


class Auditing:
    """Appends the records of ended runs."""

    def __init__(self, runs: Records, agents: AgentCatalog, stream: AuditStream) -> None:
        self._runs, self._agents, self._stream = runs, agents, stream

    async def __call__(self, ref: RunRef) -> None:
        """Appends the record of a run that has ended, unless that was done. Raises Overloaded."""
        record = await self._runs.run(ref)
        if record is None or not record.ended:
            return
        made = record_of(ref, record, await self._model(record.spec.agent_digest), await self._runs.interrupts(ref))
        if await self._stream.append(ref.tenant, f"run/{ref.run_id}", made, of_run=True):
            _appended.add(1, {"status": record.status})
            log.debug("audit_appended", run_id=ref.run_id)

    async def _model(self, digest_: str) -> str:
        known = self._agents.agents.by_digest.get(digest_)
        if known is not None:
            return known.model
        raw = await self._runs.definition(digest_)
        return AgentDefinition.decode(raw).model if raw else ""


def decisions_of(tenant: str, interrupts: Sequence[Interrupt]) -> list[dict[str, Any]]:
    """What people, or the time, decided of the calls of a run, oldest first; the user '' is the time."""
    found = [(decision.at_ms, interrupt, decision) for interrupt in interrupts for decision in interrupt.decisions]
    return [
        {
            "id": interrupt.interrupt_id, "decision": decision.verb, "user_hash": user_hash(tenant, decision.user) if decision.user else "",
            "arguments_hash": decision.digest, "decided_ms": at_ms,
        }
        for at_ms, interrupt, decision in sorted(found, key=lambda one: one[0])[:MOST_DECISIONS]
    ]  # fmt: skip


def record_of(ref: RunRef, record: RunRecord, model: str, interrupts: Sequence[Interrupt] = ()) -> dict[str, Any]:
    """The record: ids, digests, numbers, and names of the configuration; nothing that a person has written."""
    spec, result, state = record.spec, record.result, record.state
    usage: Mapping[str, Any] = (result or state).get("usage", {})
    # With those that were at work at its end.
    tools = [*state.get("tool_log", []), *state.get("parts", {}).get(LEFT, [])]
    return {
        "schema_version": AUDIT_SCHEMA, "kind": "run", "run_id": ref.run_id, "session": ref.thread_id, "request_id": spec.request_id,
        **whom(Principal.from_dict(dict(spec.principal))), "agent": spec.agent, "agent_version": spec.agent_version,
        "agent_digest": spec.agent_digest, "model": model, "status": record.status, "reason": result.get("error", {}).get("reason", ""),
        "finish_reason": result.get("finish_reason", ""), "input_hash": digest(orjson.dumps(list(spec.input), option=orjson.OPT_SORT_KEYS)),
        "output_hash": digest(result.get("output_text", "")), "usage": {name: int(value) for name, value in usage.items()},
        "tools": [
            {"name": call["name"], "arguments_hash": digest(call["arguments"]), "output_hash": digest(call["output"])}
            for call in tools[:MOST_TOOLS]
        ],
        "tool_count": len(tools), "guard_verdicts": verdicts_of(state), "approvals": decisions_of(ref.tenant, interrupts),
        "created_ms": record.created_ms, "started_ms": record.started_ms, "ended_ms": record.ended_ms,
        "active_ms": int(state.get("active_ms", 0)), "attempts": record.attempt, "retention_class": "standard",
    }  # fmt: skip
