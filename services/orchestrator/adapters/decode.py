"""Stored fields to records. A field that is absent has the value it had before it was invented."""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from services.orchestrator.records import RunRecord, RunSpec, ThreadRecord


def text(value: bytes | str) -> str:
    """A reply as text."""
    return value.decode() if isinstance(value, bytes) else value


def _mapping(fields: Sequence | Mapping) -> Mapping[bytes, bytes]:
    if isinstance(fields, Mapping):
        return fields
    return {fields[i]: fields[i + 1] for i in range(0, len(fields), 2)}


def run_record(fields: Sequence | Mapping[bytes, bytes] | None) -> RunRecord | None:
    """A run record; None where there is none, or only the tombstone of one."""
    if not fields:
        return None
    found = _mapping(fields)
    if b"status" not in found:
        return None

    def number(name: bytes) -> int:
        return int(found.get(name) or 0)

    def parsed(name: bytes) -> Mapping[str, Any]:
        return orjson.loads(found[name]) if found.get(name) else {}

    return RunRecord(
        run_id=found[b"run"].decode(), spec=RunSpec.from_dict(orjson.loads(found[b"spec"])), status=found[b"status"].decode(),
        epoch=number(b"epoch"), attempt=number(b"attempt"), cancel_requested=found.get(b"cancel") == b"1",
        created_ms=number(b"created_ms"), started_ms=number(b"started_ms"), ended_ms=number(b"ended_ms"),
        first_seq=number(b"first_seq"), terminal_seq=number(b"terminal_seq"), track=found[b"track"].decode(),
        result=parsed(b"result"), state=parsed(b"state"), provisional_from=number(b"prov_from"),
        inbox=number(b"inbox"), carry=parsed(b"carry"), rolled_back=number(b"rolled_back"),
        crashes=number(b"crashes"), losses=number(b"losses") or number(b"crashes"),
        lost_ms=number(b"lost_ms"),
    )  # fmt: skip


def thread_record(fields: Sequence | Mapping[bytes, bytes] | None, user: str) -> ThreadRecord | None:
    """A thread record; None where there is none or it is another user's."""
    if not fields:
        return None
    found = _mapping(fields)
    # While it is rolled back it is still its user's; while it is made or deleted it is nobody's.
    owner = found[b"of"] if found[b"user"] == b"\0busy" else found[b"user"]
    if owner.decode() != user:
        return None
    return ThreadRecord(
        thread_id=found[b"thread"].decode(), created_ms=int(found[b"created_ms"]), last_seq=int(found[b"seq"]),
        metadata=orjson.loads(found[b"metadata"]), parent=found.get(b"parent", b"").decode(), forked_at=int(found.get(b"forked_at", 0)),
        expires_ms=int(found.get(b"expires_ms", 0)), oldest_seq=int(found.get(b"oldest_seq", 1)),
    )  # fmt: skip
