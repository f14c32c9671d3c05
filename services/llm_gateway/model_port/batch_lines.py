"""Lines of batches through the routes that serve the same requests over HTTP: same checks, same answers, same errors."""

import asyncio
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

import orjson
import structlog

from services.common.errors import BulkheadError, InvalidInput
from services.common.identity import Principal
from services.common.rpc import context as call_context
from services.llm_gateway.batches.line_calls import metered
from services.llm_gateway.batches.ports import Answered, KeyCheck
from services.llm_gateway.batches.requests import ENDPOINTS
from services.llm_gateway.model_port.errors import Refused
from services.llm_gateway.model_port.exchange import Exchange, Message
from services.llm_gateway.model_port.routing import Route, Surface

log = structlog.get_logger("bulkhead.batches")


class RouteLines:
    """Implements batches.ports.Lines over surfaces, which are built over LineCalls."""

    def __init__(self, surfaces: Iterable[Surface], check_key: KeyCheck) -> None:
        self._routes: dict[str, Route] = {
            route.path: route for surface in surfaces for route in surface.routes() if route.method == "POST" and route.path in ENDPOINTS
        }
        self._check_key = check_key

    async def call(self, endpoint: str, body: Mapping[str, Any], principal: Principal, *, key_checked: bool) -> Answered:
        """As Lines.call."""
        route = self._routes[endpoint]
        request_id, form = uuid.uuid4().hex, route.errors
        try:
            wire = _Wire(orjson.dumps(body))
        except TypeError:
            error = InvalidInput.field("body", "is nested too deeply")
            return Answered(form.status(error), form.of(error), request_id, error=error)
        exchange = Exchange({"method": "POST", "path": endpoint, "headers": []}, wire.receive, wire.send)
        exchange.principal = principal
        with call_context.bind(call_context.CallContext(request_id, principal=principal)), metered() as meter:
            try:
                if key_checked:
                    await self._check_key(principal)
                if route.scope is not None:
                    principal.require(route.scope)
                if body.get("stream"):
                    raise InvalidInput.field("stream", "a request of a batch cannot be streamed")
                await route.handle(exchange)
            except Refused as refused:
                return Answered(refused.status, form.refused(refused), request_id, meter.usage)
            except BulkheadError as error:
                return Answered(form.status(error), form.of(error), request_id, meter.usage, error)
            except Exception as error:  # the boundary: every other error becomes an opaque id
                error_id = uuid.uuid4().hex[:12]
                log.error("internal_error", path=endpoint, error_id=error_id, exc_info=error)
                return Answered(500, form.internal(error_id), request_id, meter.usage)
            finally:
                await exchange.close()
        return Answered(exchange.status, bytes(wire.answer), request_id, meter.usage)


class _Wire:
    """An ASGI connection in memory: the client has sent its request, and stays."""

    def __init__(self, body: bytes) -> None:
        self._body: bytes | None = body
        self.answer = bytearray()

    async def receive(self) -> Message:
        """The request, then nothing for as long as anybody waits."""
        body, self._body = self._body, None
        if body is None:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": body or b"", "more_body": False}

    async def send(self, message: Message) -> None:
        """Part of the answer."""
        self.answer += message.get("body", b"")
