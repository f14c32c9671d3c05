"""Composition root of the tool executor."""

from functools import partial

from bulkhead.tools.v1 import tools_pb2_grpc

from services.common.config import ConfigFile
from services.common.identity import Verifier
from services.common.limits import parse_policies
from services.common.rpc.server import Service
from services.common.valkey import connect, ping
from services.tool_executor.adapters.call_ledger import ValkeyCallLedger
from services.tool_executor.adapters.rate_limit import ToolCallRate
from services.tool_executor.builtin.calculator import calculator
from services.tool_executor.builtin.current_time import Clock
from services.tool_executor.claims import Claims
from services.tool_executor.execution import Executor
from services.tool_executor.registry import parse_tools
from services.tool_executor.servicer import ToolServicer
from services.tool_executor.settings import Settings
from services.tool_executor.tools import built_ins


def build(settings: Settings) -> Service:
    """Wires the service. Raises StartRefused with every problem of tools.yaml or policies.yaml."""
    declared = built_ins([calculator, Clock()])
    tools = ConfigFile(settings.config_dir / "tools.yaml", lambda content: parse_tools(content, declared, None))
    policies = ConfigFile(settings.config_dir / "policies.yaml", parse_policies)
    state = connect(settings.state_url)
    claims = Claims(ValkeyCallLedger(state))
    executor = Executor(lambda: tools.current, claims, ToolCallRate(state, policies, settings.policy_set))
    servicer = ToolServicer(lambda: tools.current, executor)
    return Service(
        settings.service_name,
        add_servicers=[partial(tools_pb2_grpc.add_ToolServiceServicer_to_server, servicer)],
        checks={"state": lambda: ping(state)},
        close=[state.aclose, claims.close],
        verifier=Verifier.from_file(settings.identity_keys_file),
    )
