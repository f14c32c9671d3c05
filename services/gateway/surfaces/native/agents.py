"""Agents and tools, as they are configured."""

from bulkhead.orchestrator.v1 import orchestrator_pb2
from bulkhead.tools.v1 import tools_pb2
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from services.gateway.edge.route import needs
from services.gateway.surfaces.native import shapes
from services.gateway.surfaces.native.models import After, Limit, NamePath
from services.gateway.surfaces.native.outputs import AgentOut, AgentPage, ToolPage
from services.gateway.surfaces.native.routing import answers, native_router
from services.gateway.surfaces.wiring import Wiring


class Agents:
    """/v1/agents and /v1/tools"""

    def __init__(self, wiring: Wiring) -> None:
        self._agents = wiring.backends.agents
        self._tools = wiring.backends.tools

    def router(self) -> APIRouter:
        """Routes."""
        router = native_router("agents")
        router.add_api_route("/v1/agents", self.list, methods=["GET"], responses=answers(AgentPage))
        router.add_api_route("/v1/agents/{agent}", self.get, methods=["GET"], responses=answers(AgentOut))
        router.add_api_route("/v1/tools", self.tools, methods=["GET"], responses=answers(ToolPage))
        return router

    @needs()
    async def list(self, request: Request, limit: Limit = 100, after: After = "") -> Response:
        """The newest version of each agent."""
        answer = await self._agents.ListAgents(orchestrator_pb2.ListAgentsRequest(page_size=limit, page_token=after))
        return shapes.page(request, map(shapes.agent, answer.agents), answer.next_page_token)

    @needs()
    async def get(self, request: Request, agent: NamePath) -> Response:
        """One agent."""
        answer = await self._agents.GetAgent(orchestrator_pb2.GetAgentRequest(name=agent))
        return shapes.reply(shapes.agent(answer.agent))

    @needs()
    async def tools(self, request: Request, limit: Limit = 100, after: After = "") -> Response:
        """The tools that the caller may use."""
        answer = await self._tools.ListTools(tools_pb2.ListToolsRequest(page_size=limit, page_token=after))
        return shapes.page(request, map(shapes.tool, answer.tools), answer.next_page_token)
