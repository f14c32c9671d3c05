"""Approvals: what runs ask of people before they go on, and what people decide."""

from bulkhead.orchestrator.v1 import approvals_pb2 as pb
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from services.gateway.edge.exchange import exchange
from services.gateway.edge.route import idempotency_key, needs
from services.gateway.surfaces.native import approvals_shapes, shapes
from services.gateway.surfaces.native.approvals_models import ApprovalDecide, ApprovalIdPath, Decidable, OfRun, OfThread, State
from services.gateway.surfaces.native.approvals_shapes import ApprovalOut, ApprovalPage
from services.gateway.surfaces.native.models import After, Limit
from services.gateway.surfaces.native.routing import answers, native_router
from services.gateway.surfaces.wiring import Wiring


class Approvals:
    """/v1/approvals"""

    def __init__(self, wiring: Wiring) -> None:
        self._approvals = wiring.backends.approvals

    def router(self) -> APIRouter:
        """Routes. The ids have slashes in them."""
        router = native_router("approvals")
        one, decided = (
            answers(ApprovalOut),
            answers(ApprovalOut, 200, "Decided, or still open where another person has to approve as well."),
        )
        router.add_api_route("/v1/approvals", self.list, methods=["GET"], responses=answers(ApprovalPage))
        router.add_api_route("/v1/approvals/{approval_id:path}/decision", self.decide, methods=["POST"], responses=decided)
        router.add_api_route("/v1/approvals/{approval_id:path}", self.get, methods=["GET"], responses=one)
        return router

    @needs("approvals:read")
    async def list(
        self,
        request: Request,
        run_id: OfRun = None,
        thread_id: OfThread = None,
        state: State = None,
        decidable: Decidable = False,
        limit: Limit = 100,
        after: After = "",
    ) -> Response:
        """Approvals that the caller may decide, has decided or asked for as the user of the run, newest first."""
        exchange(request).about(run_id=run_id or "", thread_id=thread_id or "")
        asked = pb.ListApprovalsRequest(
            run_id=run_id or "",
            thread_id=thread_id or "",
            state=approvals_shapes.STATES[state] if state else pb.APPROVAL_STATE_UNSPECIFIED,
            decidable=decidable,
            page_size=limit,
            page_token=after,
        )
        answer = await self._approvals.ListApprovals(asked)
        return shapes.page(request, map(approvals_shapes.approval, answer.approvals), answer.next_page_token)

    @needs("approvals:read")
    async def get(self, request: Request, approval_id: ApprovalIdPath) -> Response:
        """One approval, for those who may decide it and for the user of its run."""
        exchange(request).about(run_id=approval_id.partition("/")[0])
        answer = await self._approvals.GetApproval(pb.GetApprovalRequest(approval_id=approval_id))
        return shapes.reply(approvals_shapes.approval(answer.approval))

    @needs("approvals:write", body="json")
    async def decide(self, request: Request, approval_id: ApprovalIdPath, body: ApprovalDecide) -> Response:
        """Decides an approval. It is durable before the answer, and the run goes on when all that it asked is answered.

        A second decision: 409 ALREADY_DECIDED with the first one. `arguments_digest` of other arguments than those that stand: 409
        ARGUMENTS_CHANGED with the digest of these. None, where `approve` comes behind an edit: 409 ARGUMENTS_DIGEST_REQUIRED.
        """
        exchange(request).about(run_id=approval_id.partition("/")[0])
        answer = await self._approvals.DecideApproval(approvals_shapes.decide_request(approval_id, body, idempotency_key(request)))
        return shapes.reply(approvals_shapes.approval(answer.approval))
