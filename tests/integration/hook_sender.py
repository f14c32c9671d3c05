"""Another system that sends signed messages, with the library of the Standard Webhooks specification; and whoever keeps hooks for it."""

import json
import uuid
from datetime import UTC, datetime

from bulkhead.orchestrator.v1 import hooks_pb2 as pb
from bulkhead.orchestrator.v1 import hooks_pb2_grpc as rpc
from standardwebhooks.webhooks import Webhook

from services.common.rpc import context as call_context


def signed(secret, body, webhook_id="", at_s=None):
    """The three headers of a message, as the library signs it."""
    webhook_id = webhook_id or f"msg_{uuid.uuid4().hex}"
    at = datetime.now(UTC) if at_s is None else datetime.fromtimestamp(at_s, UTC)
    return {
        "webhook-id": webhook_id, "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": Webhook(secret).sign(webhook_id, at, body),
    }  # fmt: skip


class Sender:
    """Sends to a hook through one replica, by no one's authority."""

    def __init__(self, dialer, hook_id, secret, agent="quick"):
        self._stub = rpc.HookServiceStub(dialer.channel("orchestrator"))
        self.hook_id, self.secret, self.agent = hook_id, secret, agent

    async def send(self, said, webhook_name="", at_s=None, **changed):
        """One message, text or JSON, under an id; `changed` are fields of the request that are not as they were signed."""
        text = said if isinstance(said, str) else json.dumps(said)
        headers = signed(self.secret, text, webhook_name, at_s)
        fields = {
            "hook_id": self.hook_id, "agent": self.agent, "body": text.encode(),
            **{name.replace("-", "_"): value for name, value in headers.items()}, **changed,
        }  # fmt: skip
        with call_context.bind(call_context.CallContext()):
            return await self._stub.AcceptHook(pb.AcceptHookRequest(**fields))


class Keeper:
    """Keeps hooks as one user."""

    def __init__(self, dialer, client):
        self.dialer, self.client, self.stub = dialer, client, rpc.HookServiceStub(dialer.channel("orchestrator"))

    async def call(self, method, **fields):
        """One call of HookService by its name."""
        request = getattr(pb, f"{method}Request")(**fields)
        with self.client.calling():
            return await getattr(self.stub, method)(request)

    async def hook(self, dialer=None, **fields):
        """The sender of a new hook."""
        made = await self.call("CreateHook", **{"agent": "quick", **fields})
        return Sender(dialer or self.dialer, made.hook.hook_id, made.secret, made.hook.agent)
