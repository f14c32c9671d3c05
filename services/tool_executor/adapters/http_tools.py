"""Tools that are one HTTP request each, as tools.yaml describes them.

The request goes out at most once an attempt. aiohttp would repeat GET, PUT and DELETE by itself when a connection
breaks; here a second connection within one attempt is refused.
"""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import aiohttp
import orjson
from yarl import URL

from services.common.rpc import context as call_context
from services.common.rpc.wire import CANARY, inject_trace
from services.tool_executor.adapters.http_status import failure_of
from services.tool_executor.configuration import HttpConfig
from services.tool_executor.failures import ToolFailure
from services.tool_executor.tools import MAX_OUTPUT_BYTES, Run, ToolCall

CONNECT_TIMEOUT_S = 5.0
_TRACE_HEADERS = frozenset({"traceparent", "tracestate"})


class _SecondConnection(aiohttp.ClientConnectionError):
    """aiohttp was about to send the request again."""


class HttpTools:
    """Makes the `run` of HTTP tools; `close` ends their connections."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    def run_of(self, config: HttpConfig) -> Run:
        """The function that makes the request of `config`."""

        async def run(call: ToolCall, arguments: Mapping[str, Any]) -> Any:
            return await self._request(config, call, arguments)

        return run

    async def close(self) -> None:
        """Ends what is left."""
        if self._session is not None:
            await self._session.close()

    def _made(self) -> aiohttp.ClientSession:
        if self._session is None:
            trace = aiohttp.TraceConfig()
            trace.on_connection_create_start.append(_connecting)
            trace.on_connection_create_end.append(_connected)
            self._session = aiohttp.ClientSession(
                # A reused connection may be one that the other side is just closing, which leaves in doubt whether the
                # request was seen. Concurrency is bounded by the tools' own slots, so that no tool waits for another.
                connector=aiohttp.TCPConnector(limit=0, force_close=True),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
                cookie_jar=aiohttp.DummyCookieJar(),
                trace_configs=[trace],
            )
        return self._session

    async def _request(self, config: HttpConfig, call: ToolCall, arguments: Mapping[str, Any]) -> Any:
        call.effect_possible = False
        url = URL(config.url)
        body = None
        if config.method == "GET":
            url = url.extend_query(_query(arguments))
        else:
            body = orjson.dumps(arguments)
        try:
            async with self._made().request(
                config.method,
                url,
                data=body,
                headers=_headers(config, call, body),
                allow_redirects=False,
                trace_request_ctx={"call": call, "connections": 0},
            ) as response:
                if not 200 <= response.status < 300:
                    raise failure_of(response.status, response.headers, url.host or "The server")
                return _content(await _read(response), response.content_type)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise ToolFailure(
                "transport.unreachable", f"{url.host} cannot be reached.", developer_message=type(error).__name__, certain=True
            ) from error
        except (aiohttp.ClientError, OSError) as error:
            raise ToolFailure(
                "transport.broken",
                f"The connection to {url.host} broke.",
                developer_message=type(error).__name__,
                certain=not call.effect_possible,
            ) from error


async def _connecting(_: aiohttp.ClientSession, context: SimpleNamespace, __: aiohttp.TraceConnectionCreateStartParams) -> None:
    made = context.trace_request_ctx
    made["connections"] += 1
    if made["connections"] > 1:
        raise _SecondConnection("the request is not sent a second time")


async def _connected(_: aiohttp.ClientSession, context: SimpleNamespace, __: aiohttp.TraceConnectionCreateEndParams) -> None:
    # From here on bytes may go out.
    context.trace_request_ctx["call"].effect_possible = True


def _headers(config: HttpConfig, call: ToolCall, body: bytes | None) -> dict[str, str]:
    headers = {"Accept": "application/json", **{k: v for k, v in inject_trace() if k in _TRACE_HEADERS}}
    if body is not None:
        headers["Content-Type"] = "application/json"
    context = call_context.current()
    if context is not None and context.canary:
        headers[CANARY] = "true"
    if call.key and config.idempotency_header:
        headers[config.idempotency_header] = call.key
    headers.update(config.headers)
    return headers


def _query(arguments: Mapping[str, Any]) -> list[tuple[str, str]]:
    pairs = []
    for name, value in arguments.items():
        for item in value if isinstance(value, list) else [value]:
            if item is not None:
                pairs.append((name, item if isinstance(item, str) else orjson.dumps(item).decode()))
    return pairs


async def _read(response: aiohttp.ClientResponse) -> bytes:
    chunks: list[bytes] = []
    size = 0
    async for chunk in response.content.iter_chunked(64 * 1024):
        size += len(chunk)
        if size > MAX_OUTPUT_BYTES:
            raise ToolFailure("output.too_large", f"The answer is larger than {MAX_OUTPUT_BYTES} bytes. Ask for less.")
        chunks.append(chunk)
    return b"".join(chunks)


def _content(body: bytes, content_type: str) -> Any:
    if not body:
        return None
    if content_type == "application/json" or content_type.endswith("+json"):
        try:
            return orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise ToolFailure("output.invalid", "The answer is not valid JSON.") from error
    return body.decode("utf-8", errors="replace")
