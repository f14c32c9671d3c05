"""The OpenAPI document: what FastAPI knows of the routes, with the promises that hold for all of them, and with examples.

document(app)                      # the document as an object
Document(app, models).answer       # the endpoint of /openapi.json
"""

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import orjson
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import Response

from services.gateway.edge.document import _openai, _things
from services.gateway.edge.document._bodies import BODIES
from services.gateway.edge.document._headers import GIVEN, TAKEN, TIMEOUT, given
from services.gateway.edge.document._promises import HEADERS, IDEMPOTENCY_KEY, LAST_EVENT_ID, changes, headers_of, references
from services.gateway.edge.document._refusals import Refusals
from services.gateway.edge.route import GuardedRoute

ANSWERS: Mapping[str, Any] = {**_things.ANSWERS, **_openai.ANSWERS}
_JSON, _EVENTS = "application/json", "text/event-stream"
_SERVER_SENT = {
    "id": str(_things.EVENT["seq"]), "event": _things.EVENT["type"], "data": orjson.dumps(_things.EVENT).decode(),
}  # fmt: skip


class Document:
    """The endpoint. The document is made when first asked for, and in a thread: it takes a fifth of a second."""

    def __init__(self, app: FastAPI, models: Sequence[type[BaseModel]]) -> None:
        self._make = partial(document, app, models)
        self._made: asyncio.Future[bytes] | None = None

    async def answer(self, request: Request) -> Response:
        """GET /openapi.json"""
        if self._made is None:
            self._made = asyncio.ensure_future(asyncio.to_thread(lambda: orjson.dumps(self._make())))
        return Response(await asyncio.shield(self._made), 200, {"cache-control": "no-cache"}, "application/json")


def document(app: FastAPI, models: Sequence[type[BaseModel]]) -> dict[str, Any]:
    """The document. `models` are those that routes refer to by name, because their bodies or answers are not declared through FastAPI."""
    made = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    parts = made.setdefault("components", {})
    _, named = models_json_schema([(model, "validation") for model in models], ref_template="#/components/schemas/{model}")
    parts["schemas"] = named["$defs"] | parts.get("schemas", {})
    parts["securitySchemes"] = {"apiKey": {"type": "http", "scheme": "bearer", "bearerFormat": "bh_…"}}
    guarded = {(m, route.path_format): route for route in app.routes if isinstance(route, GuardedRoute) for m in route.methods}
    refusals = Refusals(headers_of)
    used: dict[str, Any] = {}
    for path, operations in made["paths"].items():
        for method, operation in operations.items():
            name = f"{method.upper()} {path}"
            route = guarded.get((method.upper(), path))
            if route is not None:
                operation["security"] = [] if route.needs.visitors else [{"apiKey": []}]
                _parameters(operation, route, method.upper())
            for form, content in operation.get("requestBody", {}).get("content", {}).items():
                _exemplify(content, name, "body", BODIES if form == _JSON else {}, used)
            limited = route is not None and not route.needs.visitors
            for status, answer in operation["responses"].items():
                if route is not None and int(status) >= 400:
                    operation["responses"][status] = refusals.reference(path, int(status), answer, limited=limited)
                else:
                    answer["headers"] = headers_of(int(status), guarded=limited)
                    if route is not None:
                        answer["headers"] |= references(given(name, int(status), operation, route))
                    _answer(answer, name, used)
    parts["headers"] = {**HEADERS, **GIVEN}
    parts["responses"] = refusals.responses
    parts["examples"] = used | refusals.examples
    return made


def _parameters(operation: dict[str, Any], route: GuardedRoute, method: str) -> None:
    known = operation.setdefault("parameters", [])
    wanted = [*([IDEMPOTENCY_KEY] if changes(route, method) else []), *TAKEN.get(f"{method} {route.path_format}", ())]
    if not route.needs.visitors:
        wanted.append(TIMEOUT)
    if method == "GET" and _EVENTS in operation["responses"]["200"].get("content", {}) and any(one["name"] == "after" for one in known):
        wanted.append(LAST_EVENT_ID)
    known += [dict(one) for one in wanted if one["name"] not in [before["name"] for before in known]]


def _answer(answer: dict[str, Any], name: str, used: dict[str, Any]) -> None:
    content = answer.get("content", {})
    if _EVENTS in content and content.get(_JSON, {}).get("schema") == {}:
        # FastAPI's own idea of a route that declares no model: this one answers with events alone.
        del content[_JSON]
    if "properties" in content.get(_EVENTS, {}).get("schema", {}):
        used.setdefault("Event", {"value": _SERVER_SENT})
        content[_EVENTS]["examples"] = {"Event": {"$ref": "#/components/examples/Event"}}
    if _JSON in content:
        _exemplify(content[_JSON], name, "answer", ANSWERS, used)


def _exemplify(content: dict[str, Any], name: str, part: str, known: Mapping[str, Any], used: dict[str, Any]) -> None:
    """Refers to the example of the model, or of the `part` of the route where its schema has no name."""
    schema = content.get("schema", {})
    model = next((one["$ref"].rpartition("/")[2] for one in (schema, *schema.get("anyOf", ())) if "$ref" in one), name)
    if model in known:
        # In the names of components there is no room for a path.
        label = "".join(c if c.isalnum() else "_" for c in (f"{name} {part}" if model == name else model))
        used.setdefault(label, {"value": known[model]})
        content["examples"] = {label: {"$ref": f"#/components/examples/{label}"}}
