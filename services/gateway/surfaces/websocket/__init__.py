"""`/ws`: commands and watches of runs and threads over one WebSocket; docs/websocket.md is its guide.

A projection of the HTTP routes: each command is a request to the application of this process, so that admission, scopes, shapes,
idempotency and refusals of a command are those of its route.
"""

from typing import Any

from fastapi import FastAPI

from services.gateway.settings import Settings
from services.gateway.surfaces.websocket.entry import App, Entry
from services.gateway.surfaces.websocket.wire import WebSocketWire


def with_websockets(http: App, app: FastAPI, settings: Settings) -> App:
    """`http`, which is `app` behind its edge, with `/ws` before it."""
    return Entry(http, app.state.doorkeeper.admission, settings)


def websockets(settings: Settings) -> dict[str, Any]:
    """Options of the HTTP server."""
    # Without compression: its windows cost memory for each connection, and a small frame could unpack to a large one.
    return {
        "ws": WebSocketWire, "ws_max_size": settings.websocket_message_bytes, "ws_ping_interval": settings.websocket_ping_s,
        "ws_ping_timeout": settings.websocket_ping_s, "ws_per_message_deflate": False,
    }  # fmt: skip
