"""GET /v1/models: the agents, in the shape of models."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

import orjson
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb
from fastapi import APIRouter, Path
from starlette.requests import Request
from starlette.responses import Response

from services.common.errors import InvalidInput, NotFound
from services.gateway.edge.route import GuardedRoute, needs
from services.gateway.inputs import Said, as_the_client_says
from services.gateway.surfaces.openai import schema
from services.gateway.surfaces.wiring import Wiring

LARGEST_PAGE = 1000
# What a run needs of its agent's name; anything else cannot be the name of one.
MAX_MODEL = 128


class RunCalls(Protocol):
    """The one call that is needed of the runs."""

    CreateRun: Callable[..., Awaitable[pb.CreateRunResponse]]


class Models:
    """/v1/models"""

    def __init__(self, wiring: Wiring) -> None:
        self._agents = wiring.backends.agents

    def router(self) -> APIRouter:
        """Routes."""
        router = APIRouter(route_class=GuardedRoute, tags=["openai"], responses=schema.ERRORS)
        router.add_api_route("/v1/models", self.list, methods=["GET"], responses=schema.MODELS)
        router.add_api_route("/v1/models/{model}", self.get, methods=["GET"], responses=schema.MODEL)
        return router

    @needs(open_query=True)
    async def list(self, request: Request) -> Response:
        """The agents as models."""
        answer = await self._agents.ListAgents(pb.ListAgentsRequest(page_size=LARGEST_PAGE))
        return _json({"object": "list", "data": [_model(agent) for agent in answer.agents]})

    @needs(open_query=True)
    async def get(self, request: Request, model: str = Path(max_length=128)) -> Response:
        """One agent as a model."""
        try:
            answer = await self._agents.GetAgent(pb.GetAgentRequest(name=model))
        except (NotFound, InvalidInput):
            raise no_model() from None
        return _json(_model(answer.agent))


def no_model() -> NotFound:
    """The refusal of a name that no agent has."""
    return NotFound("there is no agent of this name; GET /v1/models lists them", reason="MODEL_NOT_FOUND")


async def create_run(runs: RunCalls, asked: pb.CreateRunRequest, names: Mapping[str, str], said: Sequence[Said]) -> pb.CreateRunResponse:
    """Starts a run whose agent is named by `model`. `names` and `said` say how the route calls fields of the request, as for
    `as_the_client_says`.

    Raises NotFound with MODEL_NOT_FOUND, and what refuses the run.
    """
    if len(asked.agent) > MAX_MODEL:
        raise no_model()
    try:
        return await runs.CreateRun(asked)
    except InvalidInput as error:
        as_the_client_says(error, names, said)
        raise
    except NotFound as error:
        if error.reason in ("AGENT_NOT_FOUND", "NOT_FOUND"):
            raise no_model() from error
        raise


def _model(agent: pb.Agent) -> dict[str, Any]:
    return {"id": agent.name, "object": "model", "created": 0, "owned_by": "bulkhead", "description": agent.description}


def _json(content: Any) -> Response:
    return Response(orjson.dumps(content), 200, None, "application/json")
