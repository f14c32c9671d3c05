"""Audit records: one append-only stream for each tenant in the state store, each record once, without anybody's words.

stream = AuditStream(client, kept=timedelta(days=400))
await stream.append("acme", "run/run_1", {"kind": "run", **whom(principal), "input_hash": digest(text)})
"""

from services.common.audit._keys import BLOCKED, CHANGED, ENDED, MADE, ROTATED, UNBLOCKED, KeyAudit
from services.common.audit._records import canonical, digest, user_hash, whom
from services.common.audit._stream import AuditEntry, AuditStream

__all__ = [
    "BLOCKED",
    "CHANGED",
    "ENDED",
    "MADE",
    "ROTATED",
    "UNBLOCKED",
    "AuditEntry",
    "AuditStream",
    "KeyAudit",
    "canonical",
    "digest",
    "user_hash",
    "whom",
]
