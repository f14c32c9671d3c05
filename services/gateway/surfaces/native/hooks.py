"""Hooks: where others' systems send what starts runs, and the signed messages that they send."""

from typing import Annotated, Any

from bulkhead.orchestrator.v1 import hooks_pb2 as pb
from fastapi import APIRouter, Header, Path, Query
from starlette.requests import Request
from starlette.responses import Response

from services.common.errors import InvalidInput
from services.gateway.edge.body import read_body
from services.gateway.edge.exchange import exchange
from services.gateway.edge.route import idempotency_key, needs
from services.gateway.surfaces.native import shapes
from services.gateway.surfaces.native.hooks_models import HookCreate, HookOut, HookPage, HookRotate, HookSecretOut, HookTaken, hook
from services.gateway.surfaces.native.models import NAME_PATTERN, IdPath
from services.gateway.surfaces.native.routing import answers, native_router, problem_answer
from services.gateway.surfaces.wiring import Wiring

READ, WRITE = "hooks:read", "hooks:write"
# Whoever makes a hook has its messages make runs.
RUNS = "runs:write"
MOST_BODY_BYTES = 256 * 1024
# A full stop parts what is signed, so none may stand in an id.
WEBHOOK_ID = r"^[!-\-/-~]{1,255}$"
# No cache may keep an answer that has a secret in it.
_SECRET = {"cache-control": "no-store"}
_TEXT: dict[str, Any] = {"schema": {"type": "string"}}
_MESSAGE = {"requestBody": {"required": True, "content": {"application/json": {"schema": {}}, "text/plain": _TEXT}}}
_UNSIGNED = "Not signed as it must be, or too long ago, or there is no such hook: which of these is not told."
HookId = Annotated[str, Query(max_length=128, description="The hook.")]
Agent = Annotated[str, Path(pattern=NAME_PATTERN, description="The agent of the hook.")]
MessageId = Annotated[str, Header(alias="webhook-id", pattern=WEBHOOK_ID, description="The same id is the same message.")]
MessageTime = Annotated[str, Header(alias="webhook-timestamp", min_length=1, max_length=32, description="Seconds since 1970.")]
Signature = Annotated[
    str, Header(alias="webhook-signature", min_length=1, max_length=4096, description="`v1,<base64>`; several are parted by spaces.")
]


class Hooks:
    """/v1/hooks"""

    def __init__(self, wiring: Wiring) -> None:
        self._hooks = wiring.backends.hooks
        self._body_timeout_s = wiring.settings.body_timeout_s

    def router(self) -> APIRouter:
        """Routes. One template of a path stands for a hook's id and, where messages come, for its agent."""
        router = native_router("hooks")
        one = "/v1/hooks/{hook}"
        made = answers(HookSecretOut, 201, "Made; the secret is in this answer and in no other.")
        router.add_api_route("/v1/hooks", self.create, methods=["POST"], status_code=201, responses=made)
        router.add_api_route("/v1/hooks", self.list, methods=["GET"], responses=answers(HookPage))
        router.add_api_route(one, self.get, methods=["GET"], responses=answers(HookOut))
        router.add_api_route(one, self.delete, methods=["DELETE"], status_code=204, responses=answers(None, 204, "Deleted."))
        router.add_api_route(f"{one}/secret", self.rotate, methods=["POST"], responses=answers(HookSecretOut))
        taken = answers(HookTaken, 202, "The run is durable; Location leads to it.") | {401: problem_answer(_UNSIGNED)}
        router.add_api_route(one, self.accept, methods=["POST"], status_code=202, responses=taken, openapi_extra=_MESSAGE)
        return router

    @needs(WRITE, RUNS, body="json")
    async def create(self, request: Request, body: HookCreate) -> Response:
        """Makes a hook. What is sent to its `url`, signed with its secret, starts runs on behalf of its maker."""
        asked = pb.CreateHookRequest(
            agent=body.agent, thread_id=body.thread_id or "", instructions=body.instructions, description=body.description,
            secret=body.secret or "", idempotency_key=idempotency_key(request),
        )  # fmt: skip
        answer = await self._hooks.CreateHook(asked)
        headers = {**_SECRET, **shapes.location("/v1/hooks", answer.hook.hook_id)}
        return shapes.reply({**hook(answer.hook), "secret": answer.secret}, 201, headers)

    @needs(READ)
    async def list(self, request: Request) -> Response:
        """All hooks of the tenant, oldest first, at most 50, without their secrets."""
        answer = await self._hooks.ListHooks(pb.ListHooksRequest())
        return shapes.page(request, map(hook, answer.hooks), "")

    @needs(READ)
    async def get(self, request: Request, hook_id: Annotated[IdPath, Path(alias="hook")]) -> Response:
        """One hook, without its secret."""
        return shapes.reply(hook((await self._hooks.GetHook(pb.GetHookRequest(hook_id=hook_id))).hook))

    @needs(WRITE)
    async def delete(self, request: Request, hook_id: Annotated[IdPath, Path(alias="hook")]) -> Response:
        """Removes a hook. What comes for it from then on is refused; runs that it started go on."""
        await self._hooks.DeleteHook(pb.DeleteHookRequest(hook_id=hook_id, idempotency_key=idempotency_key(request)))
        return Response(status_code=204)

    @needs(WRITE, body="json")
    async def rotate(
        self, request: Request, hook_id: Annotated[IdPath, Path(alias="hook")], body: HookRotate | None = None
    ) -> Response:  # fmt: skip
        """Makes a new secret, for the hook's maker. What the ones until now have signed is taken until the overlap ends."""
        asked = pb.RotateHookSecretRequest(hook_id=hook_id, idempotency_key=idempotency_key(request))
        if body is not None and body.overlap_ms is not None:
            asked.overlap.FromMilliseconds(body.overlap_ms)
        answer = await self._hooks.RotateHookSecret(asked)
        return shapes.reply({**hook(answer.hook), "secret": answer.secret}, headers=_SECRET)

    @needs(visitors=True)
    async def accept(
        self, request: Request, agent: Annotated[Agent, Path(alias="hook")], hook_id: HookId, webhook_id: MessageId,
        webhook_timestamp: MessageTime, webhook_signature: Signature,
    ) -> Response:  # fmt: skip
        """Takes a message, signed as the Standard Webhooks specification says, and starts the run of it. No key is asked for.

        The same webhook-id answers the same run; with another body it is refused. A message that is answered with 429 or 503 may be sent
        again as it is."""
        about = exchange(request)
        content = await read_body(request.receive, about.headers.get("content-length"), MOST_BODY_BYTES, self._body_timeout_s)
        try:
            content.decode()
        except UnicodeDecodeError:
            raise InvalidInput("the body is not valid UTF-8", reason="INVALID_ENCODING") from None
        asked = pb.AcceptHookRequest(
            hook_id=hook_id, agent=agent, webhook_id=webhook_id, webhook_timestamp=webhook_timestamp, webhook_signature=webhook_signature,
            body=content,
        )  # fmt: skip
        answer = await self._hooks.AcceptHook(asked)
        run = answer.run
        about.about(thread_id=run.thread_id, run_id=run.run_id)
        told = {"run_id": run.run_id, "thread_id": run.thread_id, "created": answer.created}
        return shapes.reply(told, 202, shapes.location("/v1/runs", run.run_id))
