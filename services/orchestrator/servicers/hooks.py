"""HookService."""

import time

from bulkhead.orchestrator.v1 import hooks_pb2 as pb
from bulkhead.orchestrator.v1 import hooks_pb2_grpc as rpc

from services.common.rpc.context import principal
from services.orchestrator.hooks.accepting import SCOPE, TakingMessages
from services.orchestrator.hooks.keeping import HookRequest, Hooks
from services.orchestrator.hooks.records import Hook, Message
from services.orchestrator.servicer import run_message

READ, WRITE = "hooks:read", "hooks:write"


def hook_message(hook: Hook) -> pb.Hook:
    """A hook as it travels: without its secrets."""
    message = pb.Hook(
        hook_id=hook.hook_id, agent=hook.agent, thread_id=hook.thread_id, instructions=hook.instructions, description=hook.description
    )  # fmt: skip
    message.created_at.FromMilliseconds(hook.created_ms)
    if (until_ms := max(secret.until_ms for secret in hook.secrets)) > time.time() * 1000:
        message.earlier_secret_until.FromMilliseconds(until_ms)
    return message


class HookServicer(rpc.HookServiceServicer):
    """Hooks of the caller's tenant, and what comes for them."""

    def __init__(self, hooks: Hooks, taking: TakingMessages) -> None:
        self._hooks, self._taking = hooks, taking

    async def CreateHook(self, request, context):
        """Makes a hook."""
        caller = principal()
        # Its messages make runs, which is more than to make a hook.
        caller.require(WRITE, SCOPE)
        asked = HookRequest(
            request.agent, request.thread_id, request.instructions, request.description, request.secret, request.idempotency_key
        )  # fmt: skip
        hook, secret = await self._hooks.create(caller, asked)
        return pb.CreateHookResponse(hook=hook_message(hook), secret=secret)

    async def ListHooks(self, request, context):
        """All hooks."""
        caller = principal()
        caller.require(READ)
        return pb.ListHooksResponse(hooks=[hook_message(hook) for hook in await self._hooks.of_tenant(caller)])

    async def GetHook(self, request, context):
        """One hook."""
        caller = principal()
        caller.require(READ)
        return pb.GetHookResponse(hook=hook_message(await self._hooks.get(caller, request.hook_id)))

    async def DeleteHook(self, request, context):
        """Removes a hook."""
        caller = principal()
        caller.require(WRITE)
        await self._hooks.delete(caller, request.hook_id, request.idempotency_key)
        return pb.DeleteHookResponse()

    async def RotateHookSecret(self, request, context):
        """Makes a new secret."""
        caller = principal()
        caller.require(WRITE)
        overlap = request.overlap.ToTimedelta() if request.HasField("overlap") else None
        hook, secret = await self._hooks.rotate(caller, request.hook_id, overlap, request.idempotency_key)
        return pb.RotateHookSecretResponse(hook=hook_message(hook), secret=secret)

    async def AcceptHook(self, request, context):
        """Takes a message; its signature says for whom."""
        message = Message(
            request.hook_id, request.agent, request.webhook_id, request.webhook_timestamp, request.webhook_signature, request.body
        )  # fmt: skip
        record, created = await self._taking.accept(message)
        return pb.AcceptHookResponse(run=run_message(record), created=created)
