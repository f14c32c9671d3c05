"""The other services as their stubs, dialled once."""

from dataclasses import dataclass

from bulkhead.llm.v1 import llm_pb2_grpc
from bulkhead.memory.v1 import memory_pb2_grpc
from bulkhead.orchestrator.v1 import (
    admin_pb2_grpc,
    approvals_pb2_grpc,
    blobs_pb2_grpc,
    hooks_pb2_grpc,
    orchestrator_pb2_grpc,
    schedules_pb2_grpc,
    webhooks_pb2_grpc,
)
from bulkhead.tools.v1 import tools_pb2_grpc

from services.common.rpc.channel import Dialer


@dataclass(frozen=True, slots=True)
class Backends:
    """Stubs of every service that the gateway calls. Calls raise domain errors."""

    threads: orchestrator_pb2_grpc.ThreadServiceStub
    runs: orchestrator_pb2_grpc.RunServiceStub
    agents: orchestrator_pb2_grpc.AgentServiceStub
    approvals: approvals_pb2_grpc.ApprovalServiceStub
    schedules: schedules_pb2_grpc.ScheduleServiceStub
    webhooks: webhooks_pb2_grpc.WebhookServiceStub
    hooks: hooks_pb2_grpc.HookServiceStub
    blobs: blobs_pb2_grpc.BlobServiceStub
    admin: admin_pb2_grpc.AdminServiceStub
    models: llm_pb2_grpc.LlmServiceStub
    memories: memory_pb2_grpc.MemoryServiceStub
    documents: memory_pb2_grpc.DocumentServiceStub
    tools: tools_pb2_grpc.ToolServiceStub


def backends(dialer: Dialer) -> Backends:
    """Stubs over the dialer's channels; nothing connects before the first call."""
    orchestrator, memory, tools = dialer.channel("orchestrator"), dialer.channel("memory"), dialer.channel("tool_executor")
    return Backends(
        threads=orchestrator_pb2_grpc.ThreadServiceStub(orchestrator),
        runs=orchestrator_pb2_grpc.RunServiceStub(orchestrator),
        agents=orchestrator_pb2_grpc.AgentServiceStub(orchestrator),
        approvals=approvals_pb2_grpc.ApprovalServiceStub(orchestrator),
        schedules=schedules_pb2_grpc.ScheduleServiceStub(orchestrator),
        webhooks=webhooks_pb2_grpc.WebhookServiceStub(orchestrator),
        hooks=hooks_pb2_grpc.HookServiceStub(orchestrator),
        blobs=blobs_pb2_grpc.BlobServiceStub(orchestrator),
        admin=admin_pb2_grpc.AdminServiceStub(orchestrator),
        models=llm_pb2_grpc.LlmServiceStub(dialer.channel("llm_gateway")),
        memories=memory_pb2_grpc.MemoryServiceStub(memory),
        documents=memory_pb2_grpc.DocumentServiceStub(memory),
        tools=tools_pb2_grpc.ToolServiceStub(tools),
    )
