"""Segments: the front of a thread's log, packed as one file with all that the log holds of it, deltas and timing included."""

import hashlib
import zlib
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import orjson

from services.common.errors import Gone, Internal

SEGMENT_VERSION = 1
# What whoever has missed too much of a thread asks for.
SNAPSHOT_RPC = "bulkhead.orchestrator.v1.ThreadService/GetThreadSnapshot"
# A packed segment is read as a whole; this bounds what one read of a few events costs.
MOST_ENTRIES = 512
MOST_BYTES = 1024 * 1024
# Above every number that an event can have.
ALL = 2**62

# An entry as the log has it: its id `<seq>-0`, then names and values in turn.
Entry = tuple[bytes, Sequence[bytes]] | list


class Segment(NamedTuple):
    """What points to a segment: the numbers of its first and last event, and the digest of its file."""

    first: int
    last: int
    digest: str

    def encode(self) -> str:
        """As it stands in the thread's index, and the name of its file."""
        return f"{self.first}-{self.last}-{self.digest}"

    @classmethod
    def decode(cls, text: str) -> "Segment":
        """The inverse of `encode`. Raises ValueError."""
        first, last, digest = text.split("-")
        return cls(int(first), int(last), digest)


class SegmentStore(Protocol):
    """Where segments are. Raises Overloaded (SEGMENTS_UNAVAILABLE) while it cannot be used."""

    async def put(self, tenant: str, thread_id: str, segment: Segment, content: bytes) -> None:
        """Keeps a segment; on return it survives a power failure. The same segment again changes nothing."""
        ...

    async def get(self, tenant: str, thread_id: str, segment: Segment) -> bytes | None:
        """The file of a segment, None where there is none."""
        ...

    async def drop(self, tenant: str, thread_id: str, before: int) -> None:
        """Removes all segments of a thread that end before the number `before`, those too that nothing points to; with ALL its large
        results as well."""
        ...


def seq_of(entry: Entry) -> int:
    """Number of an entry."""
    return int(entry[0].partition(b"-")[0])


def fitting(entries: Sequence[Entry]) -> Sequence[Entry]:
    """The front of `entries` that makes one segment: at least one entry, no more than fit."""
    size = 0
    for at, entry in enumerate(entries):
        size += sum(map(len, entry[1]))
        if at and size > MOST_BYTES:
            return entries[:at]
    return entries


def pack(entries: Sequence[Entry]) -> tuple[Segment, bytes]:
    """The segment of these entries and its file. The same entries make the same file, so that a move that is done again is the same.

    A line of JSON tells the version; then for each entry a line [seq, lengths of its names and values in turn], and these.
    """
    parts = [orjson.dumps({"schema_version": SEGMENT_VERSION, "entries": len(entries)}), b"\n"]
    for entry in entries:
        parts += (orjson.dumps([seq_of(entry), *map(len, entry[1])]), b"\n", *entry[1], b"\n")
    content = zlib.compress(b"".join(parts), 6)
    return Segment(seq_of(entries[0]), seq_of(entries[-1]), _digest(content)), content


def unpack(segment: Segment, content: bytes) -> list[Entry]:
    """The entries of a segment. Raises Internal (SEGMENT_DAMAGED) for a file that is not the one that was written."""
    if _digest(content) != segment.digest:
        raise damaged(segment)
    raw = zlib.decompress(content)
    head, at = _line(raw, 0)
    if head["schema_version"] > SEGMENT_VERSION:
        raise Internal("the segment of the event log is of a newer version", reason="SEGMENT_TOO_NEW")
    found: list[Entry] = []
    for _ in range(head["entries"]):
        (seq, *lengths), at = _line(raw, at)
        fields = []
        for length in lengths:
            fields.append(raw[at : at + length])
            at += length
        at += 1
        found.append([b"%d-0" % seq, fields])
    return found


def no_longer_kept(oldest_seq: int) -> Gone:
    """The error for a place in a log whose beginning is gone; it names what to ask for instead."""
    metadata = {"oldest_seq": str(oldest_seq), "snapshot_rpc": SNAPSHOT_RPC}
    return Gone("events this old are no longer kept; begin after oldest_seq - 1", reason="RESUME_GAP", metadata=metadata)


def damaged(segment: Segment) -> Internal:
    """The error for a segment that is missing or is not what was written."""
    metadata = {"first_seq": str(segment.first), "last_seq": str(segment.last)}
    return Internal("a part of the event log is missing or damaged", reason="SEGMENT_DAMAGED", metadata=metadata)


def _line(raw: bytes, at: int) -> tuple:
    end = raw.index(b"\n", at)
    return orjson.loads(raw[at:end]), end + 1


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]
