"""LiteLLM's proxy for the benchmark, in an environment of its own below build/, installed when it is asked for."""

import subprocess
import sys
import venv
from dataclasses import replace
from pathlib import Path

import yaml

from scripts.bench.llm_stack import GATEWAY_CORES, Stack, Target
from services.common import testing

FOLDER = Path(__file__).resolve().parents[2] / "build" / "bench-litellm"
KEY = "sk-bench"


def start(made: Stack, upstream: Target, name: str) -> Target:
    """One worker on the gateway's core. Its keys, budgets and ledger need Postgres, so it runs without them: the easier task."""
    program = FOLDER / "bin" / "litellm"
    if not program.exists():
        print(f"installing litellm[proxy] into {FOLDER}", flush=True)
        venv.create(FOLDER, with_pip=True)
        subprocess.run([FOLDER / "bin" / "pip", "install", "-q", "litellm[proxy]"], check=True, stdout=sys.stderr)
    config = made.folder / f"{name}.yaml"
    params = {"model": "openai/static-1", "api_base": upstream.url + "/v1", "api_key": "sk-static"}
    settings = {
        "model_list": [{"model_name": "bench", "litellm_params": params}],
        "general_settings": {"master_key": KEY},
        "litellm_settings": {"telemetry": False},
    }
    config.write_text(yaml.safe_dump(settings))
    port = testing.free_port()
    command = [str(program), "--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    environment = {"LITELLM_LOG": "ERROR", "LITELLM_MODE": "PRODUCTION", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    return replace(made.start(name, command, port, GATEWAY_CORES, environment, KEY), most_clients=8, least_seconds=5)
