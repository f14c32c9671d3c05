"""One POST to one address that was checked before. It follows nothing, keeps nothing and believes nothing but the status.

aiohttp is no dependency of this service, and what a webhook needs of HTTP is a request head and a status line; asyncio has the rest.
"""

import asyncio
import socket
import ssl
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from urllib.parse import urlsplit

from services.orchestrator.webhooks.ports import SendFailed

CONNECT_TIMEOUT_S = 5.0
MOST_HEAD_BYTES = 16 * 1024
# Of the answer's body; it is read so that the receiver can finish its sentence, and thrown away.
MOST_BODY_BYTES = 1024
# More than one endpoint may have under way, so that one whose name server hangs does not hold up all others.
MOST_LOOKUPS = 16
USER_AGENT = "Bulkhead-Webhooks/1.0"


class HttpSender:
    """Implements webhooks.ports.Sender."""

    def __init__(self) -> None:
        # The authorities of the system; SSL_CERT_FILE names others.
        self._tls = ssl.create_default_context()
        # A look-up cannot be called off and may last half a minute, at the will of whoever has the name: never in the loop's own
        # threads, in which old runs are read.
        self._lookups = ThreadPoolExecutor(MOST_LOOKUPS, "webhook-lookup")

    async def addresses(self, host: str, port: int) -> list[str]:
        """As the port says."""
        try:
            look_up = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
            found = await asyncio.get_running_loop().run_in_executor(self._lookups, look_up)
        except (OSError, UnicodeError):
            raise SendFailed("unknown_host") from None
        if not found:
            raise SendFailed("unknown_host")
        return list(dict.fromkeys(str(address[0]) for *_, address in found))

    async def post(self, url: str, addresses: Sequence[str], headers: Mapping[str, str], body: bytes, timeout_s: float) -> int:
        """As the port says."""
        status: list[int] = []
        try:
            async with asyncio.timeout(timeout_s):
                reader, writer = await _connected(url, addresses, self._tls)
                try:
                    writer.write(_head(url, headers, len(body)) + body)
                    await writer.drain()
                    await _answer(reader, status)
                finally:
                    writer.transport.abort()
        except (TimeoutError, OSError, EOFError, ValueError, asyncio.LimitOverrunError) as error:
            # An answer whose end does not come is an answer all the same.
            if not status:
                raise SendFailed(_why(error)) from error
        return status[0]


def _why(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "timeout"
    if isinstance(error, ssl.SSLError):
        return "tls"
    return "unreachable" if isinstance(error, (OSError, EOFError)) else "protocol"


async def _connected(url: str, addresses: Sequence[str], tls: ssl.SSLContext) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to the first of `addresses` that takes one. The certificate must be that of the URL's host."""
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    failure: OSError = OSError("no address")
    for address in addresses:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                return await asyncio.open_connection(
                    address, port, limit=MOST_HEAD_BYTES, ssl=tls if secure else None,
                    server_hostname=parts.hostname if secure else None,
                )  # fmt: skip
        except TimeoutError:
            failure = OSError("connecting took too long")
        except ssl.SSLError:
            raise
        except OSError as error:
            failure = error
    raise failure


def _head(url: str, headers: Mapping[str, str], length: int) -> bytes:
    parts = urlsplit(url)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    lines = [
        f"POST {path} HTTP/1.1", f"host: {parts.netloc}", f"user-agent: {USER_AGENT}", "content-type: application/json",
        f"content-length: {length}", "accept-encoding: identity", "connection: close", *(f"{k}: {v}" for k, v in headers.items()),
    ]  # fmt: skip
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")


async def _answer(reader: asyncio.StreamReader, status: list[int]) -> None:
    """Puts the status of the answer into `status` as soon as it is known. Raises ValueError for what is no HTTP."""
    while True:
        code, length = await _answer_head(reader)
        if code >= 200:
            break
    status.append(code)
    left = min(length, MOST_BODY_BYTES)
    while left > 0:
        piece = await reader.read(left)
        if not piece:
            return
        left -= len(piece)


async def _answer_head(reader: asyncio.StreamReader) -> tuple[int, int]:
    """(status, length of the body as far as it is told, else MOST_BODY_BYTES) of the next head."""
    head = await reader.readuntil(b"\r\n\r\n")
    line, *fields = head.decode("latin-1").split("\r\n")
    version, _, rest = line.partition(" ")
    code = rest[:3]
    if version not in ("HTTP/1.1", "HTTP/1.0") or not code.isdecimal() or not code.isascii() or not 100 <= int(code) <= 599:
        raise ValueError("no HTTP answer")
    length = MOST_BODY_BYTES
    for field in fields:
        name, _, value = field.partition(":")
        if name.strip().lower() == "content-length":
            with suppress(ValueError):
                length = int(value)
    return int(code), 0 if int(code) in (204, 304) else length
