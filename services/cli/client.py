"""The gateway's native API as the commands use it. Every failure is one line with the way out."""

import asyncio
import json
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

import aiohttp

from services.cli import sse
from services.cli.connection import Connection
from services.cli.failure import CommandFailure, Dropped, InFlight, Interrupted, Unreachable, UsageProblem
from services.cli.problems import failure_of

T = TypeVar("T")
CONNECT_TIMEOUT_S = 5.0
REQUEST_TIMEOUT_S = 120.0
# Twice the longest silence that the gateway allows itself on a stream.
STREAM_SILENCE_S = 30.0
MAX_EVENT_BYTES = 8 * 1024 * 1024
# A request whose answer was lost is sent again under its key, so that nothing is done twice.
RETRIES = 5
RETRY_EVERY_S = 0.5
MOST_A_PAGE = 1_000


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

    async def post(self, path: str, body: Mapping[str, Any] | None = None, *, key: str = "", **query: Any) -> Any:
        """The JSON answer of a POST, done once however often it is sent; `key` is its idempotency key, else it has one of its own.
        Raises CommandFailure."""
        return await self._json("POST", path, query=query, body=body, key=key)

    async def put(self, path: str, body: Mapping[str, Any]) -> Any:
        """The JSON answer of a PUT, as `post`. Raises CommandFailure."""
        return await self._json("PUT", path, body=body)

    async def patch(self, path: str, body: Mapping[str, Any]) -> Any:
        """The JSON answer of a PATCH, as `post`. Raises CommandFailure."""
        return await self._json("PATCH", path, body=body)

    async def upload(self, path: str, content: bytes, mime_type: str, **query: Any) -> Any:
        """The JSON answer of a POST whose body are these bytes, as `post`. Raises CommandFailure."""
        return self._parsed("POST", path, (await self._answered("POST", path, query=query, content=content, mime_type=mime_type))[0])

    async def download(self, path: str) -> tuple[bytes, Mapping[str, str]]:
        """What a GET answers, as bytes, with its headers. Raises CommandFailure."""
        return await self._answered("GET", path)

    async def delete(self, path: str) -> Any:
        """The JSON answer of a DELETE; None where there is none. Raises CommandFailure."""
        return await self._json("DELETE", path)

    async def listed(self, path: str, limit: int, **query: Any) -> list[dict[str, Any]]:
        """The first `limit` entries of a list, over as many pages as that takes: one may be short without being the last. Raises
        CommandFailure."""
        found: list[dict[str, Any]] = []
        after = None
        while True:
            page = await self.get(path, limit=min(limit - len(found), MOST_A_PAGE), after=after, **query)
            found += page.get("data", [])
            before, after = after, page.get("next_after")
            if not after or len(found) >= limit:
                return found[:limit]
            if after == before:
                raise CommandFailure(f"{path}: the list goes on at {after!r} again and again")

    async def _json(self, method: str, path: str, *, query: Mapping[str, Any] | None = None, body: Any = None, key: str = "") -> Any:
        return self._parsed(method, path, (await self._answered(method, path, query=query, body=body, key=key))[0])

    def _parsed(self, method: str, path: str, raw: bytes) -> Any:
        if not raw:
            return None
        try:
            return json.loads(raw)
        except ValueError:
            raise CommandFailure(f"{method} {path}: the answer is no JSON; is {self._connection.url} a Bulkhead gateway?") from None

    async def _answered(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
        content: bytes | None = None,
        mime_type: str = "",
        key: str = "",
    ) -> tuple[bytes, Mapping[str, str]]:
        headers = {"idempotency-key": key} if key else _key(method)
        sent: dict[str, Any] = {"json": body} if content is None else {"data": content}
        if mime_type:
            headers = {**headers, "content-type": mime_type}
        for left in range(RETRIES, -1, -1):
            try:
                async with self._request(method, path, query=query, headers=headers, **sent) as answer:
                    await self._check(answer)
                    return await self._read(answer), answer.headers
            except (Dropped, InFlight):
                if not left:
                    raise
                await asyncio.sleep(RETRY_EVERY_S)
        raise AssertionError("the last attempt answers or raises")

    async def _read(self, answer: aiohttp.ClientResponse) -> bytes:
        try:
            return await answer.read()
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
            raise Dropped(f"Bulkhead broke off its answer at {self._connection.url} ({_why(error)})") from None

    async def events(
        self, method: str, path: str, *, query: Mapping[str, Any] | None = None, body: Any = None, last_event_id: int = 0
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The events of a stream behind `last_event_id`, until the server ends it. What starts something is sent again where no
        answer came. Raises Interrupted when the connection breaks behind the beginning of the answer, else CommandFailure."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=STREAM_SILENCE_S)
        headers = {"accept": "text/event-stream"} | _key(method) | ({"last-event-id": str(last_event_id)} if last_event_id else {})
        for left in range(0 if method == "GET" else RETRIES, -1, -1):
            try:
                async with self._request(method, path, query=query, json=body, timeout=timeout, headers=headers) as answer:
                    await self._check(answer)
                    async with aclosing(_events(path, answer)) as events:
                        async for event in events:
                            yield event
                    return
            except (Dropped, InFlight):
                if not left:
                    raise
                await asyncio.sleep(RETRY_EVERY_S)

    def _request(self, method: str, path: str, *, query: Mapping[str, Any] | None = None, **more: Any) -> "_Request":
        assert self._session is not None
        # A list is a parameter that is there several times.
        values = ((name, value if isinstance(value, list) else [value]) for name, value in (query or {}).items() if value is not None)
        params = [(name, str(each)) for name, several in values for each in several]
        context = self._session.request(method, self._connection.url + path, params=params, **more)
        return _Request(context, self._connection.url)

    async def _check(self, answer: aiohttp.ClientResponse) -> None:
        if answer.status >= 400:
            retry_after = answer.headers.get("retry-after", "")
            raise failure_of(answer.status, await self._read(answer), url=self._connection.url, retry_after=retry_after)


def ask(connection: Connection, question: Callable[[Api], Awaitable[T]]) -> T:
    """The answer to a question that is put to the gateway. Raises CommandFailure."""

    async def asking() -> T:
        async with Api(connection) as api:
            return await question(api)

    return asyncio.run(asking())


def _key(method: str) -> dict[str, str]:
    """What a request that changes something is known by, however often it is sent."""
    return {} if method == "GET" else {"idempotency-key": f"cli-{secrets.token_hex(16)}"}


async def _events(path: str, answer: aiohttp.ClientResponse) -> AsyncGenerator[dict[str, Any], None]:
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


class _Request:
    """An aiohttp request whose transport failures are told as `Unreachable`."""

    def __init__(self, context: Any, url: str) -> None:
        self._context = context
        self._url = url

    async def __aenter__(self) -> aiohttp.ClientResponse:
        try:
            return await self._context.__aenter__()
        except aiohttp.InvalidURL:
            raise UsageProblem(f"BULKHEAD_URL={self._url} is no URL") from None
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
            hint = "start it with `make run`, or look with `bulkhead doctor`"
            # Where no connection was made nothing was asked, and where none can be made asking again is of no use.
            kind = Unreachable if isinstance(error, (aiohttp.ClientConnectorError, TimeoutError)) else Dropped
            raise kind(f"Bulkhead does not answer at {self._url} ({_why(error)}): {hint}") from None

    async def __aexit__(self, *exc: Any) -> None:
        await self._context.__aexit__(*exc)


def _why(error: BaseException) -> str:
    if isinstance(error, aiohttp.ClientConnectorError):
        return error.os_error.strerror or "cannot connect"
    return "timed out" if isinstance(error, TimeoutError) else type(error).__name__


def segment(text: str) -> str:
    """`text` as one segment of a path. Raises UsageProblem for one that would lead to another path."""
    if text in ("", ".", ".."):
        raise UsageProblem(f"{text!r} is no id")
    return quote(text, safe="")


def segments(text: str) -> str:
    """An id that has slashes in it, as a part of a path. Raises UsageProblem as `segment`."""
    return "/".join(map(segment, text.split("/")))
