"""docs/llm-gateway.md, done as a reader does it: the gateway started alone, and every command and snippet of the page against it."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import httpx2 as httpx
import pytest

from services.common import testing
from services.common.testing import ROOT, Process, eventually
from tests.e2e import pages
from tests.e2e.harness import read_env

PAGE = ROOT / "docs/llm-gateway.md"
START = "bulkhead up --only llm-gateway"
# The blocks of the other chapters; those of Kubernetes are rendered by the chart tests.
BLOCKS = [block for block in pages.blocks(PAGE, "sh") if START not in block and "helm " not in block]
SNIPPETS = pages.blocks(PAGE, "python")


@dataclass
class Gateway:
    """The gateway of this module, and a terminal beside it."""

    up: Process
    data_dir: Path
    models: Path
    env: dict[str, str]

    @property
    def url(self) -> str:
        return self.env["BULKHEAD_LLM_URL"]

    def paste(self, command: str) -> subprocess.CompletedProcess:
        """Runs a block of the page in bash, in its own data folder."""
        command = command.replace(".bulkhead/", f"{self.data_dir}/")
        return subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", command], env=self.env, cwd=ROOT, capture_output=True, text=True, timeout=60
        )

    def run(self, snippet: str) -> subprocess.CompletedProcess:
        """Runs Python of the page."""
        return subprocess.run([sys.executable, "-c", snippet], env=self.env, capture_output=True, text=True, timeout=60)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llm-gateway-page")
    data_dir, base, models = folder / "data", testing.free_port_base(), folder / "models.yaml"
    # The models of the page, in a file that a test may change.
    models.write_text((ROOT / "k8s/environments/local/config/models.yaml").read_text())
    options = ["--port-base", str(base), "--data-dir", str(data_dir), "--models", str(models)]
    command = [*testing.python("-m", "services.cli"), *shlex.split(START)[1:], *options]
    up = Process(command, env={"OPENAI_API_KEY": "", "OPENAI_BASE_URL": "", "BULKHEAD_OTLP_ENDPOINT": ""}, log=folder / "up.log")

    def ready() -> bool:
        assert up.running(), up.output()
        return "Bulkhead is ready" in up.output() and "Ctrl-C ends everything" in up.output()

    try:
        eventually(ready, "the gateway is ready", timeout_s=60)
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        yield Gateway(up, data_dir, models, {**os.environ, "PATH": path, **read_env(data_dir / "dev.env")})
    finally:
        up.stop()


def test_the_page_starts_the_gateway_as_this_test_does():
    for page in (PAGE, ROOT / "README.md"):
        assert [START] in [pages.commands(block) for block in pages.blocks(page, "sh")]


def test_it_is_ready_and_says_nothing_else(gateway):
    assert httpx.get(gateway.url + "/ready").json()["ready"] is True
    assert "not ready" not in gateway.up.output()
    assert f"{gateway.url}/v1" in gateway.up.output()
    assert gateway.env["BULKHEAD_API_KEY"] in gateway.up.output()


def test_the_call_of_the_banner_works_when_it_is_pasted(gateway):
    (command,) = gateway.up.output().rpartition("Try:\n")[2].partition("\n\n")[0].splitlines()
    assert "Hello" in json.loads(gateway.paste(command).stdout)["choices"][0]["message"]["content"]


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_a_block_of_commands_succeeds(gateway, block):
    done = gateway.paste(block)
    assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            assert "error" not in (json.loads(line).get("error") or {"": ""}), line


def test_every_path_of_the_table_is_called_by_hand(gateway):
    table = PAGE.read_text().partition("| path | what it is |")[2].partition("\n\n")[0]
    named = set(re.findall(r"POST (/v1/[a-z/_]+)", table))
    assert named == {path for block in BLOCKS for path in re.findall(r"^post (/v1/\S+)", block, re.M)}
    for path in named:
        answer = httpx.post(gateway.url + path, json={}, headers={"authorization": f"Bearer {gateway.env['BULKHEAD_API_KEY']}"})
        assert answer.status_code == 400, f"{path}: {answer.text}"


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_a_snippet_runs_as_it_is(gateway, snippet):
    done = gateway.run(snippet)
    assert done.returncode == 0, f"{snippet}\n{done.stderr}"
    assert "Hello" in done.stdout
    if "batches" in snippet:
        assert done.stdout.startswith("completed 3\n")


def test_changes_of_models_yaml_count_at_once_and_mistakes_are_told_where_one_looks(gateway):
    good, headers = gateway.models.read_text(), {"authorization": f"Bearer {gateway.env['BULKHEAD_API_KEY']}"}

    def names() -> list[str]:
        return [model["id"] for model in httpx.get(gateway.url + "/v1/models", headers=headers).json()["data"]]

    gateway.models.write_text(good.replace("model_name: rerank-default", "model_name: rerank-renamed"))
    eventually(lambda: "rerank-renamed" in names(), "the new name is served")
    gateway.models.write_text(re.sub(r"(cost\w*): 0\.\d+", r"\1: 0", good))
    eventually(lambda: "its price would become 0" in gateway.up.output(), "the terminal of `up` says what was refused")
    assert "rerank-renamed" in names()
    gateway.models.write_text(good)
    eventually(lambda: "the newest again" in gateway.up.output() and "rerank-default" in names(), "the corrected file is in force")


def test_a_stopped_platform_names_what_is_there(gateway):
    """`bulkhead chat` needs the whole platform, and doctor knows that only the gateway was started."""
    data = ["--data-dir", str(gateway.data_dir)]
    env = {name: value for name, value in gateway.env.items() if not name.startswith("BULKHEAD_")}
    chat = subprocess.run(["bulkhead", "chat", "hello", *data], env=env, capture_output=True, text=True, timeout=60)
    assert chat.returncode == 3
    assert "only the LLM gateway was started" in chat.stderr
    doctor = subprocess.run(["bulkhead", "doctor", *data], env=env, capture_output=True, text=True, timeout=60)
    assert "all is well" in doctor.stdout, doctor.stdout
    assert "assistant-model" in doctor.stdout


def test_ctrl_c_ends_it(gateway):
    gateway.up.signal(signal.SIGINT)
    assert gateway.up.wait(15) == 0
