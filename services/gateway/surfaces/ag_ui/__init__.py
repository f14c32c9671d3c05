"""AG-UI 1.0: an agent for front ends that speak the protocol, as a view of the orchestrator's log."""

from fastapi import APIRouter

from services.gateway.surfaces.ag_ui.runs import Runs
from services.gateway.surfaces.wiring import Wiring


def routers(wiring: Wiring) -> list[APIRouter]:
    """Routers of the AG-UI surface."""
    return [Runs(wiring).router()]
