"""The stream of a tenant in the state store."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import redis.asyncio as redis

from services.common.audit._records import canonical
from services.common.valkey import Library
from services.common.valkey_replicas import Lasting, asked


class AuditEntry(NamedTuple):
    """One record: its number within the tenant (contiguous, from 1), the store's time, its id, and its canonical JSON."""

    sequence: int
    at_ms: int
    record_id: str
    record: bytes


@dataclass(frozen=True, slots=True)
class _Keys:
    stream: str
    seen: str
    meta: str

    @classmethod
    def of(cls, tenant: str) -> "_Keys":
        prefix = f"audit:{{{quote(tenant, safe='')}}}"
        return cls(f"{prefix}:log", f"{prefix}:seen", f"{prefix}:meta")

    def names(self) -> Sequence[str]:
        return self.stream, self.seen, self.meta


class AuditStream:
    """Appends and reads. All methods raise Overloaded while the store is away.

    Sealing reads from here in order and keeps what it sealed elsewhere; numbers and canonical JSON are what a chain is made over.
    """

    def __init__(self, client: redis.Redis, kept: timedelta, replicas: int = 0) -> None:
        """Records are deleted `kept` after they were appended: by later appends to the same stream, or all when none comes.

        An append counts once `replicas` have the record on disk, whoever appended it.
        """
        self._client, self._kept_ms = client, int(kept.total_seconds() * 1000)
        self._lasting = Lasting(Library(client, Path(__file__).with_name("audit.lua")), replicas)

    async def append(self, tenant: str, record_id: str, record: Mapping[str, Any], *, of_run: bool = False) -> bool:
        """Appends a record; False, and nothing changes, where one of this id is there. Raises ValueError as `canonical`.

        Whoever does not know whether an append arrived appends again. That of a run that was accepted, or of its calls (`of_run`), is
        appended also where the store's memory is full.
        """
        function = "audit_append_of_run_v1" if of_run else "audit_append_v1"
        args = [record_id, canonical(record), self._kept_ms]
        return bool(await self._lasting.call(function, _Keys.of(tenant).names(), args))

    async def read(self, tenant: str, after: int = 0, most: int = 100) -> list[AuditEntry]:
        """Records after number `after`, oldest first, at most `most`."""
        found: Any = await asked(self._client, self._client.xrange(_Keys.of(tenant).stream, f"{after + 1}-0", "+", count=most))
        return [
            AuditEntry(int(number.partition(b"-")[0]), int(fields[b"m"]), fields[b"i"].decode(), fields[b"d"]) for number, fields in found
        ]
