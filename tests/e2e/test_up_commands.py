"""`bulkhead up` with the real services, and the other commands against it, as a user types them."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx2 as httpx
import psutil
import pytest

from services.common import testing
from services.common.testing import ROOT, Process, eventually

pytestmark = pytest.mark.system

BULKHEAD = testing.python("-m", "services.cli")
CTRL_C_S = 10


class Installation:
    """One `bulkhead up` and its commands."""

    def __init__(self, folder: Path, **env: str) -> None:
        self.data_dir = folder / "data"
        self.base = testing.free_port_base()
        self.env = {"OPENAI_API_KEY": "", "OPENAI_BASE_URL": "", "BULKHEAD_DATA_DIR": str(self.data_dir), **env}
        self.log = folder / "up.log"
        self.up: Process

    def start(self, *arguments: str) -> "Installation":
        """Returns when it says that it is ready."""
        seen = self.log.stat().st_size if self.log.exists() else 0
        self.up = Process([*BULKHEAD, "up", "--port-base", str(self.base), *arguments], env=self.env, log=self.log)

        def ready() -> bool:
            text = self.up.output()[seen:]
            assert self.up.running(), text
            return "Bulkhead is ready" in text

        eventually(ready, "`bulkhead up` is ready", timeout_s=90)
        return self

    def command(self, *arguments: str) -> list[str]:
        return [*BULKHEAD, *arguments]

    def run(self, *arguments: str, status: int = 0, stdin: str = "") -> subprocess.CompletedProcess:
        """One command to its end."""
        done = subprocess.run(
            self.command(*arguments), env={**os.environ, **self.env}, cwd=ROOT, input=stdin, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == status, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done

    def stop(self) -> tuple[float, list[psutil.Process]]:
        """Ctrl-C; answers how long it took, in seconds, and what is left."""
        family = psutil.Process(self.up.pid).children(recursive=True)
        begun = time.monotonic()
        self.up.signal(signal.SIGINT)
        assert self.up.wait(30) == 0, self.up.output()[-3000:]
        took_s = time.monotonic() - begun
        return took_s, [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]

    def fault(self, marker: str, **fault: object) -> None:
        """Makes the simulator misbehave where `marker` stands in the request."""
        answer = httpx.post(f"http://127.0.0.1:{self.base + 6}/sim/faults", json={"match": {"contains": marker}, "fault": fault})
        assert answer.status_code < 300, answer.text


@pytest.fixture(scope="module")
def installation(tmp_path_factory):
    made = Installation(tmp_path_factory.mktemp("installation")).start()
    yield made
    made.up.stop()


def test_the_three_commands_of_the_banner_work_when_they_are_pasted(installation):
    commands = installation.up.output().rpartition("Try:\n")[2].partition("\n\n")[0].splitlines()
    assert len(commands) == 3
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    for command in commands:
        done = subprocess.run(["bash", "-c", command.strip()], env={**os.environ, "PATH": path}, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        assert "391" in done.stdout or " ingest " in command


def test_the_tour_of_the_readme(installation):
    told = installation.run("ingest", "README.md", "docs").stdout
    assert re.search(r"^(\d+) of \1 documents ingested, [1-9]\d* passages$", told.strip())

    installation.run("chat", "--thread", "boat", "My boat is called Nebelkraehe.")
    turn = installation.run(
        "chat", "--thread", "boat", "What is 17 * 23, which five services does Bulkhead have, and what is my boat called?"
    )
    assert "391" in turn.stdout
    assert "Nebelkraehe" in turn.stdout
    assert re.search(r"\[c\d+\]", turn.stdout)
    assert "→ calculator" in turn.stderr
    assert re.search(r"\[c\d+\] .*\.md", turn.stderr)

    timeline = installation.run("replay", "boat").stdout
    for event in ("run_started", "memory_recalled", "tool_call_completed", "citation", "run_finished"):
        assert event in timeline
    paced = installation.run("replay", "boat", "--speed", "50")
    assert "391" in paced.stdout

    runs = installation.run("runs", "--thread", "boat", "--json").stdout.splitlines()
    assert [json.loads(line)["status"] for line in runs] == ["succeeded", "succeeded"]
    run_id = json.loads(runs[0])["run_id"]
    assert run_id in installation.run("runs").stdout
    assert json.loads(installation.run("runs", "show", run_id).stdout)["usage"]["tool_calls"] >= 1


def test_none_of_its_processes_interrupts_another(installation):
    possible = "import os; os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0)); print(os.sched_getscheduler(0))"
    asked = subprocess.run(testing.python("-c", possible), capture_output=True, text=True)
    # Where no process may choose, all stay as they are.
    policy = int(asked.stdout) if asked.returncode == 0 else os.sched_getscheduler(0)
    family = psutil.Process(installation.up.pid).children(recursive=True)
    assert len(family) > 5
    assert {os.sched_getscheduler(process.pid) for process in family} == {policy}


def test_chat_as_json_is_one_event_a_line(installation):
    lines = installation.run("chat", "--json", "--agent", "plain", "Hello").stdout.splitlines()
    events = [json.loads(line) for line in lines]
    assert [event["seq"] for event in events] == sorted(event["seq"] for event in events)
    assert events[-1]["type"] == "run_finished"
    assert {"thread_id", "run_id", "trace_id"} <= set(events[-1])


def test_a_conversation_keeps_its_thread(installation):
    talk = installation.run("chat", "--thread", "talk", stdin="My favourite bird is the heron.\nWhat is my favourite bird?\n/quit\n")
    assert "heron" in talk.stdout.splitlines()[-1]
    assert "thread talk" in talk.stderr


def test_ctrl_c_in_a_chat_cancels_the_run(installation, tmp_path):
    installation.fault("tortoise", tokens_per_s=1)
    process = Process(
        installation.command("chat", "--thread", "slow", "--agent", "plain", "Tell me about the tortoise, the hare and the whole race."),
        env=installation.env, log=tmp_path / "chat.log",
    )  # fmt: skip

    def newest() -> dict:
        # Not by --thread: the thread is made with its first run.
        runs = [json.loads(line) for line in installation.run("runs", "--json").stdout.splitlines()]
        return next((run for run in runs if run["thread_id"] == "slow"), {})

    eventually(lambda: newest().get("status") == "running", "the run has an owner")
    process.signal(signal.SIGINT)
    assert process.wait() == 130
    assert "cancelled" in process.output()
    assert newest()["status"] == "cancelled"


def test_doctor_finds_nothing_and_a_missing_service(installation):
    assert "all is well" in installation.run("doctor").stdout
    pid = int((installation.data_dir / "run/memory-0.pid").read_text())
    os.kill(pid, signal.SIGSTOP)
    try:
        told = installation.run("doctor", status=1).stdout
        assert re.search(r"✗ +memory-0", told)
    finally:
        os.kill(pid, signal.SIGCONT)
    eventually(
        lambda: subprocess.run(installation.command("doctor"), env={**os.environ, **installation.env}, capture_output=True).returncode == 0,
        "all is well again",
    )


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (("runs", "show", "run_nowhere"), 1),
        (("replay", "no-such-thread"), 1),
        (("chat", "--agent", "nobody", "hi"), 1),
        (("ingest", "nowhere.md"), 1),
        (("ingest", "Makefile"), 1),
        (("up", "--replicas", "nobody=2"), 2),
        (("up", "--port-base", "70000"), 2),
    ],
)
def test_a_failure_is_one_clear_line_and_a_status(installation, arguments, status):
    told = installation.run(*arguments, status=status).stderr
    assert told.startswith("bulkhead: ")
    assert told.count("\n") == 1


def test_a_wrong_key_is_told_without_the_key(installation, monkeypatch):
    monkeypatch.setitem(installation.env, "BULKHEAD_API_KEY", "bh_wrong-wrong-wrong-wrong")
    told = installation.run("chat", "hi", status=4).stderr
    assert "BULKHEAD_API_KEY" in told
    assert "bh_wrong" not in told


def test_keys_are_made_listed_and_revoked(installation):
    made = installation.run("keys", "create", "--user", "ana", "--tier", "free", "--scope", "runs:read", "--name", "ci")
    secret = made.stdout.strip()
    listed = installation.run("keys", "list").stdout
    assert "ana" in listed
    assert secret not in listed
    key_id = made.stderr.split(":")[0]
    url = f"http://127.0.0.1:{installation.base}/v1/runs"
    headers = {"authorization": f"Bearer {secret}"}
    assert httpx.get(url, headers=headers).status_code == 200
    installation.run("keys", "revoke", key_id)
    eventually(lambda: httpx.get(url, headers=headers).status_code == 401, "the key is refused")


def test_a_real_provider_is_used_when_its_key_is_set(installation, tmp_path):
    provider = f"http://127.0.0.1:{installation.base + 6}/v1"
    other = Installation(tmp_path, OPENAI_API_KEY="sk-not-a-real-key-0001", OPENAI_BASE_URL=provider, OPENAI_MODEL="house-model")
    other.start()
    try:
        banner = other.up.output()
        assert f"house-model at {provider}" in banner
        assert "SIMULATOR" not in banner
        assert "simulator-0" not in banner
        assert "sk-not-a-real-key-0001" not in banner
        assert "391" in other.run("chat", "What is 17 * 23?").stdout
        served = httpx.get(f"http://127.0.0.1:{installation.base + 6}/sim/log").text
        assert "house-model" in served
    finally:
        took_s, left = other.stop()
    assert took_s < CTRL_C_S
    assert not left


def test_the_state_survives_ctrl_c_which_leaves_no_process(installation):
    before = (installation.data_dir / "dev.env").read_text()
    took_s, left = installation.stop()
    assert took_s < CTRL_C_S
    assert not left
    assert installation.run("chat", "hi", status=3).stderr.startswith("bulkhead: Bulkhead does not answer")
    installation.start()
    assert (installation.data_dir / "dev.env").read_text() == before
    assert "Nebelkraehe" in installation.run("chat", "--thread", "boat", "What is my boat called?").stdout
    assert re.search(r"\[c\d+\]", installation.run("chat", "Which five services does Bulkhead have?").stdout)
