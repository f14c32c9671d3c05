"""Gateways with files and batches: in the test's loop, or as processes that may be killed."""

import asyncio
import importlib.util
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import openai
import orjson
import pytest
import pytest_asyncio
import yaml

from services.common import testing
from services.common.accounts import Accounts
from services.common.valkey import connect
from services.llm_gateway.adapters.ledger import Ledger
from services.llm_gateway.settings import Settings

WORKER = Path(__file__).with_name("batch_worker.py")
ENDED = ("completed", "failed", "expired", "cancelled")


def worker_module() -> Any:
    """batch_worker.py, which is a script and not a module of a package."""
    spec = importlib.util.spec_from_file_location("batch_worker", WORKER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def chat_line(custom_id: str, text: str, **body: Any) -> dict[str, Any]:
    """One request of a batch."""
    sent = {"model": "main", "messages": [{"role": "user", "content": text}], "max_tokens": 50, **body}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": sent}


def jsonl(lines: list[Any]) -> bytes:
    """Lines as a file; bytes stand for themselves."""
    return b"".join((line if isinstance(line, bytes) else orjson.dumps(line)) + b"\n" for line in lines)


def parsed(raw: bytes) -> list[dict[str, Any]]:
    """The lines of a file."""
    return [orjson.loads(line) for line in raw.splitlines()]


class Gateway:
    """One served gateway and clients for it."""

    def __init__(self, url: str, secret: str, address: str, folder: Path, store) -> None:
        self.url, self.secret, self.address, self.folder, self.store = url, secret, address, folder, store
        self.accounts = Accounts(store)
        self.ledger = Ledger(store)
        self.client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=secret, max_retries=0)

    async def begun(self, lines: list[Any], endpoint: str = "/v1/chat/completions", window: str = "24h", **more: Any) -> Any:
        """A batch over lines, or over the bytes of a file."""
        content = lines if isinstance(lines, bytes) else jsonl(lines)
        file = await self.client.files.create(file=("lines.jsonl", content), purpose="batch")
        return await self.client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window=window, **more)

    async def ended(self, batch: Any) -> Any:
        """The batch when nothing more happens to it."""

        async def look() -> Any:
            try:
                found = await self.client.batches.retrieve(batch.id)
            except (openai.APIConnectionError, openai.InternalServerError):
                return None  # its gateway is being started
            return found if found.status in ENDED else None

        return await testing.eventually_async(look, "the batch ends", every_s=0.05)

    async def outputs(self, batch: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Lines of the output and of the error file."""
        found = []
        for file_id in (batch.output_file_id, batch.error_file_id):
            found.append(parsed((await self.client.files.content(file_id)).content) if file_id else [])
        return found[0], found[1]

    async def lines(self, **filters: Any) -> list[dict[str, Any]]:
        """The tenant's ledger."""
        return (await self.ledger.lines("acme", limit=1000, **filters)).lines


def settings_of(identities, state_url: str, folder: Path, **more: Any) -> dict[str, Any]:
    """Settings of a gateway; its files are in `folder`, which several may share."""
    ports = {"grpc_port": testing.free_port(), "http_port": testing.free_port()}
    return {
        "env": "test", "metrics_port": 0, "config_dir": folder, "state_url": state_url, "drain_grace_s": 5.0, "files_dir": folder / "files",
        **ports, **identities.settings(), **more,
    }  # fmt: skip


@pytest.fixture
def line():
    """Makes one request of a batch."""
    return chat_line


@pytest.fixture
def batch_models(sim, deployment, tmp_path):
    """Writes models.yaml: `main` on the simulator without batch prices, `cheap`, `claude`, `gemini` and `azure` with them, each by the API
    that its name says, and embeddings.
    """
    entries = [deployment("main", "sim-1", f"{sim.url}/v1"), deployment("cheap", "sim-2", f"{sim.url}/v1")]
    for name, provider in (("claude", "anthropic"), ("gemini", "gemini"), ("azure", "azure")):
        entries.append(deployment(name, "sim-2", sim.url, api_key=f"key-of-{name}"))
        entries[-1]["litellm_params"]["model"] = f"{provider}/sim-2"
    # Its addresses are those of Azure, which those of a simulator are not.
    entries[-1]["model_info"].pop("simulated")
    cached = {"cache_read_input_token_cost": 0.00000005, "cache_creation_input_token_cost": 0.000000626}
    for entry in entries[1:]:
        entry["model_info"] |= {"input_cost_per_token_batches": 0.00000025, "output_cost_per_token_batches": 0.00000075, **cached}
    vectors = deployment("vectors", "sim-embed", f"{sim.url}/v1")
    vectors["model_info"] = {"mode": "embedding", "input_cost_per_token": 0.00000002, "simulated": True}
    cheap_vectors = deployment("cheap-vectors", "sim-embed", f"{sim.url}/v1")
    cheap_vectors["model_info"] = {**vectors["model_info"], "input_cost_per_token_batches": 0.00000001}
    (tmp_path / "models.yaml").write_text(
        yaml.safe_dump({"model_list": [*entries, vectors, cheap_vectors], "router_settings": {"num_retries": 0}})
    )


@pytest.fixture
def gateway(identities, state_url, tmp_path, batch_models):
    """A context manager that serves a gateway in the test's loop; `rules` make it quicker, or slower."""

    @asynccontextmanager
    async def served(rules: dict[str, Any] | None = None, scopes=("*",), user: str = "ana", **more: Any) -> AsyncIterator[Gateway]:
        settings = Settings(**settings_of(identities, state_url, tmp_path, **more))
        store = connect(state_url)
        issued = await Accounts(store).create_key(tenant="acme", user=user, tier="enterprise", scopes=list(scopes))
        module = worker_module()
        made_parts: list[Any] = []
        async with testing.running(settings, partial(module.build, asked=rules, told=made_parts.append)):
            made = Gateway(f"http://127.0.0.1:{settings.http_port}", issued.secret, f"127.0.0.1:{settings.grpc_port}", tmp_path, store)
            made.key_id = issued.record.key_id
            made.parts = made_parts[0] if made_parts else None
            yield made
            await made.client.close()
        await store.aclose()

    return served


@pytest_asyncio.fixture
async def processes(identities, state_url, tmp_path, batch_models):
    """Starts gateways as processes; all of them share files, store and key. Answers one with its process."""
    store = connect(state_url)
    issued = await Accounts(store).create_key(tenant="acme", user="ana", tier="enterprise", scopes=["*"])
    begun: list[testing.Process] = []
    gateways: list[Gateway] = []

    async def start(env: Mapping[str, str] | None = None, inside: Sequence[str] = (), **rules: Any) -> tuple[Gateway, testing.Process]:
        given, more = settings_of(identities, state_url, tmp_path), env or {}
        env = {**more} | {f"BULKHEAD_{name.upper()}": str(value) for name, value in given.items()}
        env |= {
            "BATCH_RULES": orjson.dumps(rules).decode(),
            "BULKHEAD_LOG_FORMAT": "json",
            "PYTHONPATH": os.pathsep.join(map(str, _path())),
        }
        process = testing.Process([*inside, *testing.python(str(WORKER))], env=env, log=tmp_path / f"gateway-{len(begun)}.log")
        begun.append(process)
        made = Gateway(f"http://127.0.0.1:{given['http_port']}", issued.secret, f"127.0.0.1:{given['grpc_port']}", tmp_path, store)
        gateways.append(made)
        await asyncio.to_thread(testing.wait_for_port, given["http_port"], process)
        return made, process

    yield start
    for process in begun:
        process.stop()
    for made in gateways:
        await made.client.close()
    await store.aclose()


def _path() -> list[Path]:
    return [testing.ROOT, testing.ROOT / "protos/gen/python"]
