"""The open web for `http_fetch`: each hop is checked, resolved once, and connected to just the addresses that were checked.

Refused are all addresses that are not public, also behind the IPv6 forms that carry an IPv4 address, unless the
allow-list names the host with `private: true`.
"""

import asyncio
import socket
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from services.common.public_address import is_public
from services.tool_executor.adapters.http_status import failure_of
from services.tool_executor.failures import ToolFailure
from services.tool_executor.ports import Allowed, Page

CONNECT_TIMEOUT_S = 5.0
MAX_REDIRECTS = 5
MAX_URL = 4096
USER_AGENT = "Bulkhead/1.0 (http_fetch)"
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


class _Pinned(AbstractResolver):
    """Answers the addresses that were checked, whatever DNS says now."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._addresses = addresses

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in self._addresses
        ]

    async def close(self) -> None:
        return None


Lookup = Callable[[str, int], "Any"]


async def look_up(host: str, port: int) -> list[str]:
    """Addresses of a host. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))


class OpenWeb:
    """Implements ports.Web. Tests give it their own `lookup`."""

    def __init__(self, lookup: Lookup = look_up) -> None:
        self._lookup = lookup

    async def get(self, url: str, allowed: Allowed, max_bytes: int, progress: Callable[[int, int | None], None]) -> Page:
        """As the port says."""
        here = _parsed(url)
        for _ in range(MAX_REDIRECTS + 1):
            addresses = await self._checked(here, allowed)
            answer = await _fetched(here, addresses, max_bytes, progress)
            if isinstance(answer, Page):
                return answer
            there = _parsed(str(here.join(URL(answer)) if _joinable(answer) else answer))
            if here.scheme == "https" and there.scheme != "https":
                raise ToolFailure("policy.denied", "The page redirects from https to http, which is not followed.")
            here = there
        raise ToolFailure("upstream.bad_request", f"The page redirects more than {MAX_REDIRECTS} times.")

    async def _checked(self, url: URL, allowed: Allowed) -> list[str]:
        host, port = (url.host or "").rstrip("."), url.port or 0
        private = allowed(url.scheme, host, port)
        if private is None:
            raise ToolFailure("policy.denied", f"Fetching from {host[:100]} port {port} is not allowed here.")
        try:
            addresses = await self._lookup(host, port)
        except (OSError, UnicodeError) as error:
            raise ToolFailure("transport.unreachable", f"The host {host[:100]} is not known.") from error
        if not private and not all(is_public(a) for a in addresses):
            raise ToolFailure("policy.denied", f"{host[:100]} is a private address, which is not fetched.")
        return addresses


def _parsed(text: str) -> URL:
    try:
        url = URL(text)
    except (ValueError, UnicodeError):
        url = URL()
    if len(text) > MAX_URL or url.scheme not in ("http", "https") or not url.host:
        raise ToolFailure("input.invalid", "That is no http or https URL.")
    if url.user is not None or url.password is not None:
        raise ToolFailure("input.invalid", "A URL must not carry a user or a password.")
    return url


def _joinable(location: str) -> bool:
    try:
        URL(location)
    except (ValueError, UnicodeError):
        return False
    return True


async def _fetched(url: URL, addresses: Sequence[str], max_bytes: int, progress: Callable[[int, int | None], None]) -> Page | str:
    """The page, or where it redirects to."""
    connector = aiohttp.TCPConnector(resolver=_Pinned(addresses), use_dns_cache=False, force_close=True)
    try:
        async with aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            headers={"User-Agent": USER_AGENT, "Accept-Encoding": "identity", "Accept": "text/*, application/json, application/xml;q=0.9"},
        ) as session:
            async with session.get(url, allow_redirects=False) as response:
                if response.status in _REDIRECTS and (location := response.headers.get("Location")):
                    return location
                if not 200 <= response.status < 300:
                    raise failure_of(response.status, response.headers, url.host or "The server")
                body, truncated = await _body(response, max_bytes, progress)
                return Page(str(url), response.status, response.content_type, response.charset or "utf-8", body, truncated)
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
        raise ToolFailure("transport.unreachable", f"{url.host} cannot be reached.", developer_message=type(error).__name__) from error
    except (aiohttp.ClientError, OSError) as error:
        raise ToolFailure("transport.broken", f"The connection to {url.host} broke.", developer_message=type(error).__name__) from error


async def _body(response: aiohttp.ClientResponse, max_bytes: int, progress: Callable[[int, int | None], None]) -> tuple[bytes, bool]:
    """At most `max_bytes` of the body as it was before its encoding: a small answer must not unfold into a large one."""
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    unpack = None
    if encoding in ("gzip", "x-gzip"):
        unpack = zlib.decompressobj(zlib.MAX_WBITS | 16)
    elif encoding not in ("identity", ""):
        raise ToolFailure("output.blocked", "The server answers in an encoding that was not asked for.")
    body = bytearray()
    received = 0
    async for chunk in response.content.iter_chunked(32 * 1024):
        received += len(chunk)
        room = max_bytes + 1 - len(body)
        try:
            body += unpack.decompress(chunk, room) if unpack is not None else chunk[:room]
        except zlib.error as error:
            raise ToolFailure("output.invalid", "The answer cannot be unpacked.") from error
        progress(received, response.content_length)
        if len(body) > max_bytes:
            return bytes(body[:max_bytes]), True
    return bytes(body), False
