"""What users think of runs."""

from typing import Annotated

from bulkhead.orchestrator.v1 import admin_pb2
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb
from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from services.gateway.edge.exchange import exchange
from services.gateway.edge.route import idempotency_key, needs
from services.gateway.surfaces.native import control_shapes, shapes
from services.gateway.surfaces.native.control_models import FeedbackCreate
from services.gateway.surfaces.native.control_shapes import FeedbackPage, FeedbackRecorded
from services.gateway.surfaces.native.models import ID_PATTERN, NAME_PATTERN, After, Limit, Moment
from services.gateway.surfaces.native.routing import answers, native_router
from services.gateway.surfaces.wiring import Wiring

OfRun = Annotated[str | None, Query(pattern=ID_PATTERN, description="Of this run alone.")]
OfAgent = Annotated[str | None, Query(pattern=NAME_PATTERN, description="Of runs of this agent alone.")]
Since = Annotated[Moment | None, Query(description="Recorded then or later, RFC 3339 with a time zone.")]


class Feedback:
    """/v1/feedback"""

    def __init__(self, wiring: Wiring) -> None:
        self._runs, self._admin = wiring.backends.runs, wiring.backends.admin

    def router(self) -> APIRouter:
        """Routes."""
        router = native_router("feedback")
        recorded = answers(FeedbackRecorded, 201, "Recorded.")
        router.add_api_route("/v1/feedback", self.record, methods=["POST"], status_code=201, responses=recorded)
        router.add_api_route("/v1/feedback", self.list, methods=["GET"], responses=answers(FeedbackPage))
        return router

    @needs("runs:write", body="json")
    async def record(self, request: Request, body: FeedbackCreate) -> Response:
        """Records what the caller thinks of a run of theirs, also after its end. It becomes a `feedback` event of the thread."""
        exchange(request).about(run_id=body.run_id)
        asked = pb.RecordFeedbackRequest(
            run_id=body.run_id,
            idempotency_key=idempotency_key(request),
            rating=body.rating or 0,
            thumbs=control_shapes.THUMBS[body.thumbs] if body.thumbs else pb.THUMBS_UNSPECIFIED,
            text=body.text,
            corrected_answer=body.corrected_answer,
            signal=control_shapes.SIGNALS[body.signal] if body.signal else pb.FEEDBACK_SIGNAL_UNSPECIFIED,
        )
        if body.dwell_ms is not None:
            asked.dwell.FromMilliseconds(body.dwell_ms)
        answer = await self._runs.RecordFeedback(asked)
        shape = {"feedback_id": answer.feedback_id, "run_id": body.run_id, "seq": answer.seq}
        return shapes.reply(shape, 201, {"location": f"/v1/feedback?run_id={body.run_id}"})

    @needs("admin")
    async def list(
        self,
        request: Request,
        run_id: OfRun = None,
        agent: OfAgent = None,
        since: Since = None,
        limit: Limit = 100,
        after: After = "",
    ) -> Response:
        """Feedback on runs of all users of the tenant, newest first."""
        asked = admin_pb2.ListFeedbackRequest(run_id=run_id or "", agent=agent or "", page_size=limit, page_token=after)
        if since is not None:
            asked.since.FromDatetime(since)
        answer = await self._admin.ListFeedback(asked)
        return shapes.page(request, map(control_shapes.feedback, answer.feedback), answer.next_page_token)
