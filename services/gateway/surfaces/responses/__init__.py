"""The OpenAI-compatible Responses and Conversations: runs and threads, as clients of the newer API know them."""

from fastapi import APIRouter

from services.gateway.surfaces.responses.conversations import Conversations
from services.gateway.surfaces.responses.responses import Responses
from services.gateway.surfaces.wiring import Wiring


def routers(wiring: Wiring) -> list[APIRouter]:
    """Routers of Responses and Conversations."""
    return [Responses(wiring).router(), Conversations(wiring).router()]
