"""A gateway with files and batches and real money, for tests that serve it in their loop or as processes of their own.

python batch_worker.py     reads BULKHEAD_* as the service does, and BATCH_RULES as JSON of what a test wants to be quicker;
BATCH_MOST_BYTES bounds each file.
"""

import os
import random
import resource
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

import orjson
from bulkhead.llm.v1 import llm_pb2_grpc

from services.common import valkey
from services.common.accounts import Accounts
from services.common.config import ConfigFile
from services.common.health import Health
from services.common.http import UvicornListener
from services.common.rpc.server import Service, serve, verifier_of
from services.common.settings import load
from services.llm_gateway.accounting import Plans
from services.llm_gateway.adapters.anthropic import AnthropicDialect
from services.llm_gateway.adapters.batch_parts import BatchParts, BatchRules
from services.llm_gateway.adapters.gemini import GeminiDialect
from services.llm_gateway.adapters.http_upstream import HttpUpstream, provider_session
from services.llm_gateway.adapters.ledger import Subjects
from services.llm_gateway.adapters.openai import OpenAiDialect
from services.llm_gateway.adapters.purse import ValkeyPurse
from services.llm_gateway.attempts import Policy
from services.llm_gateway.batches.execution import ExecutionRules
from services.llm_gateway.batches.files import FileRules
from services.llm_gateway.batches.provider_execution import ProviderRules
from services.llm_gateway.batches.requests import Windows
from services.llm_gateway.batches.runner import RunnerRules
from services.llm_gateway.completions import Completions
from services.llm_gateway.model_port.app import ModelPort
from services.llm_gateway.model_port.batches import BatchSurface
from services.llm_gateway.model_port.files import FilesSurface
from services.llm_gateway.registry_file import registry_parser
from services.llm_gateway.servicers.batch import BatchServicer
from services.llm_gateway.settings import MODELS_FILE, Settings
from services.llm_gateway.testing import OpenGate

QUICK = {
    "shortest_s": 1, "lease_s": 3.0, "heartbeat_s": 0.2, "look_every_s": 0.1, "poll_first_s": 0.05, "poll_most_s": 0.2, "again_s": 0.2,
    "concurrency": 8, "ending_s": 20.0, "most_bytes": 50 * 1024 * 1024, "provider": True, "sweep_every_s": 0.2, "wait_first_s": 0.05,
    "tenant_bytes": 10 * 1024**3, "tenant_files": 10_000,
}  # fmt: skip


def rules_of(asked: dict[str, Any]) -> BatchRules:
    """The rules with a test's own numbers."""
    return BatchRules(
        FileRules(most_bytes=asked["most_bytes"], tenant_bytes=asked["tenant_bytes"], tenant_files=asked["tenant_files"]),
        Windows(shortest=timedelta(seconds=asked["shortest_s"])),
        ExecutionRules(
            asked["lease_s"], asked["heartbeat_s"], asked["concurrency"], wait_first_s=asked["wait_first_s"], wait_most_s=1.0,
            again_s=asked["again_s"],
        ),
        RunnerRules(asked["look_every_s"], asked["sweep_every_s"]),
        ProviderRules(asked["poll_first_s"], asked["poll_most_s"], ending_s=asked["ending_s"], again_s=asked["again_s"]),
    )  # fmt: skip


async def build(settings: Settings, asked: dict[str, Any] | None = None, told: Callable[[BatchParts], None] | None = None) -> Service:
    """The service; `told` hears of its files and batches."""
    asked = {**QUICK, **(asked or {})}
    models = ConfigFile(settings.config_dir / MODELS_FILE, registry_parser({}))
    state, session = valkey.connect(settings.state_url), provider_session()
    accounts = Accounts(state)
    purse = ValkeyPurse(state, Plans(accounts, lambda _: None, Subjects(state)), timeout_s=2.0)
    chance = random.Random()
    policy = replace(Policy(), retry_base_s=0.01, retry_cap_s=0.1)
    dialects = {"openai": OpenAiDialect(), "anthropic": AnthropicDialect(), "gemini": GeminiDialect()}
    upstreams = {name: HttpUpstream(session, dialect) for name, dialect in dialects.items()}
    calls = Completions(lambda: models.current, upstreams, policy, chance, OpenGate(chance), purse)
    surfaces = [FilesSurface(None), BatchSurface(None)]
    start, drain, close, add_servicers = [accounts.start, purse.start], [], [], []
    if settings.files_dir is not None:
        parts = BatchParts(
            settings.files_dir, state, settings.instance, calls, accounts.confirm, lambda: models.current,
            purse if asked["provider"] else None, rules_of(asked),
        )  # fmt: skip
        if told is not None:
            told(parts)
        surfaces = [FilesSurface(parts.files), BatchSurface(parts.batches)]
        add_servicers.append(partial(llm_pb2_grpc.add_BatchServiceServicer_to_server, BatchServicer(parts.batches, parts.files)))
        start, drain, close = [*start, parts.start], [parts.drain], [parts.stop]
        settings.files_dir.mkdir(exist_ok=True)
    checks = {"state": partial(valkey.ping, state)}
    health = Health(checks)
    port = ModelPort(lambda: models.current, surfaces, accounts, health)
    return Service(
        "llm_gateway",
        add_servicers=add_servicers,
        checks=checks,
        listeners=[UvicornListener(port, settings.host, settings.http_port)],
        start=start,
        drain=drain,
        # Last made first: batches end before the money, and the store goes last.
        close=[state.aclose, session.close, accounts.stop, purse.stop, partial(_drained, purse), *close],
        verifier=verifier_of(settings),
        health=health,
    )


async def _drained(purse: ValkeyPurse) -> None:
    await purse.drain(3.0)


if __name__ == "__main__":
    if most := os.environ.get("BATCH_MOST_BYTES"):
        # Stands for a disk that is full: a file that would be larger is refused.
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(most), resource.RLIM_INFINITY))
    serve(load(Settings), partial(build, asked=orjson.loads(os.environ.get("BATCH_RULES", "{}"))))
