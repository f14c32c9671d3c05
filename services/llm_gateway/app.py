"""Composition root: everything that the LLM gateway is made of is made and wired here."""

import asyncio
import os
import random
import socket
import sys
from collections.abc import Callable, Coroutine
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import structlog
from bulkhead.llm.v1 import llm_pb2_grpc

from services.common import valkey
from services.common.accounts import Accounts
from services.common.audit import AuditStream, KeyAudit
from services.common.config import ConfigFile
from services.common.health import Health
from services.common.http import Share, UvicornListener
from services.common.rpc.server import Service, verifier_of
from services.common.settings import StartRefused
from services.common.tasks import end
from services.llm_gateway.adapters import wordllama
from services.llm_gateway.adapters.anthropic import AnthropicDialect
from services.llm_gateway.adapters.batch_parts import BatchParts, BatchRules
from services.llm_gateway.adapters.gemini import GeminiDialect
from services.llm_gateway.adapters.http_upstream import HttpUpstream, provider_session
from services.llm_gateway.adapters.openai import OpenAiDialect
from services.llm_gateway.adapters.parts import Doors, Layers, Money
from services.llm_gateway.attempts import Policy
from services.llm_gateway.batches.execution import ExecutionRules
from services.llm_gateway.batches.files import FileRules
from services.llm_gateway.completions import Completions
from services.llm_gateway.hedging import Hedge
from services.llm_gateway.model_port.admin import AdminSurface
from services.llm_gateway.model_port.admin_access import PortKeys
from services.llm_gateway.model_port.app import ModelPort
from services.llm_gateway.model_port.batches import BatchSurface
from services.llm_gateway.model_port.chat import ChatSurface
from services.llm_gateway.model_port.completions import CompletionsSurface
from services.llm_gateway.model_port.embeddings import EmbeddingsSurface
from services.llm_gateway.model_port.files import FilesSurface
from services.llm_gateway.model_port.messages import MessagesSurface
from services.llm_gateway.model_port.rerank import RerankSurface
from services.llm_gateway.model_port.responses import ResponsesSurface
from services.llm_gateway.ports import Upstream
from services.llm_gateway.price_config import TABLE_NAMES
from services.llm_gateway.registry import Registry
from services.llm_gateway.registry_file import registry_parser
from services.llm_gateway.servicer import LlmServicer
from services.llm_gateway.servicers.batch import BatchServicer
from services.llm_gateway.settings import MODELS_FILE, Settings
from services.llm_gateway.telemetry import Conventions
from services.llm_gateway.workers import Parent, Workers

log = structlog.get_logger("bulkhead.llm")


async def build(settings: Settings) -> Service:
    """The service. Raises StartRefused with every problem of the configuration."""
    assert settings.identity_keys_file is not None
    models = ConfigFile(
        settings.config_dir / MODELS_FILE,
        registry_parser(os.environ, check=_missing_files),
        beside=[settings.config_dir / name for name in TABLE_NAMES],
    )
    tell = partial(_tell, deny_unpriced=settings.price_unknown == "deny")
    tell(models.current)
    models.on_change(tell)
    state = valkey.connect(settings.state_url)
    session = provider_session()
    embedder = wordllama.WordLlamaUpstream()
    upstreams: dict[str, Upstream] = {
        "openai": HttpUpstream(session, OpenAiDialect()),
        "anthropic": HttpUpstream(session, AnthropicDialect()),
        "gemini": HttpUpstream(session, GeminiDialect()),
        "wordllama": embedder,
    }
    chance = random.Random()  # noqa: S311 - jitter
    accounts = Accounts(state, settings.state_replicas)
    money = Money(settings, state, accounts, lambda: models.current)
    doors = Doors(settings, chance)
    doors.follow(models.current)
    models.on_change(doors.follow)
    completions = Completions(
        lambda: models.current,
        upstreams,
        _policy(settings),
        chance,
        doors.gate,
        money.purse,
        deny_unpriced=settings.price_unknown == "deny",
        hedge=_hedge(settings),
        conventions=Conventions(settings.genai_semconv, settings.capture_content),
    )
    layers = Layers(settings, state, completions, money.purse, money.admit)
    layers.follow(models.current)
    models.on_change(layers.follow)
    calls = layers.calls
    erasers = [layers.erase_cached, layers.erase_replayable, money.erase, partial(_erase_account, accounts)]
    servicer = LlmServicer(calls, doors.gate, money.purse, completions.estimates, erasers=erasers, allows=money.allows)
    add_servicers = [partial(llm_pb2_grpc.add_LlmServiceServicer_to_server, servicer)]
    drain = []
    batches: BatchParts | None = None
    if settings.files_dir is not None:
        _refuse_unwritable(settings.files_dir)
        files = FileRules(settings.files_max_bytes, tenant_bytes=settings.files_tenant_bytes, tenant_files=settings.files_tenant_count)
        rules = BatchRules(files=files, execution=ExecutionRules(concurrency=settings.batch_concurrency))
        batches = BatchParts(
            settings.files_dir, state, settings.instance, calls, accounts.confirm, lambda: models.current, money.purse, rules
        )
        erasers.append(batches.batches.erase)
        add_servicers.append(partial(llm_pb2_grpc.add_BatchServiceServicer_to_server, BatchServicer(batches.batches, batches.files)))
    checks = {"state": partial(valkey.ping, state)}
    configs = [models, *money.watched]
    health = Health(checks, configs)
    watch = _Background(*(file.watch for file in configs))
    listeners = []
    start = [partial(valkey.refuse_shards, state), watch.start, accounts.start, money.start, doors.start, layers.start]
    # Last made, first closed: work that goes on without its caller needs its provider, and every settlement the store.
    close = [state.aclose, embedder.close, session.close, watch.stop, accounts.stop, doors.stop, money.stop, layers.stop]
    if batches is not None:
        start.append(batches.start)
        drain.append(batches.drain)
        close.append(batches.stop)
    if settings.http_port:
        surfaces = [
            ChatSurface(calls),
            EmbeddingsSurface(calls),
            MessagesSurface(calls),
            ResponsesSurface(calls),
            CompletionsSurface(calls),
            RerankSurface(calls),
            FilesSurface(batches.files if batches else None),
            BatchSurface(batches.batches if batches else None),
        ]
        keys = PortKeys(accounts, master_key=settings.master_key or models.current.master_key)
        # What the environment says wins over the file, so a change of the file changes nothing then.
        models.on_change(lambda registry: keys.change_master(settings.master_key or registry.master_key))
        records = AuditStream(state, timedelta(days=settings.audit_days), settings.state_replicas) if settings.audit_days else None
        surfaces.append(AdminSurface(keys, lambda: models.current, money.ledger, KeyAudit(records)))
        port = ModelPort(lambda: models.current, surfaces, keys, health, money.allows)
        share = Share.WORKER if settings.http_worker else Share.FIRST if settings.http_workers > 1 else Share.NONE
        listeners.append(UvicornListener(port, settings.host, settings.http_port, share=share))
    if settings.http_worker:
        parent = Parent()
        start.append(parent.start)
        close.append(parent.stop)
        add_servicers = []
    elif settings.http_port and settings.http_workers > 1:
        listeners.append(Workers([sys.executable, "-m", "services.llm_gateway"], _environments(settings)))
    return Service(
        "llm_gateway",
        add_servicers=add_servicers,
        checks=checks,
        listeners=listeners,
        start=start,
        drain=drain,
        close=close,
        verifier=verifier_of(settings),
        health=health,
    )


async def _erase_account(accounts: Accounts, tenant: str, user: str) -> tuple[str, int]:
    return "account_records", await accounts.erase_user(tenant, user)


def _environments(settings: Settings) -> list[dict[str, str]]:
    """What sets each further worker apart: its number, its name in logs and metrics, and a metrics port of its own."""
    return [
        {
            **os.environ,
            "BULKHEAD_HTTP_WORKER": str(number),
            "BULKHEAD_INSTANCE": f"{settings.instance}-{number}",
            "BULKHEAD_METRICS_PORT": str(_free_or_none(settings.metrics_port + number) if settings.metrics_port else 0),
        }
        for number in range(1, settings.http_workers)
    ]


def _free_or_none(port: int) -> int:
    """The port, or 0 with a warning where it is taken: a worker without metrics is better than none."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            log.warning("metrics_port_taken", port=port, consequence="this worker serves no metrics")
            return 0
    return port


def _refuse_unwritable(folder: Path) -> None:
    """A folder for files must be there before the first upload."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StartRefused([f"BULKHEAD_FILES_DIR: {folder}: {error.strerror}"]) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StartRefused([f"BULKHEAD_FILES_DIR: {folder} cannot be written"])


class _Background:
    """Coroutines that run from start to stop."""

    def __init__(self, *runs: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._runs = runs
        self._tasks: list[asyncio.Task] = []

    async def start(self) -> None:
        self._tasks = [asyncio.create_task(run()) for run in self._runs]

    async def stop(self) -> None:
        await end(self._tasks)


def _policy(settings: Settings) -> Policy:
    return Policy(
        connect_s=settings.model_connect_timeout_s,
        first_token_s=settings.model_first_token_timeout_s,
        reasoning_first_token_s=settings.model_reasoning_first_token_timeout_s,
        between_tokens_s=settings.model_between_tokens_timeout_s,
        total_s=settings.model_total_timeout_s,
        num_retries=settings.model_num_retries,
        max_attempts=settings.model_max_attempts,
        retry_base_s=settings.model_retry_base_s,
        retry_cap_s=settings.model_retry_cap_s,
    )


def _hedge(settings: Settings) -> Hedge | None:
    return Hedge(settings.hedge_extra_cost) if settings.hedge_after_p95 else None


def _missing_files(registry: Registry) -> list[str]:
    if any(d.adapter == "wordllama" for group in registry.groups.values() for d in group.deployments):
        try:
            wordllama.model_files()
        except FileNotFoundError as error:
            return [f"{MODELS_FILE}: {error}"]
    return []


def _tell(registry: Registry, *, deny_unpriced: bool) -> None:
    """Says what of the configuration has no effect, and what becomes of calls of models whose price is not known."""
    if registry.unsupported:
        log.warning("config_unsupported", file=MODELS_FILE, keys=list(registry.unsupported))
    if registry.unpriced:
        log.warning("price_unknown", models=list(registry.unpriced), outcome="refused" if deny_unpriced else "counted as 0")
    if any(d.simulated for group in registry.groups.values() for d in group.deployments):
        log.warning("simulated_models", models=[g.name for g in registry.groups.values() if any(d.simulated for d in g.deployments)])
