"""The handshake: who may open a connection, and from where."""

import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import structlog
from opentelemetry.metrics import get_meter
from starlette.responses import Response
from uvicorn.protocols.utils import ClientDisconnected

from services.common.errors import BulkheadError, InvalidInput, NotFound, PermissionDenied
from services.gateway.edge.admission import Admission
from services.gateway.edge.asgi import Edge
from services.gateway.edge.exchange import SCOPE_KEY, exchange
from services.gateway.edge.problems import refusal
from services.gateway.settings import Settings
from services.gateway.surfaces.websocket.asking import App, Ask, Header, http_scope
from services.gateway.surfaces.websocket.connection import PATH, Connection
from services.gateway.surfaces.websocket.rules import KEY_PREFIX, SUBPROTOCOL, ConnectionRules
from services.gateway.surfaces.websocket.wire import WIRE

__all__ = ["App", "Entry"]

# Of the handshake, what goes with every command as well.
_KEPT = frozenset({b"authorization", b"x-api-key", b"x-canary", b"traceparent", b"tracestate", b"baggage", b"user-agent"})
_UPGRADING = "bulkhead.upgrading"
_DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}
log = structlog.get_logger("bulkhead.websocket")
_open = get_meter("bulkhead.http").create_up_down_counter(
    "bulkhead_gateway_open_websockets", description="WebSocket connections being served."
)


class UpgradeRequired(InvalidInput):
    """The path takes WebSocket handshakes only."""

    http_status = 426
    default_reason = "UPGRADE_REQUIRED"


class _Route:
    """What the edge names a request by in logs and metrics."""

    path = PATH


class Entry:
    """The whole application: `http`, and WebSocket connections at `/ws` whose commands are requests to it."""

    def __init__(self, http: App, admission: Admission, settings: Settings) -> None:
        """`http` with its edge."""
        self._http = http
        self._rules = ConnectionRules.of(settings)
        self._handshake = Edge(_Handshake(admission, [one.strip() for one in settings.websocket_origins.split(",") if one.strip()]))

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One request, or one connection."""
        if scope["type"] == "websocket":
            try:
                await self._connect(scope, receive, send)
            except ClientDisconnected:
                log.info("websocket_left_early")
            except Exception as error:
                log.error("internal_error", path=PATH, exc_info=error)
                raise
        elif scope["path"] == PATH:
            await self._handshake(scope, receive, send)
        else:
            await self._http(scope, receive, send)

    async def _connect(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        asked = http_scope(scope, "GET", scope["path"], _with_key(scope), scope["query_string"])
        asked["extensions"] = {_UPGRADING: True}
        handshake = Ask(self._handshake, asked)
        await handshake.answered()
        if handshake.status != 101:
            await send({"type": "websocket.http.response.start", "status": handshake.status, "headers": handshake.headers})
            await send({"type": "websocket.http.response.body", "body": handshake.body})
            return
        about = asked[SCOPE_KEY]
        chosen = SUBPROTOCOL if scope["subprotocols"] else None
        told = [header for header in handshake.headers if header[0] not in (b"content-length", b"content-type")]
        await send({"type": "websocket.accept", "subprotocol": chosen, "headers": told})
        headers = [header for header in asked["headers"] if header[0] in _KEPT]
        connection = Connection(self._http, scope, send, scope["extensions"][WIRE], about, headers, self._rules)
        started, why = time.monotonic(), "cancelled"
        _open.add(1)
        try:
            why = await connection.serve(receive)
        finally:
            _open.add(-1)
            seconds = round(time.monotonic() - started, 1)
            log.info("websocket_closed", tenant=about.tenant, reason=why, commands=connection.commands, duration_s=seconds)


class _Handshake:
    """Admits a connection like any request: 101, or the problem."""

    def __init__(self, admission: Admission, origins: Sequence[str]) -> None:
        self._admission, self._origins = admission, origins

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        about = exchange(scope)
        answer = Response(status_code=101)
        try:
            if scope["path"] != PATH:
                raise NotFound("there is no such route", reason="ROUTE_NOT_FOUND")
            scope["route"] = _Route
            if _UPGRADING not in scope["extensions"]:
                about.answer("upgrade", "websocket")
                raise UpgradeRequired("this route takes WebSocket connections only")
            for name, _ in parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True):
                detail = "is not taken: a key goes into the header Authorization, or a subprotocol"
                raise InvalidInput.field(name[:64], detail)
            self._check_origin(about.headers)
            _check_subprotocols(about.headers)
            await self._admission.admit(about, ())
        except BulkheadError as error:
            answer = refusal(scope, error)
        await answer(scope, receive, send)

    def _check_origin(self, headers: dict[str, str]) -> None:
        """Raises PermissionDenied for a page of another site. What is no browser sends no Origin."""
        origin = headers.get("origin")
        if origin is None or "*" in self._origins or origin in self._origins:
            return
        if (host := _host(origin)) is None or host != _host(f"{urlsplit(origin).scheme}://{headers.get('host', '')}"):
            raise PermissionDenied("pages of this origin may not connect", reason="ORIGIN_NOT_ALLOWED")


def _host(url: str) -> tuple[str, int | None] | None:
    try:
        parts = urlsplit(url)
        return (parts.hostname, parts.port or _DEFAULT_PORTS.get(parts.scheme)) if parts.hostname else None
    except ValueError:
        return None


def _with_key(scope: Any) -> list[Header]:
    """The headers of a handshake, with the key of its subprotocol where a header would have it."""
    headers = [header for header in scope["headers"] if header[0] != b"sec-websocket-protocol"]
    # Whether a subprotocol is offered stays; what a key among them says does not.
    offered = [one for one in scope["subprotocols"] if not one.startswith(KEY_PREFIX)]
    keys = [one.removeprefix(KEY_PREFIX) for one in scope["subprotocols"] if one.startswith(KEY_PREFIX)]
    if scope["subprotocols"]:
        headers.append((b"sec-websocket-protocol", ", ".join(offered).encode("latin-1")))
    if keys and not any(name in (b"authorization", b"x-api-key") for name, _ in headers):
        headers.append((b"authorization", f"Bearer {keys[0]}".encode("latin-1")))
    return headers


def _check_subprotocols(headers: dict[str, str]) -> None:
    """Raises InvalidInput where a client offers subprotocols and ours is not among them: it would take no other answer."""
    offered = headers.get("sec-websocket-protocol")
    if offered is not None and SUBPROTOCOL not in offered.split(", "):
        raise InvalidInput.field("Sec-WebSocket-Protocol", f"must name {SUBPROTOCOL}")
