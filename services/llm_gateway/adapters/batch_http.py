"""HTTP to the batch APIs of providers: whole JSON answers, and files of JSON lines."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import orjson

from services.llm_gateway.batches.provider_port import ProviderFailed
from services.llm_gateway.batches.requests import MAX_LINE_BYTES

if TYPE_CHECKING:
    import aiohttp

# A call may take this long, and a transfer may stand still for this long.
CALL_S, SILENT_S, CONNECT_S = 60.0, 30.0, 5.0
MAX_ANSWER_BYTES = 8 * 1024 * 1024
# Refusals that may pass.
PASSING = frozenset({401, 403, 408, 409, 425, 429})


class BatchHttp:
    """One pool of connections for the batch APIs of all providers.

    aiohttp is imported when the first provider is asked: 14 MiB that a gateway without provider batches does not need.
    """

    def __init__(self) -> None:
        self._made: aiohttp.ClientSession | None = None

    @property
    def _session(self) -> "aiohttp.ClientSession":
        import aiohttp  # see above

        if self._made is None:
            # Redirects would carry a credential elsewhere; cookies have no place between a provider and many tenants.
            self._made = aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar(), connector=aiohttp.TCPConnector(limit=32))
        return self._made

    async def close(self) -> None:
        """Closes the connections."""
        if self._made is not None:
            await self._made.close()

    async def json(self, method: str, url: str, headers: Mapping[str, str], data: Any = None, *, transfer: bool = False) -> dict[str, Any]:
        """A whole answer, {} for an empty one; with `transfer` the request may take as long as its bytes keep moving. Raises
        ProviderFailed.
        """
        async with self.answer(method, url, headers, data, total_s=None if transfer else CALL_S) as answer:
            raw = await answer.content.read(MAX_ANSWER_BYTES)
            while not answer.content.at_eof() and len(raw) < MAX_ANSWER_BYTES:
                raw += await answer.content.read(MAX_ANSWER_BYTES)
        try:
            data = orjson.loads(raw) if raw else {}
        except orjson.JSONDecodeError:
            raise ProviderFailed("the answer is not JSON") from None
        if not isinstance(data, dict):
            raise ProviderFailed("the answer is no JSON object")
        return data

    async def lines(self, url: str, headers: Mapping[str, str]) -> AsyncIterator[dict[str, Any]]:
        """The JSON objects of a file with one a line; what is none is left out. Raises ProviderFailed."""
        async with self.answer("GET", url, headers, total_s=None) as answer:
            rest = bytearray()
            async for piece in answer.content.iter_any():
                rest += piece
                while (end := rest.find(b"\n")) >= 0:
                    if (line := _object(bytes(rest[:end]))) is not None:
                        yield line
                    del rest[: end + 1]
                if len(rest) > 4 * MAX_LINE_BYTES:
                    raise ProviderFailed("a result is larger than it can be")
            if (line := _object(bytes(rest))) is not None:
                yield line

    @asynccontextmanager
    async def answer(
        self, method: str, url: str, headers: Mapping[str, str], data: Any = None, *, total_s: float | None = CALL_S
    ) -> AsyncIterator["aiohttp.ClientResponse"]:
        """An answer whose body is yet to be read. Raises ProviderFailed, also for a status that is no success."""
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=total_s, sock_connect=CONNECT_S, sock_read=SILENT_S)
        try:
            async with self._session.request(method, url, headers=headers, data=data, timeout=timeout, allow_redirects=False) as answer:
                if answer.status >= 300:
                    raise _refusal(answer.status, await answer.content.read(2_000))
                yield answer
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            # Nothing was sent.
            raise ProviderFailed(f"{type(error).__name__}: {error}", refused=True) from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ProviderFailed(f"{type(error).__name__}: {error}") from error


def text_in(data: Mapping[str, Any], name: str) -> str:
    """A text that an answer must have. Raises ProviderFailed."""
    value = data.get(name)
    if not isinstance(value, str) or not value:
        raise ProviderFailed(f"the answer has no {name}")
    return value


def count_in(data: Any, *names: str) -> int:
    """The sum of counts, which may be missing, or texts as Google writes large numbers."""
    values = [data.get(name) for name in names] if isinstance(data, Mapping) else []
    return sum(int(value) for value in values if isinstance(value, int) or (isinstance(value, str) and value.isdecimal()))


def _object(raw: bytes) -> dict[str, Any] | None:
    try:
        line = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None
    return line if isinstance(line, dict) else None


def _refusal(status: int, body: bytes) -> ProviderFailed:
    permanent = (300 <= status < 500 and status not in PASSING) or status == 501
    # 529 is Anthropic's word for overloaded. What a gateway on the way answers, 502 to 504, may come after the deed.
    refused = 300 <= status < 500 or status in (501, 529)
    message = f"status {status}: {body.decode('utf-8', 'replace')[:300]}"
    return ProviderFailed(message, permanent=permanent, missing=status == 404, refused=refused)
