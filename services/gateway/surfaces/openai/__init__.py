"""The OpenAI-compatible API: chat completions, and the agents as models."""

from fastapi import APIRouter

from services.gateway.surfaces.openai.chat import ChatCompletions
from services.gateway.surfaces.openai.models import Models
from services.gateway.surfaces.wiring import Wiring


def routers(wiring: Wiring) -> list[APIRouter]:
    """Routers of the OpenAI-compatible API."""
    return [ChatCompletions(wiring).router(), Models(wiring).router()]
