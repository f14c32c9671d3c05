"""What the caller's tier allows and what of it is used."""

from typing import Any

from bulkhead.orchestrator.v1 import admin_pb2 as pb
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from services.gateway.edge.route import needs
from services.gateway.surfaces.native import shapes
from services.gateway.surfaces.native.outputs import Out
from services.gateway.surfaces.native.routing import answers, native_router
from services.gateway.surfaces.wiring import Wiring


class AllowanceOut(Out):
    """How much of something is used. Without a limit as much as one likes."""

    used: int
    limit: int | None


class QuotaOut(Out):
    """Runs of the tenant with a slot, waiting for one and with a start that lies ahead; and the active time that one run may take."""

    tier: str
    concurrent_runs: AllowanceOut
    queued_runs: AllowanceOut
    delayed_runs: AllowanceOut
    task_time_ms: int | None


class Quota:
    """/v1/quota"""

    def __init__(self, wiring: Wiring) -> None:
        self._admin = wiring.backends.admin

    def router(self) -> APIRouter:
        """Routes."""
        router = native_router("quota")
        router.add_api_route("/v1/quota", self.get, methods=["GET"], responses=answers(QuotaOut))
        return router

    @needs("runs:read")
    async def get(self, request: Request) -> Response:
        """Runs of the caller's tenant against the limits of the caller's tier. Requests are counted in the RateLimit headers."""
        answer = await self._admin.GetQuota(pb.GetQuotaRequest())
        return shapes.reply(
            {
                "tier": answer.tier,
                "concurrent_runs": _allowance(answer.concurrent_runs),
                "queued_runs": _allowance(answer.queued_runs),
                "delayed_runs": _allowance(answer.delayed_runs),
                "task_time_ms": answer.task_time.ToMilliseconds() if answer.HasField("task_time") else None,
            }
        )


def _allowance(message: pb.Allowance) -> dict[str, Any]:
    return {"used": message.used, "limit": message.limit if message.HasField("limit") else None}
