"""The audit records of API keys: who made, changed, rotated or ended which, and what it was allowed."""

import secrets
from typing import Any

import structlog

from services.common.accounts import KeyRecord
from services.common.audit._records import user_hash, whom
from services.common.audit._stream import AuditStream
from services.common.errors import Overloaded
from services.common.identity import Principal

AUDIT_SCHEMA = 1
MADE, CHANGED, BLOCKED, UNBLOCKED, ROTATED, ENDED = "made", "changed", "blocked", "unblocked", "rotated", "ended"
log = structlog.get_logger("bulkhead.audit")


class KeyAudit:
    """Appends a record of each change of a key that somebody asked for."""

    def __init__(self, stream: AuditStream | None) -> None:
        """Without a stream none are kept."""
        self._stream = stream

    async def append(self, who: Principal, action: str, key: KeyRecord, *, request_id: str = "", once: str = "") -> None:
        """Appends the record of a change that was made. `once` names the request, of one that may come again: it has one record.

        Without a store the record is lost and logged: the key has been changed.
        """
        if self._stream is None:
            return
        try:
            made = record_of(who, action, key, request_id)
            await self._stream.append(key.tenant, f"key/{key.key_id}/{action}/{once or secrets.token_hex(16)}", made)
        except Overloaded:
            log.error("audit_lost", key_id=key.key_id, action=action)


def record_of(who: Principal, action: str, key: KeyRecord, request_id: str = "") -> dict[str, Any]:
    """The record: ids, digests, numbers, and names of the configuration; neither a secret nor what a person has written."""
    return {
        "schema_version": AUDIT_SCHEMA, "kind": "key", "action": action, **whom(who), "tenant": who.tenant, "request_id": request_id,
        "target_key": key.key_id, "target_user_hash": user_hash(key.tenant, key.user), "target_tier": key.tier,
        "target_scopes": list(key.scopes), "target_expires_ms": int(key.expires_at * 1000), "target_blocked": key.blocked,
        "retention_class": "standard",
    }  # fmt: skip
