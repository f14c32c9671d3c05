"""The route class of every API route: admission, deadline and body come before FastAPI looks at the request."""

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from services.common.errors import InvalidInput
from services.common.rpc import context as call_context
from services.gateway.edge.admission import Admission
from services.gateway.edge.body import parse_json, read_body
from services.gateway.edge.exchange import Exchange, exchange
from services.gateway.edge.keyed import Keys, request_print
from services.gateway.edge.naming import HEADERS, Tree, as_the_route_says, tree_of
from services.gateway.edge.problems import is_ag_ui, is_openai
from services.gateway.refusals import InvalidBody, UnsupportedMediaType
from services.gateway.settings import Settings

LONGEST_TIMEOUT_MS = 3_600_000
TEXT_TYPES = ("text/markdown", "text/plain")
_NEEDS = "bulkhead_needs"


@dataclass(frozen=True, slots=True)
class Needs:
    """What a route asks of a request. `body_limit` in bytes, None for the setting; `open_query` lets unknown parameters pass;
    `model` of a body that the endpoint itself reads. `keyed` where no service behind the route keeps idempotency keys with what
    they were used for: the gateway does, and the endpoint looks at `Exchange.replayed` where to do it again would change something.
    `visitors` where no credential is asked for: the path itself shows that whoever comes may have it."""

    scopes: Sequence[str] = ()
    body: Literal["json", "json_or_text", "none"] = "none"
    body_limit: int | None = None
    open_query: bool = False
    model: type[BaseModel] | None = None
    keyed: bool = False
    visitors: bool = False


def needs(*scopes: str, **rest: Any) -> Callable[[Callable], Callable]:
    """Declares the Needs of an endpoint."""

    def mark(endpoint: Callable) -> Callable:
        setattr(endpoint, _NEEDS, Needs(scopes, **rest))
        return endpoint

    return mark


@dataclass(frozen=True, slots=True)
class Doorkeeper:
    """What the route class works with; the application keeps it as `state.doorkeeper`."""

    admission: Admission
    settings: Settings
    keys: Keys


class PreparedRequest(Request):
    """A request whose body was read and parsed before."""

    content: bytes = b""
    parsed: Any = None

    async def body(self) -> bytes:
        """The body as it came."""
        return self.content

    async def json(self) -> Any:
        """The parsed body."""
        return self.parsed


class GuardedRoute(APIRoute):
    """An API route. Its endpoint must state with `needs` what it asks for, so that no route is open by accident."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        self.needs: Needs = getattr(endpoint, _NEEDS)
        super().__init__(path, endpoint, **options)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """As APIRoute, behind admission and the reading of the body."""
        handler = super().get_route_handler()
        known = frozenset(parameter.alias for parameter in self.dependant.query_params)
        # Those of the protocols that others have made are named by their endpoints, which know them.
        needs, names = self.needs, None if is_openai(self.path) or is_ag_ui(self.path) else self.names()
        route = f"{'/'.join(sorted(self.methods))} {self.path}"

        async def guarded(request: Request) -> Response:
            about = exchange(request)
            keeper: Doorkeeper = request.app.state.doorkeeper
            if not needs.visitors:
                await keeper.admission.admit(about, needs.scopes)
            _bound_the_wait(about)
            _check_idempotency_key(about)
            if not needs.open_query:
                _refuse_unknown(request, known)
            prepared = PreparedRequest(request.scope, request.receive)
            if needs.body != "none":
                await _read(prepared, about, needs, keeper.settings)
            key = idempotency_key(request) if needs.keyed else ""
            try:
                if key:
                    print_ = request_print(request.scope["path"], prepared.content, prepared.parsed)
                    return await keeper.keys.once(about, key, route, print_, partial(handler, prepared))
                return await handler(prepared)
            except InvalidInput as error:
                # Of a body that does not fit, the fields are the client's own already.
                if names is not None and not isinstance(error, InvalidBody):
                    as_the_route_says(error, names)
                raise

        return guarded

    def names(self) -> Tree:
        """All that a request may have here, and what is below it."""
        found = dict.fromkeys(HEADERS)
        bodies = [field.field_info.annotation for field in self.dependant.body_params] + [self.needs.model]
        for body in bodies:
            found |= tree_of(body) or {}
        return found | {field.alias: None for field in (*self.dependant.path_params, *self.dependant.query_params)}


async def _read(request: PreparedRequest, about: Exchange, needs: Needs, settings: Settings) -> None:
    limit = needs.body_limit or settings.body_limit_bytes
    request.content = await read_body(request.receive, about.headers.get("content-length"), limit, settings.body_timeout_s)
    if not request.content:
        return
    kind = about.headers.get("content-type", "").partition(";")[0].strip().lower()
    if needs.body == "json_or_text" and kind in TEXT_TYPES:
        return
    if kind and kind != "application/json" and not kind.endswith("+json"):
        also = ", text/markdown or text/plain" if needs.body == "json_or_text" else ""
        raise UnsupportedMediaType(f"the body must be application/json{also}")
    request.parsed = parse_json(request.content, settings.json_depth_limit)


def _bound_the_wait(about: Exchange) -> None:
    raw = about.headers.get("x-request-timeout-ms")
    if raw is None:
        return
    if not (raw.isascii() and raw.isdigit() and len(raw) <= 9 and 1 <= int(raw) <= LONGEST_TIMEOUT_MS):
        raise InvalidInput.field("x-request-timeout-ms", f"must be a whole number from 1 to {LONGEST_TIMEOUT_MS}")
    context = call_context.current()
    assert context is not None
    call_context.enter(context.with_timeout(int(raw) / 1000))


def _check_idempotency_key(about: Exchange) -> None:
    key = about.headers.get("idempotency-key", "")
    if len(key) > 255 or not (key.isascii() and key.isprintable()):
        raise InvalidInput.field("Idempotency-Key", "must be at most 255 printable ASCII characters")


def _refuse_unknown(request: Request, known: frozenset[str]) -> None:
    for name in request.query_params:
        if name not in known:
            raise InvalidInput.field(name[:64], "is not a parameter of this route")


def idempotency_key(request: Request) -> str:
    """The Idempotency-Key of a request, empty without one."""
    return exchange(request).headers.get("idempotency-key", "")
