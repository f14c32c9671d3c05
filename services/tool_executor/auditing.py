"""The audit record of a tool call: who had which tool do what, by digest."""

import secrets
from typing import TYPE_CHECKING, Any

import structlog

from services.common.audit import AuditStream, digest, whom
from services.common.errors import Overloaded
from services.common.identity import Principal
from services.tool_executor.outcomes import CallResult

if TYPE_CHECKING:
    from services.tool_executor.execution import Request

AUDIT_SCHEMA = 1
log = structlog.get_logger("bulkhead.tools")


class ToolAudit:
    """Appends the records of calls that have ended."""

    def __init__(self, stream: AuditStream) -> None:
        self._stream = stream

    async def append(self, principal: Principal, request: "Request", tool: str, result: CallResult) -> None:
        """Appends the record of one call. A call without a key gets a name of its own.

        Without a store the record is lost and logged: the call has ended, and the run's own record tells of it as well.
        """
        made = record_of(principal, request, tool, result)
        try:
            name = f"tool/{request.key or secrets.token_hex(16)}"
            await self._stream.append(principal.tenant, name, made, of_run=bool(principal.run_id))
        except Overloaded:
            log.error("audit_lost", tool=tool, call=request.key)


def record_of(principal: Principal, request: "Request", tool: str, result: CallResult) -> dict[str, Any]:
    """The record: ids, digests, numbers, and names of the configuration; nothing that a person has written."""
    return {
        "schema_version": AUDIT_SCHEMA, "kind": "tool_call", "call": request.key, "run_id": request.run_id,
        "session": request.thread_id, **whom(principal), "tool": tool, "tool_version": result.version,
        "outcome": str(result.outcome), "code": result.error.code if result.error else "", "attempts": result.attempts,
        "duration_us": int(result.duration_s * 1e6), "arguments_hash": digest(request.arguments_json),
        "output_hash": digest(result.output),
        "retention_class": "standard",
    }  # fmt: skip
