"""Erasing what all services hold of a user."""

from typing import Annotated, Any, Literal

from bulkhead.orchestrator.v1 import admin_pb2 as pb
from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from services.gateway.edge.route import idempotency_key, needs
from services.gateway.surfaces.native import shapes
from services.gateway.surfaces.native.models import Body, IdPath
from services.gateway.surfaces.native.outputs import Out
from services.gateway.surfaces.native.routing import answers, native_router
from services.gateway.surfaces.native.shapes import moment
from services.gateway.surfaces.wiring import Wiring

_STATE = {pb.ERASURE_STATE_PENDING: "pending", pb.ERASURE_STATE_DONE: "done"}


class ErasureCreate(Body):
    """Whom to forget."""

    user: Annotated[
        str, Field(min_length=1, max_length=256, description="User of the caller's tenant. It takes `admin`, or to be the user.")
    ]


class ErasurePartOut(Out):
    """What one service has done; `erased` counts entries by kind."""

    service: str
    state: Literal["pending", "done"]
    attempts: int
    last_reason: str | None
    done_at: str | None
    erased: dict[str, int]


class ErasureOut(Out):
    """An erasure and its receipt, which names the user by a digest only."""

    erasure_id: str
    state: Literal["pending", "done"]
    subject_digest: str
    created_at: str | None
    done_at: str | None
    parts: list[ErasurePartOut]


class Erasures:
    """/v1/erasures"""

    def __init__(self, wiring: Wiring) -> None:
        self._admin = wiring.backends.admin

    def router(self) -> APIRouter:
        """Routes."""
        router = native_router("erasures")
        begun = answers(ErasureOut, 202, "Durable; Location leads to the receipt.")
        router.add_api_route("/v1/erasures", self.create, methods=["POST"], status_code=202, responses=begun)
        router.add_api_route("/v1/erasures/{erasure_id}", self.get, methods=["GET"], responses=answers(ErasureOut))
        return router

    # The orchestrator asks for the scope, since it depends on whom it is about.
    @needs(body="json")
    async def create(self, request: Request, body: ErasureCreate) -> Response:
        """Erases what all services hold of a user, API keys included. It goes on by itself to its end and cannot be taken back.

        Needs the scope `admin`, or `erasures:write` and that the caller is the user. Where one of the same user is under way, that one is
        answered.
        """
        asked = pb.ForgetSubjectRequest(user=body.user, idempotency_key=idempotency_key(request))
        begun = (await self._admin.ForgetSubject(asked)).erasure
        return shapes.reply(erasure(begun), 202, shapes.location("/v1/erasures", begun.erasure_id))

    @needs()
    async def get(self, request: Request, erasure_id: IdPath) -> Response:
        """The receipt of an erasure, as far as it has come. Needs the scope `admin`, or that the caller is the user."""
        answer = await self._admin.GetErasure(pb.GetErasureRequest(erasure_id=erasure_id))
        return shapes.reply(erasure(answer.erasure))


def erasure(message: pb.Erasure) -> dict[str, Any]:
    """An erasure."""
    return {
        "erasure_id": message.erasure_id,
        "state": _STATE[message.state],
        "subject_digest": message.subject_digest,
        "created_at": moment(message, "created_at"),
        "done_at": moment(message, "done_at"),
        "parts": [_part(part) for part in message.parts],
    }


def _part(message: pb.ErasurePart) -> dict[str, Any]:
    return {
        "service": message.service,
        "state": _STATE[message.state],
        "attempts": message.attempts,
        "last_reason": message.last_reason or None,
        "done_at": moment(message, "done_at"),
        "erased": {count.kind: count.count for count in message.erased},
    }
