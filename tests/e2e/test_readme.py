"""The README and the quickstart, done as a reader does them: `make run` in one terminal, their commands in another."""

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import httpx2 as httpx
import psutil
import pytest

from services.common import testing
from services.common.testing import ROOT, Process, eventually
from tests.e2e import pages
from tests.e2e.harness import Receiver, read_env

README, QUICKSTART = ROOT / "README.md", ROOT / "docs/quickstart.md"
CTRL_C_S = 10


@dataclass
class Terminal:
    """A running `make run`, and another shell beside it where `bulkhead` is the command that it installed."""

    run: Process
    data_dir: Path
    base: int
    env: dict[str, str]
    receiver: Receiver

    def here(self, text: str) -> str:
        """`text` of a page for this installation: its ports and its data folder are not the usual ones."""
        text = text.replace(".venv/bin/bulkhead", "bulkhead").replace("http://localhost:8080", f"http://127.0.0.1:{self.base}")
        return text.replace(".bulkhead/", f"{self.data_dir}/")

    def paste(self, command: str) -> subprocess.CompletedProcess:
        """Runs a command of a page in bash; it must succeed."""
        done = subprocess.run(["bash", "-c", self.here(command)], env=self.env, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done


@pytest.fixture(scope="module")
def terminal(otlp, tmp_path_factory):
    receiver, otlp_port = otlp
    folder = tmp_path_factory.mktemp("readme")
    data_dir, base, programs = folder / "data", testing.free_port_base(), Path(sys.executable).parent
    # The installer has tests of its own; here everything is installed.
    options = f"--port-base {base} --data-dir {data_dir}"
    command = ["make", "-o", "install-run", f"BIN={programs}", f"ARGS={options}", "run"]
    env = {"OPENAI_API_KEY": "", "OPENAI_BASE_URL": "", "BULKHEAD_OTLP_ENDPOINT": f"http://127.0.0.1:{otlp_port}"}
    run = Process(command, env=env, log=folder / "make-run.log")

    def ready() -> bool:
        assert run.running(), run.output()
        return "Bulkhead is ready" in run.output()

    try:
        eventually(ready, "`make run` is ready", timeout_s=90)
        path = os.pathsep.join([str(programs), os.environ["PATH"]])
        yield Terminal(run, data_dir, base, {**os.environ, "PATH": path, "BULKHEAD_DATA_DIR": str(data_dir)}, receiver)
    finally:
        run.stop()


@pytest.fixture(scope="module")
def tour(terminal):
    """Every `bulkhead` command of the README in its order, with what it told; `up` has a test of its own (the LLM gateway's page)."""
    lines = [command for command in pages.shell(README) if command.startswith("bulkhead ") and not command.startswith("bulkhead up")]
    return [(command, terminal.paste(command)) for command in lines]


def of(tour, name: str) -> list[subprocess.CompletedProcess]:
    found = [done for command, done in tour if command.startswith(f"bulkhead {name} ")]
    assert found, f"the README has no `bulkhead {name}`"
    return found


def test_make_run_prints_what_the_readme_promises(terminal):
    output, key = terminal.run.output(), read_env(terminal.data_dir / "dev.env")["BULKHEAD_API_KEY"]
    assert f"http://127.0.0.1:{terminal.base}" in output
    assert key in output
    assert len(output.partition("Try:\n")[2].partition("\n\n")[0].splitlines()) == 3
    assert "simulator" in output.lower()


def test_the_tour_ingests_the_projects_own_pages(tour):
    for done in of(tour, "ingest"):
        assert re.search(r"^(\d+) of \1 documents ingested, [1-9]\d* passages$", done.stdout.strip())


def test_the_second_answer_of_the_tour_uses_everything(tour):
    second = of(tour, "chat")[1]
    cited = re.findall(r"\[(c\d+)\]", second.stdout)
    assert cited, second.stdout
    assert re.search(rf"\[{cited[0]}\] .*\.md", second.stderr), second.stderr
    assert "Ctrl-C" in second.stdout
    assert "391" in second.stdout
    assert "→ calculator" in second.stderr
    assert "Heron" in second.stdout


def test_the_replay_of_the_tour_shows_what_happened(tour):
    timeline = of(tour, "replay")[0].stdout
    for event in ("run_started", "memory_recalled", "tool_call_completed", "citation", "run_finished"):
        assert event in timeline
    assert len(re.findall(r"\brun_finished\b", timeline)) == 2


def test_the_openai_snippet_runs_as_it_is(terminal, tour):
    (snippet,) = pages.blocks(README, "python")
    key = read_env(terminal.data_dir / "dev.env")["BULKHEAD_API_KEY"]
    code = re.sub(r"<the key[^>]*>", key, terminal.here(snippet))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "391" in done.stdout
    # Its header names the thread of the tour, so the turn stands there.
    assert len(re.findall(r"\brun_finished\b", terminal.paste("bulkhead replay tour").stdout)) == 3


def test_where_to_look_when_something_is_wrong(terminal, tour):
    spans = pages.code_spans(README)
    assert "bulkhead doctor" in spans
    assert "all is well" in terminal.paste("bulkhead doctor").stdout
    env = read_env(terminal.data_dir / "dev.env")
    for span in ("/replay/<thread>", "/ready"):
        assert span in spans
        headers = {"authorization": f"Bearer {env['BULKHEAD_API_KEY']}"}
        answer = httpx.get(env["BULKHEAD_URL"] + span.replace("<thread>", "tour"), headers=headers)
        assert answer.status_code == 200, answer.text
    run_id = json.loads(terminal.paste("bulkhead runs --thread tour --json").stdout.splitlines()[0])["run_id"]
    assert ".bulkhead/logs/*.jsonl" in spans
    logged = [json.loads(line) for file in (terminal.data_dir / "logs").glob("*.jsonl") for line in file.open()]
    of_run = [line for line in logged if line.get("run_id") == run_id and line.get("trace_id") and line.get("request_id")]
    assert {"gateway", "llm_gateway"} <= {line["service"] for line in of_run}
    attributes = {span for span in spans if re.fullmatch(r"bulkhead\.\w+", span)}
    assert len(attributes) >= 4
    eventually(
        lambda: attributes <= {name for span in terminal.receiver.spans() for name in span.attributes},
        f"spans carry {sorted(attributes)}",
    )


def test_the_commands_of_the_quickstart(terminal, tour):
    told = {}
    for block in pages.blocks(QUICKSTART, "sh"):
        if "make " in block:
            continue
        if "curl" in block:
            assert "391" in json.loads(terminal.paste(block).stdout)["choices"][0]["message"]["content"]
            continue
        for command in pages.commands(block):
            told[command] = terminal.paste(command).stdout
    assert len(told) >= 6
    answers = [out for command, out in told.items() if " chat " in command]
    assert "Heron" in answers[-1]
    assert "391" in answers[-1]
    assert any("all is well" in out for command, out in told.items() if command.endswith("doctor"))
    assert any("run_finished" in out for command, out in told.items() if " replay " in command)


def test_a_process_killed_in_the_middle_of_an_answer_does_not_end_the_turn(terminal, tmp_path):
    (kill,) = {span for page in (README, QUICKSTART) for span in pages.code_spans(page) if span.startswith("kill -9 ")}
    faults = f"http://127.0.0.1:{terminal.base + 6}/sim/faults"
    httpx.post(faults, json={"match": {"contains": "lighthouses"}, "fault": {"tokens_per_s": 5}}).raise_for_status()
    chat = Process(["bulkhead", "chat", "Write 60 words about lighthouses."], env=terminal.env, log=tmp_path / "chat.log")
    try:
        eventually(lambda: len(chat.output().split()) >= 3, "the answer has begun")
        terminal.paste(kill)
        httpx.delete(faults).raise_for_status()
        assert chat.wait() == 0, chat.output()
    finally:
        chat.stop()
    first, marker, rest = chat.output().partition("another attempt takes over")
    assert marker, chat.output()
    answer = rest.partition("\n")[2].partition("answered by the SIMULATOR")[0]
    assert len(answer.split()) == 60, chat.output()
    assert first.split()[0] in rest
    assert "orchestrator-0 ended" in terminal.run.output()
    eventually(lambda: "orchestrator-0 is ready again" in terminal.run.output(), "it is started again")


def test_ctrl_c_ends_all_of_it_and_the_state_stays(terminal, tour):
    # The last one: it ends the platform of this module, as Ctrl-C does, for the whole foreground group.
    family = psutil.Process(terminal.run.pid).children(recursive=True)
    assert len(family) >= 9
    os.killpg(terminal.run.pid, signal.SIGINT)
    terminal.run.wait(CTRL_C_S + 5)
    took_s = float(re.search(r"stopped after ([\d.]+) s", terminal.run.output())[1])
    assert took_s < CTRL_C_S
    assert not [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert (terminal.data_dir / "dev.env").exists()
