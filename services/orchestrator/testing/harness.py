"""An orchestrator among fakes, in the test's loop or as a process, and a caller that acts as the gateway does."""

import asyncio
import base64
import json
import secrets
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from bulkhead.orchestrator.v1 import approvals_pb2 as approvals_pb
from bulkhead.orchestrator.v1 import approvals_pb2_grpc as approvals_rpc
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb
from bulkhead.orchestrator.v1 import orchestrator_pb2_grpc as rpc
from bulkhead.orchestrator.v1 import schedules_pb2_grpc as schedules_rpc
from bulkhead.orchestrator.v1 import webhooks_pb2_grpc as webhooks_rpc

from services.common import testing
from services.common.errors import BulkheadError
from services.common.rpc.channel import Dialer
from services.orchestrator.app import build
from services.orchestrator.settings import Settings
from services.orchestrator.testing.fakes import Fakes
from services.orchestrator.testing.oracle import Seen

CONFIG = testing.ROOT / "k8s/environments/local/config"
AGENTS = """
agents:
  helper:
    current: "2"
    versions:
      "1": {prompt: helper.md, model: m, tools: [calculator]}
      "2":
        prompt: helper.md
        model: m
        tools: [calculator, send_mail]
        recall: {documents: true, memories: true, token_budget: 500}
        approval: {unknown_outcome: tell}
        limits: {max_steps: 10, max_tool_calls: 10}
  quick:
    current: "1"
    versions:
      "1": {prompt: helper.md, model: m, tools: [calculator, send_mail], approval: {unknown_outcome: tell}}
  asking:
    current: "1"
    versions:
      "1": {prompt: helper.md, model: m, tools: [calculator, send_mail]}
  careful:
    current: "1"
    versions:
      "1": {prompt: helper.md, model: m, tools: [calculator, send_mail], approval: {tools: {send_mail: {when: always}}}}
  goes-on:
    current: "1"
    versions:
      "1": {prompt: helper.md, model: m, continues_prefix: true}
  hasty:
    current: "1"
    versions:
      "1": {prompt: helper.md, model: m, tools: [calculator, send_mail], approval: {tools: {send_mail: {when: always, expires_s: 2.0}}}}
  planner:
    current: "1"
    versions:
      "1": {prompt: helper.md, model: m, strategy: plan_execute, tools: [calculator, send_mail], approval: {unknown_outcome: tell}}
  lead:
    current: "1"
    versions:
      "1":
        prompt: helper.md
        model: m
        strategy: supervisor
        tools: [calculator, send_mail]
        agents: [{name: quick, share: 0.3}]
        approval: {unknown_outcome: tell}
  flow:
    current: "1"
    versions:
      "1":
        prompt: helper.md
        model: m
        strategy: workflow
        tools: [calculator, send_mail]
        approval: {unknown_outcome: tell}
        workflow:
          steps:
            - {name: look, kind: tool, tool: calculator, arguments: {nonce: "{run.id}.look"}}
            - name: both
              kind: parallel
              branches:
                words:
                  - {name: write, kind: model, prompt: "{input.text}", tools: [calculator, send_mail]}
                work:
                  - {name: rest, kind: wait, seconds: 1.2}
                  - {name: send, kind: tool, tool: send_mail, arguments: {nonce: "{run.id}.send"}}
            - {name: ask, kind: approval, question: "Is it well?", on_error: refused}
            - {name: tell, kind: tool, tool: send_mail, arguments: {nonce: "{run.id}.tell"}}
            - {name: done, kind: end, output: "{steps.write.output}"}
            - {name: refused, kind: end, output: "it was not well"}
"""


class Client:
    """A caller of one replica, as the gateway is one."""

    def __init__(self, dialer: Dialer, identities: testing.Identities, principal: Any = None) -> None:
        self.identities, self.principal = identities, principal
        channel = dialer.channel("orchestrator")
        self.threads, self.runs, self.agents = rpc.ThreadServiceStub(channel), rpc.RunServiceStub(channel), rpc.AgentServiceStub(channel)
        self.approvals = approvals_rpc.ApprovalServiceStub(channel)
        self.schedules, self.webhooks = schedules_rpc.ScheduleServiceStub(channel), webhooks_rpc.WebhookServiceStub(channel)

    def calling(self, **options: Any):
        """The context of a call."""
        return testing.calling(self.identities, self.principal, **options)

    async def start(self, text: str, *, agent: str = "quick", canary: bool = False, **fields: Any) -> pb.Run:
        """Creates a run with one user message."""
        with self.calling(canary=canary):
            request = pb.CreateRunRequest(agent=agent, input=[pb.InputMessage(role="user", text=text)], **fields)
            return (await self.runs.CreateRun(request)).run

    async def get(self, run_id: str) -> pb.Run:
        """A run."""
        with self.calling():
            return (await self.runs.GetRun(pb.GetRunRequest(run_id=run_id))).run

    async def wait(self, run_id: str) -> pb.Run:
        """A run when it has ended; bounded by patience and no expectation."""
        with self.calling(timeout_s=testing.PATIENCE_S):
            run = (await self.runs.WaitRun(pb.WaitRunRequest(run_id=run_id))).run
        assert run.status in ENDED, f"the run is {run}"
        return run

    async def cancel(self, run_id: str) -> pb.CancelRunResponse:
        """Asks for a run's end."""
        with self.calling():
            return await self.runs.CancelRun(pb.CancelRunRequest(run_id=run_id))

    async def asked(self, run_id: str) -> list[approvals_pb.Approval]:
        """The open questions of a run that waits for their answers; none while it does not wait."""
        if (await self.get(run_id)).status != pb.RUN_STATUS_WAITING:
            return []
        with self.calling():
            request = approvals_pb.ListApprovalsRequest(run_id=run_id, state=approvals_pb.APPROVAL_STATE_OPEN)
            return list((await self.approvals.ListApprovals(request)).approvals)

    async def decide(self, approval_id: str, **decision: Any) -> approvals_pb.Approval:
        """Decides a question."""
        with self.calling():
            request = approvals_pb.DecideApprovalRequest(approval_id=approval_id, **decision)
            return (await self.approvals.DecideApproval(request)).approval

    async def told(self, run_id: str, kind: str) -> list[pb.Event]:
        """Events of one type in the log of a run."""
        return [event for event in await self.log(run_id) if event.type == kind]

    async def log(self, run_id: str = "", **fields: Any) -> list[pb.Event]:
        """The events that are there now."""
        with self.calling():
            if run_id:
                fields["run_id"] = run_id
            stream = self.runs.StreamEvents(pb.StreamEventsRequest(replay_only=True, **fields))
            return [event async for item in stream for event in item.batch.events]

    async def follow(self, run_id: str, into: list[pb.Event], after_seq: int = 0) -> list[pb.Event]:
        """Follows a run to its end, through drains and lost replicas, and keeps what it saw in `into`."""
        while True:
            after_seq = into[-1].seq if into else after_seq
            try:
                with self.calling(timeout_s=testing.PATIENCE_S):
                    async for item in self.runs.StreamEvents(pb.StreamEventsRequest(run_id=run_id, after_seq=after_seq)):
                        into.extend(item.batch.events)
                return into
            except BulkheadError as error:
                if error.code.name != "UNAVAILABLE":
                    raise
                await asyncio.sleep(0.05)


async def follow_through(clients: Sequence[Client], seen: Seen, silent_s: float = 3.0, thread_id: str = "") -> Seen:
    """Follows a run to its end as a client does that knows several replicas: whoever is lost or says nothing for `silent_s` (longer
    than a sign of life takes) is left for the next, with the cursor. A thread, whose stream has no end, is followed until cancelled."""
    turn, subject = 0, {"thread_id": thread_id} if thread_id else {"run_id": seen.run_id}
    while True:
        client = clients[turn % len(clients)]
        after_seq = seen.events[-1].seq if seen.events else seen.after_seq
        try:
            with client.calling(timeout_s=testing.PATIENCE_S):
                stream = client.runs.StreamEvents(pb.StreamEventsRequest(**subject, after_seq=after_seq, types=seen.types))
                async with aclosing(stream):
                    while True:
                        async with asyncio.timeout(silent_s):
                            item = await anext(stream, None)
                        if item is None:
                            seen.ended, seen.ended_ms = True, int(time.time() * 1000)
                            return seen
                        seen.events.extend(item.batch.events)
        except TimeoutError:
            pass
        except BulkheadError as error:
            if error.code.name not in LOST:
                raise
        turn += 1
        await asyncio.sleep(0.05)


# What a caller hears of a replica that is killed, stopped, cut off from its store or going away.
LOST = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED")
ENDED = (pb.RUN_STATUS_SUCCEEDED, pb.RUN_STATUS_FAILED, pb.RUN_STATUS_CANCELLED)


def data_of(event: pb.Event) -> Any:
    """The data of an event."""
    return json.loads(event.data_json)


def types(events: list[pb.Event]) -> list[str]:
    """The types of events, in order."""
    return [event.type for event in events]


def shown_text(events: list[pb.Event]) -> str:
    """The text that a client shows which takes back what is superseded."""
    shown: dict[int, str] = {}
    for event in events:
        if event.type == "message_delta":
            shown[event.seq] = data_of(event)["text"]
        elif event.type in ("attempt_superseded", "log_gap"):
            shown = {seq: text for seq, text in shown.items() if seq < data_of(event)["from_seq"]}
    return "".join(shown.values())


def write_config(folder: Path, agents: str = AGENTS) -> Path:
    """A configuration folder with `agents` and one prompt."""
    (folder / "prompts").mkdir(parents=True, exist_ok=True)
    (folder / "prompts/helper.md").write_text("You are a helper.")
    (folder / "agents.yaml").write_text(agents)
    (folder / "policies.yaml").write_text((CONFIG / "policies.yaml").read_text())
    return folder


def root_keys(folder: Path) -> Path:
    """A file of keys to encrypt records with, as `bulkhead up` makes one for whoever installs the product."""
    path = folder / "envelope.json"
    path.write_text(json.dumps({"keys": [{"id": "1", "key": base64.b64encode(secrets.token_bytes(32)).decode()}]}))
    return path


def settings_for(identities: testing.Identities, made: Fakes, state_url: str, config_dir: Path, **fields: Any) -> Settings:
    """Settings of an orchestrator among fakes; heartbeats and leases are short, so that a takeover is."""
    port = testing.free_port()
    values: dict[str, Any] = {
        "env": "test", "grpc_port": port, "instance": f"at-{port}", "metrics_port": 0, "state_url": state_url, "config_dir": config_dir,
        "lease_s": 1.0, "heartbeat_s": 0.25, "sweep_s": 0.1, "drain_grace_s": 5.0, "drain_flush_s": 0.5,
        **identities.settings("orchestrator"), **{f"{name}_address": address for name, address in made.addresses.items()}, **fields,
    }  # fmt: skip
    return Settings(**values)


@asynccontextmanager
async def served(settings: Settings, identities: testing.Identities, principal: Any = None) -> AsyncIterator[Client]:
    """An orchestrator in this loop, and a caller of it."""
    async with testing.running(settings, build), dialed(settings, identities, principal) as client:
        yield client


@asynccontextmanager
async def dialed(settings: Settings, identities: testing.Identities, principal: Any = None) -> AsyncIterator[Client]:
    """A caller of the orchestrator with these settings."""
    async with testing.dialer("gateway", {"orchestrator": f"127.0.0.1:{settings.grpc_port}"}) as dialer:
        yield Client(dialer, identities, principal)


def command(settings: Settings, log: Path, module: str = "services.orchestrator") -> testing.Process:
    """Starts an orchestrator, or what `module` makes of one, as a process of its own; whoever asked for it ends it."""
    values = settings.model_dump(mode="json", exclude_unset=True)
    env = {f"BULKHEAD_{name.upper()}": str(value) for name, value in values.items() if value is not None}
    return testing.Process(testing.python("-m", module), env=env, log=log)


@contextmanager
def process(settings: Settings, folder: Path) -> Iterator[testing.Process]:
    """As `command`, ended with the context."""
    made = command(settings, folder / f"{settings.instance}.log")
    try:
        yield made
    finally:
        made.stop()
