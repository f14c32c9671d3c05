"""An orchestrator among fakes with a real tool executor behind it, whose tools reach a server outside that counts."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
from bulkhead.orchestrator.v1 import approvals_pb2 as pb
from bulkhead.orchestrator.v1 import approvals_pb2_grpc as rpc
from bulkhead.orchestrator.v1 import orchestrator_pb2

from services.common import testing
from services.orchestrator.testing.fakes import Fakes, fakes
from services.orchestrator.testing.harness import Client, served, settings_for, write_config
from services.tool_executor.app import build as build_executor
from services.tool_executor.settings import Settings as ExecutorSettings
from tests.integration.tool_executor import harness as tools
from tests.integration.tool_executor.harness import Outside

TWO = "{four_eyes: true, approvers: {users: [bo, cy, ana], scopes: [approvals:four]}}"
AGENTS = f"""
agents:
  careful:
    current: "1"
    versions:
      "1": {{prompt: helper.md, model: m, tools: [wipe, fire, look, once]}}
  hasty:
    current: "1"
    versions:
      "1": {{prompt: helper.md, model: m, tools: [wipe, fire], approval: {{expires_s: 0.6}}}}
  strict:
    current: "1"
    versions:
      "1": {{prompt: helper.md, model: m, tools: [wipe], approval: {{expires_s: 0.4, on_expiry: fail}}}}
  paired:
    current: "1"
    versions:
      "1": {{prompt: helper.md, model: m, tools: [wipe], approval: {{tools: {{wipe: {TWO}}}}}}}
  alone:
    current: "1"
    versions:
      "1": {{prompt: helper.md, model: m, tools: [wipe, look], approval: {{ask: false}}}}
  trusted:
    current: "1"
    versions:
      "1": {{prompt: helper.md, model: m, tools: [wipe, fire], approval: {{when: never}}}}
  led:
    current: "1"
    versions:
      "1": {{prompt: helper.md, model: m, tools: [wipe], approval: {{approvers: {{users: [bo], requester: false}}}}}}
"""
OPEN = pb.APPROVAL_STATE_OPEN


def people(*users: str, scopes: Sequence[str] = ("approvals:read", "approvals:write")) -> list[Any]:
    """Principals of the tenant without further rights."""
    return [testing.principal_of(user=user, scopes=scopes) for user in users]


@dataclass
class Desk:
    """Everything at hand. `settings` are those of the first replica."""

    client: Client
    outside: Outside
    behind: Fakes
    settings: Any
    stubs: dict[str, Any] = field(default_factory=dict)

    @property
    def stub(self) -> Any:
        """ApprovalService of the first replica."""
        return self.stubs["first"]

    async def asked(self, run_id: str, count: int = 1) -> list[pb.Approval]:
        """The open approvals of a run, oldest first, once there are so many and the run is parked."""

        async def parked() -> list[pb.Approval]:
            with self.client.calling():
                found = list((await self.stub.ListApprovals(pb.ListApprovalsRequest(run_id=run_id, state=OPEN))).approvals)
            waiting = (await self.client.get(run_id)).status == orchestrator_pb2.RUN_STATUS_WAITING
            return found if len(found) == count and waiting else []

        return list(reversed(await testing.eventually_async(parked, f"{run_id} waits for {count}")))

    async def decide(self, approval_id: str, as_: Any = None, at: str = "first", **fields: Any) -> pb.Approval:
        """Decides as somebody (by default the user of the run)."""
        with testing.calling(self.client.identities, as_):
            request = pb.DecideApprovalRequest(approval_id=approval_id, **fields)
            return (await self.stubs[at].DecideApproval(request)).approval

    def sent(self, path: str = "/wipe") -> list[Any]:
        """Bodies that reached the server outside."""
        return [seen.body for seen in self.outside.seen if seen.path == path]


APPROVE: Any = {"approve": pb.Approve()}
REJECT: Any = {"reject": pb.Reject()}


def edit(arguments: Any) -> dict[str, Any]:
    """A decision with other arguments."""
    return {"edit": pb.Edit(arguments_json=orjson.dumps(arguments))}


def call(*wanted: tuple[str, Any]) -> str:
    """What a user says to have these tools called in one step."""
    return "\n".join(["tools", *(f"tool {name} {orjson.dumps(arguments).decode()}" for name, arguments in wanted)])


@asynccontextmanager
async def desk(identities: testing.Identities, state_url: str, folder: Any, replicas: int = 1) -> AsyncIterator[Desk]:
    """The orchestrators, the executor and the outside."""
    async with tools.outside_server() as outside, fakes(identities, without=frozenset({"tool_executor"})) as behind:
        plain = {"annotations": {"destructive": False}, "approval": "by_annotations"}
        offered = [
            tools.http_tool(outside, "wipe", "/wipe", approval="by_annotations"),
            tools.http_tool(outside, "fire", "/fire", approval="always"),
            tools.http_tool(outside, "look", "/look", approval="never", annotations={"read_only": True}, http={"method": "GET"}),
            tools.http_tool(outside, "once", "/once", **plain),
        ]
        tools.write_config(folder / "tools", offered)
        port = int(behind.addresses["tool_executor"].rpartition(":")[2])
        executor = ExecutorSettings(
            env="test", grpc_port=port, metrics_port=0, state_url=state_url, config_dir=folder / "tools", drain_grace_s=1.0,
            **identities.settings(),
        )  # fmt: skip
        config = write_config(folder / "config", AGENTS)
        settings = settings_for(identities, behind, state_url, config)
        async with testing.running(executor, build_executor), served(settings, identities) as client:
            made = Desk(client, outside, behind, settings)
            async with testing.dialer("gateway", {"orchestrator": f"127.0.0.1:{settings.grpc_port}"}) as dialer:
                made.stubs["first"] = rpc.ApprovalServiceStub(dialer.channel("orchestrator"))
                if replicas == 1:
                    yield made
                    return
                second = settings_for(identities, behind, state_url, config, max_active_runs=1)
                async with (
                    served(second, identities),
                    testing.dialer("gateway", {"orchestrator": f"127.0.0.1:{second.grpc_port}"}) as other,
                ):
                    made.stubs["second"] = rpc.ApprovalServiceStub(other.channel("orchestrator"))
                    yield made
