"""Journals: what the lines of a batch were answered, in the order in which that became known. Pure.

One entry a line of text: CRC-32 of the rest in eight hex digits, a JSON list [number, failed, usage…], and the result line as it will stand
in the output. What a crash has torn fails its checksum and is no entry, wherever it stands.
"""

import zlib
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import orjson

from services.llm_gateway.batches.records import usage_as_list, usage_from_list
from services.llm_gateway.money import NOTHING, Usage

_CHECKSUM = 8


@dataclass(frozen=True, slots=True)
class Entry:
    """The result of line `number`, from 0."""

    number: int
    failed: bool
    usage: Usage
    result: bytes

    def packed(self) -> bytes:
        """The entry as it stands in a journal."""
        rest = b"%s %s" % (orjson.dumps([self.number, int(self.failed), *usage_as_list(self.usage)]), self.result)
        return b"%08x %s\n" % (zlib.crc32(rest), rest)


@dataclass(frozen=True, slots=True)
class Found:
    """An entry in a journal, with the place of its result."""

    number: int
    failed: bool
    usage: Usage
    offset: int
    length: int


def read(lines: Iterable[bytes]) -> Iterator[Found]:
    """The whole entries of a journal, given as its lines with their ends."""
    offset = 0
    for line in lines:
        found = _entry(line, offset)
        if found is not None:
            yield found
        offset += len(line)


def _entry(line: bytes, offset: int) -> Found | None:
    if not line.endswith(b"\n") or line[_CHECKSUM : _CHECKSUM + 1] != b" ":
        return None
    rest = memoryview(line)[_CHECKSUM + 1 : -1]
    try:
        if int(line[:_CHECKSUM], 16) != zlib.crc32(rest):
            return None
    except ValueError:
        return None
    head = line.index(b"] ", _CHECKSUM) + 1
    number, failed, *usage = orjson.loads(line[_CHECKSUM + 1 : head])
    begin = head + 1
    return Found(number, bool(failed), usage_from_list(usage), offset + begin, len(line) - 1 - begin)


class Results:
    """Which lines have a result, and where it stands: the first one found of each line counts."""

    def __init__(self, total: int) -> None:
        # The number of the journal plus one; 0 where there is no result.
        self._journal = array("L", bytes(array("L").itemsize * total))
        self._offset = array("Q", bytes(8 * total))
        self._length = array("L", bytes(array("L").itemsize * total))
        self._failed = bytearray(total)
        self.completed = 0
        self.failed = 0
        self.usage = NOTHING

    def __len__(self) -> int:
        return len(self._journal)

    def add(self, journal: int, found: Found) -> bool:
        """Takes a result from the journal of that number; False where the line has one, or is none of the batch."""
        number = found.number
        if not 0 <= number < len(self._journal) or self._journal[number]:
            return False
        self._journal[number], self._offset[number], self._length[number] = journal + 1, found.offset, found.length
        self._failed[number] = found.failed
        self.failed += found.failed
        self.completed += not found.failed
        self.usage = self.usage + found.usage
        return True

    def place(self, number: int) -> tuple[int, int, int, bool] | None:
        """Journal, offset, length and whether it failed, of a line's result."""
        journal = self._journal[number]
        return (journal - 1, self._offset[number], self._length[number], bool(self._failed[number])) if journal else None

    def missing(self) -> Iterator[int]:
        """Lines without a result, in order. Lines that get one meanwhile are left out."""
        return (number for number in range(len(self._journal)) if not self._journal[number])
