"""The gateway's native API as the commands use it. Every failure is one line with the way out."""

import json
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import aiohttp

from services.cli import sse
from services.cli.connection import Connection
from services.cli.failure import CommandFailure, Denied, Unreachable

CONNECT_TIMEOUT_S = 5.0
REQUEST_TIMEOUT_S = 120.0
# Twice the longest silence that the gateway allows itself on a stream.
STREAM_SILENCE_S = 30.0
MAX_EVENT_BYTES = 8 * 1024 * 1024


class Interrupted(CommandFailure):
    """A stream ended before its last event."""


class NotThere(CommandFailure):
    """404."""


class Api:
    """async with Api(connection) as api: ..."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S, sock_connect=CONNECT_TIMEOUT_S)
        headers = {"authorization": f"Bearer {self._connection.api_key}"}
        self._session = aiohttp.ClientSession(headers=headers, timeout=timeout, read_bufsize=MAX_EVENT_BYTES)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._session is not None
        await self._session.close()

    async def get(self, path: str, **query: Any) -> Any:
        """The JSON answer of a GET. `None` parameters are left out. Raises CommandFailure."""
        return await self._json("GET", path, query=query)

    async def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """The JSON answer of a POST. Raises CommandFailure."""
        return await self._json("POST", path, body=body)

    async def _json(self, method: str, path: str, *, query: Mapping[str, Any] | None = None, body: Any = None) -> Any:
        async with self._request(method, path, query=query, body=body) as answer:
            await self._check(answer)
            try:
                return await answer.json(content_type=None)
            except ValueError:
                raise CommandFailure(f"{method} {path}: the answer is no JSON; is {self._connection.url} a Bulkhead gateway?") from None

    async def events(
        self, method: str, path: str, *, query: Mapping[str, Any] | None = None, body: Any = None
    ) -> AsyncIterator[dict[str, Any]]:
        """The events of a stream, until the server ends it. Raises Interrupted when the connection breaks."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=STREAM_SILENCE_S)
        request = self._request(method, path, query=query, body=body, timeout=timeout, headers={"accept": "text/event-stream"})
        async with request as answer:
            await self._check(answer)
            try:
                async for event in sse.parse(answer.content.iter_any()):
                    try:
                        data = json.loads(event.data)
                    except ValueError:
                        raise CommandFailure(f"{path}: an event is no JSON") from None
                    if event.event == "stream_error":
                        raise Interrupted(f"the stream broke off: {data.get('detail') or data.get('reason')}")
                    yield data
            except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
                raise Interrupted(f"the stream broke off: {_why(error)}") from None

    def _request(self, method: str, path: str, *, query: Mapping[str, Any] | None = None, body: Any = None, **more: Any) -> "_Request":
        assert self._session is not None
        params = {name: str(value) for name, value in (query or {}).items() if value is not None}
        context = self._session.request(method, self._connection.url + path, params=params, json=body, **more)
        return _Request(context, self._connection.url)

    async def _check(self, answer: aiohttp.ClientResponse) -> None:
        if answer.status < 400:
            return
        message = _message(answer.status, await answer.read())
        if answer.status in (401, 403):
            raise Denied(f"{message} (key from dev.env or BULKHEAD_API_KEY, for {self._connection.url})")
        if answer.status == 404:
            raise NotThere(message)
        raise CommandFailure(message)


class _Request:
    """An aiohttp request whose transport failures are told as `Unreachable`."""

    def __init__(self, context: Any, url: str) -> None:
        self._context = context
        self._url = url

    async def __aenter__(self) -> aiohttp.ClientResponse:
        try:
            return await self._context.__aenter__()
        except aiohttp.InvalidURL:
            raise CommandFailure(f"BULKHEAD_URL={self._url} is no URL") from None
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
            hint = "start it with `make run`, or look with `bulkhead doctor`"
            raise Unreachable(f"Bulkhead does not answer at {self._url} ({_why(error)}): {hint}") from None

    async def __aexit__(self, *exc: Any) -> None:
        await self._context.__aexit__(*exc)


def _why(error: BaseException) -> str:
    if isinstance(error, aiohttp.ClientConnectorError):
        return error.os_error.strerror or "cannot connect"
    return "timed out" if isinstance(error, TimeoutError) else type(error).__name__


def _message(status: int, raw: bytes) -> str:
    """What a problem+json says, in one line."""
    try:
        problem = json.loads(raw)
        text = problem.get("detail") or problem.get("title") or f"HTTP {status}"
        fields = "; ".join(f"{e.get('field', '')}: {e.get('detail', '')}" for e in problem.get("errors") or [])
        trace = problem.get("trace_id")
    except (ValueError, AttributeError, TypeError):
        return f"HTTP {status}"
    return " ".join(part for part in (text, f"({fields})" if fields else "", f"[trace {trace}]" if trace else "") if part)


def segment(text: str) -> str:
    """`text` as one segment of a path."""
    return quote(text, safe="")
