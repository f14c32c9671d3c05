"""Answers whose HTTP itself is wrong or slow: broken lengths and chunks, headers that stop half way, a byte at a time, gzip."""

import asyncio
import gzip
import zlib
from collections.abc import Callable
from http import HTTPStatus

from services.simulator.faults import Faults, count
from services.simulator.surfaces.exchange import Exchange, Header

RAW_FAULTS = frozenset(("slow_headers", "bad_chunked", "content_length"))
"""Faults for which the answer is written past the HTTP of the server."""

GZIP_HEADER: Header = (b"content-encoding", b"gzip")
_MAX_TRICKLED_WRITES = 200_000


async def send_raw(exchange: Exchange, body: bytes, headers: tuple[Header, ...], content_type: bytes, faults: Faults) -> bool:
    """Write an answer of status 200 as the fault has it, then close; False where the client left while it was waited."""
    length = count(faults, "content_length")
    told = [*exchange.head(headers, content_type), (b"connection", b"close")]
    if "bad_chunked" in faults:
        told.append((b"transfer-encoding", b"chunked"))
        half = body[: len(body) // 2]
        body = b"%x\r\n" % len(half) + half + b"\r\nnot a length\r\n" + body[len(half) :]
    else:
        told.append((b"content-length", b"%d" % max(len(body) + (length or 0), 0)))
    lines = [b"HTTP/1.1 200 " + HTTPStatus.OK.phrase.encode(), *(name + b": " + value for name, value in told)]
    head = b"\r\n".join(lines) + b"\r\n\r\n"
    pause_ms = count(faults, "slow_headers")
    if pause_ms is not None:
        half_way = len(head) // 2
        exchange.write_raw(head[:half_way])
        if not await exchange.wait(pause_ms / 1000):
            return False
        head = head[half_way:]
    exchange.write_raw(head + body)
    await exchange.break_off(at_once=False)
    return True


async def trickle(exchange: Exchange, data: bytes, size: int, *, more: bool) -> bool:
    """Write so many bytes at a time; False as soon as the client has gone."""
    exchange.watch()
    size = max(size, -(-len(data) // _MAX_TRICKLED_WRITES))
    for start in range(0, len(data), size):
        await exchange.write(data[start : start + size])
        await asyncio.sleep(0)
        if exchange.client_gone:
            return False
    if not more:
        await exchange.write(b"", more=False)
    return True


def zipped(body: bytes) -> bytes:
    """The body, compressed."""
    return gzip.compress(body, compresslevel=1, mtime=0)


def stream_zipper() -> Callable[[bytes, bool], bytes]:
    """Compresses a stream write by write, so that each can be read as it comes; the second argument says that more follow."""
    packer = zlib.compressobj(level=1, wbits=31)

    def pack(data: bytes, more: bool) -> bytes:
        return packer.compress(data) + packer.flush(zlib.Z_SYNC_FLUSH if more else zlib.Z_FINISH)

    return pack
