"""Server-sent events from bytes that may be cut anywhere. Format: WHATWG HTML, section 9.2.6 (event stream interpretation)."""

from services.llm_gateway.failures import Failure, FailureClass, UpstreamFault

MAX_EVENT_BYTES = 8 * 1024 * 1024
_BOM = b"\xef\xbb\xbf"


class SseParser:
    """Feeds on network reads and answers the data of each completed event; comments and other fields are dropped."""

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max = max_event_bytes
        self._pieces: list[bytes] = []  # the unfinished last line, unjoined: a huge line must not cost quadratic time
        self._size = 0
        self._data: list[bytes] = []
        self._at_start = True

    def feed(self, read: bytes) -> list[bytes]:
        """The data of the events that end within `read`. Raises UpstreamFault (malformed) beyond the size limit."""
        if self._at_start and read:
            joined = b"".join([*self._pieces, read])
            if len(joined) < 3 and _BOM.startswith(joined):
                self._pieces = [joined]
                return []
            self._at_start = False
            self._pieces, read = [], joined.removeprefix(_BOM)
        if b"\n" not in read and b"\r" not in read:
            self._keep(read)
            return []
        whole = b"".join([*self._pieces, read]) if self._pieces else read
        self._pieces = []
        if b"\r" in whole:
            # A CR at the very end may be the first half of a CRLF: it waits for the next read.
            held = b"\r" if whole.endswith(b"\r") else b""
            lines = (whole[:-1] if held else whole).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
            tail = lines.pop() + held
        else:
            lines = whole.split(b"\n")
            tail = lines.pop()
        events: list[bytes] = []
        data = self._data
        for line in lines:
            if not line:
                if data:
                    events.append(data[0] if len(data) == 1 else b"\n".join(data))
                    data.clear()
                    self._size = 0
            elif line.startswith(b"data:"):
                value = line[6:] if line[5:6] == b" " else line[5:]
                data.append(value)
                self._grow(len(value))
            elif line == b"data":
                data.append(b"")
        if tail:
            self._keep(tail)
        return events

    def end(self) -> list[bytes]:
        """The event that the end of the stream left without its empty line: many servers omit the last one."""
        tail, self._pieces = b"".join(self._pieces), []
        return self.feed(tail + b"\n\n") if tail or self._data else []

    def _keep(self, piece: bytes) -> None:
        self._pieces.append(piece)
        self._grow(0)

    def _grow(self, size: int) -> None:
        self._size += size
        if self._size + sum(map(len, self._pieces)) > self._max:
            raise UpstreamFault(Failure(FailureClass.MALFORMED, f"an event is larger than {self._max} bytes"))
