"""Whether a started process does its work: gRPC health, HTTP, a store's own greeting."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

from services.cli.up.ports import LOOPBACK, Kind

TIMEOUT_S = 1.0
READY = ""
Probe = Callable[[], Awaitable[str]]


def probe_for(name: str, ports: Mapping[Kind, int], *, alive_only: bool = False) -> tuple[Probe, Callable[[], Awaitable[None]]]:
    """A probe that answers READY or, in a few words, what is missing; and what closes it.

    `alive_only` asks whether the process serves, whatever its dependencies say.
    """
    if name in ("valkey_state", "valkey_cache"):
        return lambda: valkey(ports["store"]), _nothing
    if name == "milvus":
        return lambda: listening(ports["store"]), _nothing
    if "grpc" in ports:
        # Imported when the children are on their way: grpc takes a tenth of a second.
        from services.common.rpc.probe import HealthProbe

        channel = HealthProbe(f"{LOOPBACK}:{ports['grpc']}")

        async def grpc_health() -> str:
            serving = await channel.serving("liveness" if alive_only else "readiness", TIMEOUT_S)
            return "starting" if serving is None else READY if serving else "waiting for its dependencies"

        return grpc_health, channel.close
    path = "/health" if alive_only or name == "simulator" else "/ready"
    return lambda: http(ports["http"], path), _nothing


async def refused_by(ports: Mapping[Kind, int]) -> dict[str, list[str]]:
    """Configuration files of which the process has refused the newest content, each with what is wrong, where it says so."""
    if "grpc" in ports:
        from services.common.rpc.probe import HealthProbe

        channel = HealthProbe(f"{LOOPBACK}:{ports['grpc']}")
        try:
            return await channel.refused(TIMEOUT_S)
        finally:
            await channel.close()
    if "http" not in ports:
        return {}
    with suppress(ValueError, AttributeError):
        return {name: [] for name in json.loads((await _got(ports["http"], "/ready"))[1]).get("config_refused") or ()}
    return {}


async def _nothing() -> None:
    return None


async def valkey(port: int) -> str:
    """PING; a store that still reads its log answers LOADING."""
    answer = await _exchange(port, b"PING\r\n", 64)
    if answer is None:
        return "starting"
    if answer.startswith(b"+PONG"):
        return READY
    return "reading its data" if answer.startswith(b"-LOADING") else "not a Valkey server"


async def listening(port: int) -> str:
    """Whether something accepts connections."""
    return "starting" if await _exchange(port, b"", 0) is None else READY


async def http(port: int, path: str) -> str:
    """GET; anything but 200 is not ready, and the body of /ready says why."""
    status, body = await _got(port, path)
    if not status:
        return "starting"
    if status == b"200":
        return READY
    return failing(body) or "waiting for its dependencies"


async def _got(port: int, path: str) -> tuple[bytes, bytes]:
    """Status and body; empty when nobody answers."""
    request = f"GET {path} HTTP/1.1\r\nHost: {LOOPBACK}:{port}\r\nConnection: close\r\nAccept: application/json\r\n\r\n"
    head, _, body = (await _exchange(port, request.encode(), 16384) or b"").partition(b"\r\n\r\n")
    return head.partition(b" ")[2][:3], body


def failing(body: bytes) -> str:
    """`waiting for orchestrator, memory` from a /ready answer that lists what fails; empty when it lists nothing."""
    with suppress(ValueError, AttributeError):
        listed = json.loads(body).get("failing") or {}
        if listed:
            return "waiting for " + ", ".join(sorted(listed))
    return ""


async def _exchange(port: int, request: bytes, size: int) -> bytes | None:
    """What the peer answers to `request`, up to `size` bytes; None when nobody listens."""
    try:
        async with asyncio.timeout(TIMEOUT_S):
            reader, writer = await asyncio.open_connection(LOOPBACK, port)
            try:
                if not size:
                    return b""
                writer.write(request)
                await writer.drain()
                answer = b""
                while len(answer) < size and (part := await reader.read(size)):
                    answer += part
                    if not request.startswith(b"GET"):
                        break
                return answer
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return None
