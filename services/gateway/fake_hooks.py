"""Hooks of the fake orchestrator: signatures are really looked at, runs are no more than an id."""

import base64
import hashlib
import hmac

from bulkhead.orchestrator.v1 import hooks_pb2 as pb
from bulkhead.orchestrator.v1 import hooks_pb2_grpc as rpc

from services.common.errors import Conflict, InvalidInput, NotFound, Overloaded, Unauthenticated
from services.common.rpc.context import principal
from services.gateway.fake_admin import FakeRecords


class FakeHooks(rpc.HookServiceServicer):
    """Hooks, and the messages that came for them. While `away` nothing is taken."""

    def __init__(self, records: FakeRecords) -> None:
        self.hooks: dict[tuple[str, str], tuple[pb.Hook, str]] = {}
        self.came: dict[tuple[str, str], pb.AcceptHookRequest] = {}
        self.away = False
        self._records = records

    def _one(self, hook_id: str) -> pb.Hook:
        found = self.hooks.get((principal().tenant, hook_id))
        if found is None:
            raise NotFound("there is no such hook", reason="HOOK_NOT_FOUND")
        return found[0]

    def _secret(self) -> str:
        return "whsec_" + base64.b64encode(self._records.make_id("secret").encode().ljust(24, b".")).decode()

    async def CreateHook(self, request, context):
        """As the real one."""
        principal().require("hooks:write", "runs:write")
        if known := self._records.once(request):
            return known
        if request.agent == "nobody":
            raise NotFound("there is no such agent", reason="AGENT_NOT_FOUND")
        if request.secret and len(request.secret) < 38:
            raise InvalidInput.field("secret", "must be whsec_ and 24 to 64 bytes in base64")
        made = pb.Hook(
            hook_id=f"hk_{self._records.make_id('n').encode().hex():0>32}", agent=request.agent, thread_id=request.thread_id,
            instructions=request.instructions, description=request.description,
        )  # fmt: skip
        made.created_at.GetCurrentTime()
        secret = request.secret or self._secret()
        self.hooks[(principal().tenant, made.hook_id)] = (made, secret)
        return self._records.keep(request, pb.CreateHookResponse(hook=made, secret=secret))

    async def ListHooks(self, request, context):
        """As the real one."""
        return pb.ListHooksResponse(hooks=[hook for (tenant, _), (hook, _) in self.hooks.items() if tenant == principal().tenant])

    async def GetHook(self, request, context):
        """As the real one."""
        return pb.GetHookResponse(hook=self._one(request.hook_id))

    async def DeleteHook(self, request, context):
        """As the real one."""
        if known := self._records.once(request):
            return known
        self._one(request.hook_id)
        del self.hooks[(principal().tenant, request.hook_id)]
        return self._records.keep(request, pb.DeleteHookResponse())

    async def RotateHookSecret(self, request, context):
        """As the real one, but that earlier secrets end at once."""
        if known := self._records.once(request):
            return known
        found, secret = self._one(request.hook_id), self._secret()
        found.earlier_secret_until.GetCurrentTime()
        self.hooks[(principal().tenant, request.hook_id)] = (found, secret)
        return self._records.keep(request, pb.RotateHookSecretResponse(hook=found, secret=secret))

    async def AcceptHook(self, request, context):
        """As the real one, whatever the time is."""
        if self.away:
            raise Overloaded("the state store is away", reason="STORE_UNAVAILABLE", retry_after_s=2.0)
        hook, secret = next(((hook, secret) for (_, id_), (hook, secret) in self.hooks.items() if id_ == request.hook_id), (None, "whsec_"))
        content = f"{request.webhook_id}.{request.webhook_timestamp}.".encode() + request.body
        mine = hmac.digest(base64.b64decode(secret.removeprefix("whsec_")), content, hashlib.sha256)
        if (
            hook is None
            or hook.agent != request.agent
            or f"v1,{base64.b64encode(mine).decode()}" not in request.webhook_signature.split(" ")
        ):
            raise Unauthenticated("the message is not signed as it must be", reason="HOOK_REFUSED")
        name = (request.hook_id, request.webhook_id)
        before = self.came.setdefault(name, request)
        if before.body != request.body:
            raise Conflict("a message of this webhook-id came before with another body", reason="HOOK_MESSAGE_CHANGED")
        run_id = f"run_{request.webhook_id}"
        answer = pb.AcceptHookResponse(created=before is request)
        answer.run.run_id, answer.run.thread_id = run_id, hook.thread_id or f"th_{request.webhook_id}"
        return answer
