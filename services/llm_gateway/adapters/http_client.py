"""An HTTP/1.1 client for one job, POSTs to providers: a pool of connections, one timer a connection, nothing that is not needed.

    client = HttpClient()
    response = await client.post(url, headers, body, connect_s=5.0, until=deadline)
    try:
        while read := await response.read(until=deadline):
            ...
    finally:
        response.close()        # gives the connection back when the body was read to its end, else ends it

It costs a sixth of what a general client costs (17 against 105 µs a call, where the whole gateway may take 330), which is why it is
here. Deadlines are points on `time.monotonic()`. Redirects are not followed and no request is ever sent twice. Behaviour of messages:
RFC 9112; the parser is llhttp by httptools.
"""

import asyncio
import ssl
import time
import zlib
from collections import deque
from collections.abc import Callable, Mapping

from services.llm_gateway.adapters.http_connection import (
    HIGH_WATER,
    BrokenOff,
    Connection,
    ConnectTimeout,
    Origin,
    Unreachable,
    request_head,
    target_of,
)

IDLE_S = 15.0
MAX_IDLE = 512
DNS_CACHE_S = 30.0
MAX_NAMES = 1_000
# Until the next address of a name is tried beside the one before (RFC 8305, section 5).
STAGGER_S = 0.25


class Response:
    """An answer whose head is here."""

    __slots__ = ("_client", "_connection", "_decoder", "_origin", "raw_headers", "status")

    def __init__(self, client: "HttpClient", origin: Origin, connection: Connection) -> None:
        self._client: HttpClient | None = client
        self._origin, self._connection = origin, connection
        self.status = connection.status
        # Names in lower case, in the order of the answer.
        self.raw_headers = connection.headers
        self._decoder = _decoder(self.raw_headers)

    @property
    def headers(self) -> dict[str, str]:
        """Names in lower case; what came more than once is joined with commas."""
        found: dict[str, str] = {}
        for name, value in self.raw_headers:
            key, text = name.decode("latin-1"), value.decode("latin-1")
            found[key] = f"{found[key]}, {text}" if key in found else text
        return found

    @property
    def complete(self) -> bool:
        """Whether the whole answer is here, read or not."""
        return self._connection.complete

    async def read(self, until: float) -> bytes:
        """The next bytes of the body, empty at its end. Raises TimeoutError, BrokenOff."""
        if self._decoder is None:
            return await self._connection.read(until)
        return await self._decoder.read(self._connection, until)

    def arrived(self) -> bytes:
        """What has come of a body that nobody will read on; nothing is waited for. Empty where the body is compressed."""
        return b"" if self._decoder is not None else self._connection.arrived()

    def close(self) -> None:
        """The connection goes back to the pool when the whole answer has come, else it ends. Once is enough, twice does no harm."""
        client, self._client = self._client, None
        if client is not None:
            client.give_back(self._origin, self._connection)


class _Inflater:
    """Bodies that come compressed although nobody asked for it, in bounded pieces."""

    def __init__(self, wbits: int) -> None:
        self._inflate = zlib.decompressobj(wbits)

    async def read(self, connection: Connection, until: float) -> bytes:
        while True:
            waiting = self._inflate.unconsumed_tail
            raw = waiting or await connection.read(until)
            if not raw:
                if not self._inflate.eof:
                    raise BrokenOff("the compressed body is cut off")
                return b""
            try:
                piece = self._inflate.decompress(raw, HIGH_WATER)
            except zlib.error:
                raise BrokenOff("the compressed body cannot be read") from None
            if piece:
                return piece


def _decoder(headers: list[tuple[bytes, bytes]]) -> _Inflater | None:
    for name, value in headers:
        if name == b"content-encoding":
            coding = value.strip().lower()
            if coding in (b"gzip", b"x-gzip"):
                return _Inflater(zlib.MAX_WBITS | 16)
            if coding == b"deflate":
                return _Inflater(zlib.MAX_WBITS)
            if coding not in (b"", b"identity"):
                raise Unreachable(f"an encoding nobody asked for ({coding[:32].decode('latin-1')})", permanent=True)
    return None


class HttpClient:
    """Keeps connections to origins. Who makes it closes it."""

    def __init__(self, *, tls: ssl.SSLContext | None = None) -> None:
        """`tls` is the system's default context where none is given."""
        self._tls = tls
        self._idle: dict[Origin, deque[Connection]] = {}
        self._busy: set[Connection] = set()
        self._names: dict[tuple[str, int], tuple[float, list[str]]] = {}
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False

    async def post(
        self,
        url: str,
        headers: Mapping[str, str],
        body: bytes,
        *,
        connect_s: float,
        until: float,
        sending: Callable[[], None] | None = None,
    ) -> Response:
        """Sends one request and waits for the head of its answer. `sending` is called when the connection is there.

        Raises ValueError for what is no request, ConnectTimeout, TimeoutError, or Unreachable. Cancelling it ends the connection.
        """
        target = target_of(url)
        head = request_head(target, headers, len(body))
        connection = self._rested(target.origin)
        if connection is None:
            connection = await self._connected(target.origin, connect_s, until)
        self._busy.add(connection)
        try:
            if sending is not None:
                sending()
            connection.send(head, body)
            await connection.head(until)
            return Response(self, target.origin, connection)
        except BaseException:
            self._busy.discard(connection)
            connection.end()
            raise

    def give_back(self, origin: Origin, connection: Connection) -> None:
        """Ends the use of a connection."""
        self._busy.discard(connection)
        if not (connection.complete and connection.usable) or self._closed:
            connection.end()
            return
        idle = self._idle.get(origin)
        if idle is None:
            idle = self._idle[origin] = deque()
        if len(idle) >= MAX_IDLE:
            connection.end()
            return
        connection.asked = False
        connection.idle_since = time.monotonic()
        idle.append(connection)
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().call_later(IDLE_S, self._sweep)

    async def close(self) -> None:
        """Ends every connection."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in [*self._busy, *(c for idle in self._idle.values() for c in idle)]:
            connection.end()
        self._idle.clear()
        # The transports tell their ends in the next turn of the loop.
        await asyncio.sleep(0)

    def _rested(self, origin: Origin) -> Connection | None:
        idle = self._idle.get(origin)
        now = time.monotonic()
        while idle:
            connection = idle.pop()  # the one that was used last is the least likely to have been closed
            if now - connection.idle_since < IDLE_S and connection.rested_well(now):
                return connection
            connection.end()
        return None

    def _sweep(self) -> None:
        self._sweeper = None
        now = time.monotonic()
        for origin, idle in list(self._idle.items()):
            while idle and (idle[0].lost or now - idle[0].idle_since >= IDLE_S):
                idle.popleft().end()
            if not idle:
                del self._idle[origin]
        if self._idle:
            self._sweeper = asyncio.get_running_loop().call_later(IDLE_S / 3, self._sweep)

    async def _connected(self, origin: Origin, connect_s: float, until: float) -> Connection:
        left_s = until - time.monotonic()
        try:
            async with asyncio.timeout(min(connect_s, left_s)):
                return await self._connect(origin)
        except TimeoutError:
            raise (ConnectTimeout if connect_s < left_s else TimeoutError) from None
        except ssl.SSLCertVerificationError as error:
            raise Unreachable(f"no connection ({type(error).__name__})", permanent=True) from error
        except OSError as error:
            raise Unreachable(f"no connection ({type(error).__name__})") from error

    async def _connect(self, origin: Origin) -> Connection:
        """The first address that answers; the next one is tried beside it when it is slow (RFC 8305, happy eyeballs)."""
        left = deque(await self._resolved(origin.host, origin.port))
        under_way: set[asyncio.Task[Connection]] = set()
        failed: BaseException | None = None
        try:
            while left or under_way:
                if left:
                    under_way.add(asyncio.create_task(self._connect_to(left.popleft(), origin)))
                done, under_way = await asyncio.wait(under_way, timeout=STAGGER_S if left else None, return_when=asyncio.FIRST_COMPLETED)
                made = [task for task in done if task.exception() is None]
                for late in made[1:]:
                    late.result().end()
                if made:
                    return made[0].result()
                failed = next(iter(done)).exception() if done else failed
        finally:
            for task in under_way:
                task.cancel()
                task.add_done_callback(_unwanted)
        self._names.pop((origin.host, origin.port), None)
        raise failed or OSError("no address")

    async def _connect_to(self, address: str, origin: Origin) -> Connection:
        loop = asyncio.get_running_loop()
        tls = await self._context() if origin.tls else None
        _, connection = await loop.create_connection(
            lambda: Connection(loop), address, origin.port, ssl=tls, server_hostname=origin.host if tls else None
        )
        return connection

    async def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            # Reading the system's certificates takes tens of milliseconds, which no other call should wait for.
            self._tls = await asyncio.to_thread(ssl.create_default_context)
        return self._tls

    async def _resolved(self, host: str, port: int) -> list[str]:
        known = self._names.get((host, port))
        if known is not None and known[0] > time.monotonic():
            return known[1]
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=1)  # SOCK_STREAM
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        if len(self._names) >= MAX_NAMES:
            self._names.clear()
        self._names[(host, port)] = (time.monotonic() + DNS_CACHE_S, addresses)
        return addresses


def _unwanted(task: asyncio.Task[Connection]) -> None:
    """A connection that came too late is ended."""
    if not task.cancelled() and task.exception() is None:
        task.result().end()
