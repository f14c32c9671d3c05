"""Everything that files and batches are made of, wired.

parts = BatchParts(folder, state, settings.instance, calls, accounts.confirm, lambda: models.current, purse)
surfaces += [FilesSurface(parts.files), BatchSurface(parts.batches)]
servicers += [BatchServicer(parts.batches, parts.files)]; erasers += [parts.batches.erase]
start += [parts.start]; drain += [parts.drain]; close += [parts.stop]      # stop before purse, calls and state
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import redis.asyncio as redis

from services.llm_gateway.adapters.anthropic_batch import AnthropicBatches
from services.llm_gateway.adapters.batch_http import BatchHttp
from services.llm_gateway.adapters.batch_store import ValkeyBatches
from services.llm_gateway.adapters.batch_store_files import ValkeyFiles
from services.llm_gateway.adapters.batch_workspace import Workspace
from services.llm_gateway.adapters.file_store import DiskContents
from services.llm_gateway.adapters.gemini_batch import GeminiBatches
from services.llm_gateway.adapters.openai_batch import OpenAiBatches
from services.llm_gateway.batches.execution import ExecutionParts, ExecutionRules
from services.llm_gateway.batches.files import FileRules, Files
from services.llm_gateway.batches.line_calls import LineCalls
from services.llm_gateway.batches.ports import BatchPurse, KeyCheck
from services.llm_gateway.batches.provider_execution import ProviderExecution, ProviderRules
from services.llm_gateway.batches.provider_port import Provider
from services.llm_gateway.batches.requests import Windows
from services.llm_gateway.batches.runner import BatchRunner, RunnerRules
from services.llm_gateway.batches.service import Batches
from services.llm_gateway.batches.threads import DiskThreads
from services.llm_gateway.model_port.batch_lines import RouteLines
from services.llm_gateway.model_port.chat import ChatSurface
from services.llm_gateway.model_port.completions import CompletionsSurface
from services.llm_gateway.model_port.embeddings import EmbeddingsSurface
from services.llm_gateway.model_port.responses import ResponsesSurface
from services.llm_gateway.model_port.routing import Surface
from services.llm_gateway.registry import Registry
from services.llm_gateway.results import ModelCalls


@dataclass(frozen=True, slots=True)
class BatchRules:
    """All numbers of files and batches."""

    files: FileRules = field(default_factory=FileRules)
    windows: Windows = field(default_factory=Windows)
    execution: ExecutionRules = field(default_factory=ExecutionRules)
    runner: RunnerRules = field(default_factory=RunnerRules)
    provider: ProviderRules = field(default_factory=ProviderRules)


class BatchParts:
    """Files and batches of one process. `folder` is shared by all replicas; without a `purse` that hands tickets on, no provider executes
    batches.
    """

    def __init__(
        self,
        folder: Path,
        client: redis.Redis,
        instance: str,
        calls: ModelCalls,
        check_key: KeyCheck,
        registry: Callable[[], Registry],
        purse: BatchPurse | None,
        rules: BatchRules = BatchRules(),
    ) -> None:
        self._threads = threads = DiskThreads()
        contents, records = DiskContents(folder, threads), ValkeyBatches(client, instance)
        self.files = Files(contents, ValkeyFiles(client), rules.files)
        self.batches = Batches(records, self.files, check_key, rules.windows)
        lines = LineCalls(calls)
        surfaces: list[Surface] = [ChatSurface(lines), CompletionsSurface(lines), EmbeddingsSurface(lines), ResponsesSurface(lines)]
        self._http = http = BatchHttp()
        providers: dict[str, Provider] = {"openai": OpenAiBatches(http), "anthropic": AnthropicBatches(http), "gemini": GeminiBatches(http)}
        provider = None if purse is None else ProviderExecution(registry, providers, purse, rules.provider)
        parts = ExecutionParts(
            records,
            self.files,
            lambda tenant, batch_id: Workspace(contents, tenant, batch_id),
            RouteLines(surfaces, check_key),
            threads,
            provider,
            rules.execution,
        )
        self._runner = BatchRunner(parts, random.Random(), rules.runner)  # noqa: S311 - jitter

    async def start(self) -> None:
        """Begins to execute batches."""
        await self._runner.start()

    async def drain(self) -> None:
        """Hands over the batches that this process holds."""
        await self._runner.drain()

    async def stop(self) -> None:
        """Ends what is left."""
        await self._runner.stop()
        self._threads.stop()
        await self._http.close()
