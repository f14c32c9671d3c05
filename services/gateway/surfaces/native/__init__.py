"""The native API: all that we promise, as views of what the services behind it keep."""

from fastapi import APIRouter

from services.gateway.surfaces.native.agents import Agents
from services.gateway.surfaces.native.approvals import Approvals
from services.gateway.surfaces.native.blobs import Blobs
from services.gateway.surfaces.native.chat import Chat
from services.gateway.surfaces.native.control import Control
from services.gateway.surfaces.native.documents import Documents
from services.gateway.surfaces.native.erasures import Erasures
from services.gateway.surfaces.native.events import Events
from services.gateway.surfaces.native.feedback import Feedback
from services.gateway.surfaces.native.hooks import Hooks
from services.gateway.surfaces.native.keys import ApiKeys
from services.gateway.surfaces.native.memories import Memories
from services.gateway.surfaces.native.models import DocumentCreate
from services.gateway.surfaces.native.outputs import Problem
from services.gateway.surfaces.native.quota import Quota
from services.gateway.surfaces.native.runs import Runs
from services.gateway.surfaces.native.schedules import Schedules
from services.gateway.surfaces.native.thread_snapshots import ResumeGapProblem
from services.gateway.surfaces.native.threads import Threads
from services.gateway.surfaces.native.webhooks import Webhooks
from services.gateway.surfaces.wiring import Wiring

# Models that the OpenAPI document mentions by name only.
NAMED_MODELS = (Problem, ResumeGapProblem, DocumentCreate)


def routers(wiring: Wiring) -> list[APIRouter]:
    """Routers of the native API."""
    surfaces = (
        Threads,
        Runs,
        Events,
        Documents,
        Memories,
        Agents,
        Chat,
        Approvals,
        Control,
        Feedback,
        Schedules,
        Webhooks,
        Hooks,
        Quota,
        Erasures,
        ApiKeys,
    )
    blobs = Blobs(wiring)
    return [*(surface(wiring).router() for surface in surfaces), blobs.open_router(), blobs.router()]
