"""/health and /ready, for whoever starts and restarts the process."""

import orjson
from fastapi import APIRouter
from starlette.responses import Response

from services.common.health import Health


def router(health: Health) -> APIRouter:
    """Routes of the probes; they need no key."""
    routes = APIRouter(tags=["probes"])

    async def alive() -> Response:
        """Alive: the process answers. Says nothing about dependencies."""
        return _json({"status": "ok"})

    async def ready() -> Response:
        """Ready for work; else 503 with what is failing."""
        failing = health.failing()
        status = "draining" if health.draining else ("ready" if health.ready else "unavailable")
        return _json({"status": status, "failing": failing, "config_refused": sorted(health.refused())}, 200 if health.ready else 503)

    content = {"application/json": {"schema": {"type": "object"}}}
    ok = {"description": "Yes.", "content": content}
    routes.add_api_route("/health", alive, methods=["GET"], responses={200: ok})
    routes.add_api_route("/ready", ready, methods=["GET"], responses={200: ok, 503: {"description": "Not now.", "content": content}})
    return routes


def _json(content: object, status: int = 200) -> Response:
    return Response(orjson.dumps(content), status, {"cache-control": "no-store"}, "application/json")
