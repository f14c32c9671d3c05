"""multipart/form-data (RFC 7578), read as it comes: whatever its size, no more than one part of the network is held. Pure."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from services.llm_gateway.model_port.errors import Refused

MAX_HEAD_BYTES = 16 * 1024
MAX_PARTS = 32
_TYPE = re.compile(r'multipart/form-data\s*;(?:.*;)?\s*boundary=(?:"([^"\r\n]{1,70})"|([^\s";,]{1,70}))', re.IGNORECASE)
_DISPOSITION = re.compile(rb"content-disposition\s*:\s*form-data\s*;(.*)", re.IGNORECASE)
# Possessive, and from the beginning of a word: a long one without an end would be tried from each of its letters.
_PARAMETER = re.compile(rb'(?<!\w)(\w++)\s*+=\s*+(?:"((?:[^"\\]|\\.)*)"|([^\s;"]+))')


@dataclass(frozen=True, slots=True)
class Part:
    """The beginning of a part. `filename` is None for a plain field."""

    name: str
    filename: str | None


def boundary_of(content_type: str) -> bytes:
    """The boundary that a Content-Type names. Raises Refused."""
    match = _TYPE.match(content_type.strip())
    if match is None:
        raise Refused(415, "send the file as multipart/form-data", code="unsupported_media_type")
    return (match[1] or match[2]).encode("latin-1")


class Multipart:
    """Reads one form; `done` once its closing boundary has come."""

    def __init__(self, boundary: bytes) -> None:
        self._delimiter = b"\r\n--" + boundary
        # The first boundary has no line before it.
        self._held = bytearray(b"\r\n")
        self._parts = 0
        self._in_part = False
        self._at_delimiter = False
        self.done = False

    def feed(self, data: bytes) -> Iterator[Part | bytes]:
        """The parts that begin within `data`, and the pieces of their contents. Raises Refused for what is no form."""
        self._held += data
        while not self.done:
            if self._at_delimiter:
                part = self._head()
                if part is None:
                    return
                if isinstance(part, Part):
                    yield part
                continue
            found = self._held.find(self._delimiter)
            if found < 0:
                # The end may be the beginning of a boundary.
                ready = max(0, len(self._held) - len(self._delimiter) + 1)
                if self._in_part and ready:
                    yield bytes(self._held[:ready])
                del self._held[:ready]
                return
            if self._in_part and found:
                yield bytes(self._held[:found])
            del self._held[: found + len(self._delimiter)]
            self._at_delimiter = True
        self._held.clear()

    def _head(self) -> Part | bool | None:
        """The head of the next part; None where it has not come yet, True at the end of the form."""
        if len(self._held) < 2:
            return None
        if self._held[:2] == b"--":
            self.done = True
            return True
        end = self._held.find(b"\r\n\r\n")
        if end < 0:
            if len(self._held) > MAX_HEAD_BYTES:
                raise malformed()
            return None
        head = bytes(self._held[:end])
        del self._held[: end + 4]
        self._parts += 1
        # White space may follow a boundary.
        first, _, lines = head.partition(b"\r\n")
        if first.strip(b" \t") or len(head) > MAX_HEAD_BYTES or self._parts > MAX_PARTS:
            raise malformed()
        self._at_delimiter, self._in_part = False, True
        # A content that is empty ends with the line break that its boundary begins with.
        return _part(lines)


def _part(lines: bytes) -> Part:
    for line in lines.split(b"\r\n"):
        match = _DISPOSITION.match(line)
        if match is not None:
            given = {name.lower(): _plain(quoted) or plain for name, quoted, plain in _PARAMETER.findall(match[1])}
            if b"name" in given:
                filename = given.get(b"filename")
                return Part(_text(given[b"name"]), None if filename is None else _text(filename))
    raise malformed()


def _plain(quoted: bytes) -> bytes:
    return re.sub(rb"\\(.)", rb"\1", quoted)


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace").replace("%22", '"').replace("%0D", " ").replace("%0A", " ")


def malformed() -> Refused:
    """The refusal of a body that is no form."""
    return Refused(400, "the body is no multipart form", code="invalid_form")
