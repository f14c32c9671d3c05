"""What clients check against: the JSON Schema of the native events, at an address that stays as long as its version does."""

import orjson
from fastapi import APIRouter
from starlette.responses import Response

from services.gateway.surfaces.schemas.events import SCHEMA

EVENTS_PATH = "/schemas/events/v1.json"
_MEDIA_TYPE = "application/schema+json"


def router() -> APIRouter:
    """Routes of the schemas; they need no key."""
    routes = APIRouter(tags=["schemas"])
    content = orjson.dumps(SCHEMA)

    async def events() -> Response:
        """The JSON Schema (2020-12) of native events, version 1: the envelope, and `data` of each type."""
        return Response(content, 200, {"cache-control": "public, max-age=300"}, _MEDIA_TYPE)

    answer = {"description": "The schema.", "content": {_MEDIA_TYPE: {"schema": {"type": "object"}}}}
    routes.add_api_route(EVENTS_PATH, events, methods=["GET"], responses={200: answer}, response_class=Response)
    return routes
