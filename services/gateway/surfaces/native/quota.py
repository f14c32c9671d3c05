"""What the caller's tier allows and what of it is used."""

import asyncio
from typing import Any

from bulkhead.llm.v1 import llm_pb2
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


class BudgetOut(Out):
    """A cap on money that holds for the caller: of a key, a user, a team, the tenant or a model. Without a period it never renews."""

    scope: str
    scope_id: str
    period: str | None
    limit_microusd: int
    spent_microusd: int
    reserved_microusd: int
    resets_at: str | None


class RateLimitOut(Out):
    """A limit on model calls or tokens that holds for the caller."""

    scope: str
    scope_id: str
    kind: str
    limit: int
    remaining: int
    reset_after_ms: int | None


class QuotaOut(Out):
    """Runs of the tenant with a slot, waiting for one and with a start that lies ahead; the active time that one run may take; money,
    model calls and tokens."""

    tier: str
    concurrent_runs: AllowanceOut
    queued_runs: AllowanceOut
    delayed_runs: AllowanceOut
    task_time_ms: int | None
    budgets: list[BudgetOut]
    rate_limits: list[RateLimitOut]


class Quota:
    """/v1/quota"""

    def __init__(self, wiring: Wiring) -> None:
        self._admin = wiring.backends.admin
        self._models = wiring.backends.models

    def router(self) -> APIRouter:
        """Routes."""
        router = native_router("quota")
        router.add_api_route("/v1/quota", self.get, methods=["GET"], responses=answers(QuotaOut))
        return router

    @needs("runs:read")
    async def get(self, request: Request) -> Response:
        """What limits the caller and how much of it is used, as each owner of a limit tells it.

        Requests to this API are counted in its RateLimit headers.
        """
        answer, money = await asyncio.gather(self._admin.GetQuota(pb.GetQuotaRequest()), self._models.GetBudget(llm_pb2.GetBudgetRequest()))
        return shapes.reply(
            {
                "tier": answer.tier,
                "concurrent_runs": _allowance(answer.concurrent_runs),
                "queued_runs": _allowance(answer.queued_runs),
                "delayed_runs": _allowance(answer.delayed_runs),
                "task_time_ms": answer.task_time.ToMilliseconds() if answer.HasField("task_time") else None,
                "budgets": [_budget(budget) for budget in money.budgets],
                "rate_limits": [_rate_limit(limit) for limit in money.limits],
            }
        )


def _allowance(message: pb.Allowance) -> dict[str, Any]:
    return {"used": message.used, "limit": message.limit if message.HasField("limit") else None}


def _budget(message: llm_pb2.BudgetState) -> dict[str, Any]:
    return {
        "scope": message.scope,
        "scope_id": message.scope_id,
        "period": message.period or None,
        "limit_microusd": message.limit_microusd,
        "spent_microusd": message.spent_microusd,
        "reserved_microusd": message.reserved_microusd,
        "resets_at": shapes.moment(message, "resets_at"),
    }


def _rate_limit(message: llm_pb2.RateLimitState) -> dict[str, Any]:
    return {
        "scope": message.scope,
        "scope_id": message.scope_id,
        "kind": message.kind,
        "limit": message.limit,
        "remaining": message.remaining,
        "reset_after_ms": message.reset_after.ToMilliseconds() if message.HasField("reset_after") else None,
    }
