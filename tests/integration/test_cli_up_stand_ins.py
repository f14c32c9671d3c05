"""`bulkhead up` as a process, with real stores and stand-ins for the services: start, restart, drain, and nothing left behind."""

import json
import os
import signal
import socket
import stat
import subprocess
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from services.common import testing
from services.common.accounts import Accounts
from services.common.testing import ROOT, eventually
from services.common.valkey import connect

pytestmark = pytest.mark.system

STAND_IN_UP = ROOT / "tests/unit/cli/stand_in_up.py"
FEW = ("--only", "gateway", "--only", "orchestrator")


class Up(testing.Process):
    """A running `bulkhead up`."""

    def __init__(self, data_dir: Path, base: int, *arguments: str, **env: str) -> None:
        self.data_dir, self.base = data_dir, base
        log = data_dir.parent / f"up-{time.monotonic_ns()}.log"
        command = testing.python(str(STAND_IN_UP), "--port-base", str(base), "--data-dir", str(data_dir), *arguments)
        super().__init__(command, env={"OPENAI_API_KEY": "", **env}, log=log)

    def says(self, text: str) -> None:
        """Waits for `text` in what it prints."""

        def there() -> bool:
            assert self.running() or text in self.output(), f"ended without {text!r}:\n{self.output()}"
            return text in self.output()

        eventually(there, f"`up` says {text!r}; so far:\n{self.output()}")

    def ready(self) -> "Up":
        """Waits for the banner."""
        self.says("Bulkhead is ready")
        return self

    def pid_of(self, label: str) -> int:
        """Process id in a pid file."""
        return int((self.data_dir / "run" / f"{label}.pid").read_text())

    def family(self) -> list[psutil.Process]:
        """All processes that it has started, at any depth."""
        return psutil.Process(self.pid).children(recursive=True)

    def interrupt(self) -> float:
        """Ctrl-C; answers how long it took to end, in seconds."""
        begun = time.monotonic()
        self.signal(signal.SIGINT)
        assert self.wait(30) == 0, self.output()
        return time.monotonic() - begun


def gone(processes: list[psutil.Process]) -> bool:
    return not [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


@pytest.fixture
def start(tmp_path):
    """Starts `up`; whatever a test leaves is killed."""
    started: list[Up] = []
    base = testing.free_port_base()

    def one(*arguments: str, **env: str) -> Up:
        started.append(Up(tmp_path / "data", base, *arguments, **env))
        return started[-1]

    one.base = base
    yield one
    for up in started:
        family = up.family() if up.running() else []
        # The keeper of `up` is one of the family, so that nobody is waited for.
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        up.kill()
        psutil.wait_procs(family, 15)


@contextmanager
def listening(port: int):
    with socket.create_server(("127.0.0.1", port)):
        yield


async def test_everything_starts_is_told_and_ends_in_order(start, tmp_path):
    journal = tmp_path / "journal"
    up = start(BULKHEAD_STAND_IN_JOURNAL=str(journal)).ready()
    data = up.data_dir
    labels = {f"{name}-0" for name in ("gateway", "orchestrator", "llm_gateway", "tool_executor", "memory", "simulator")}
    labels |= {"valkey_state-0", "valkey_cache-0", "milvus-0"}
    assert {path.stem for path in (data / "run").glob("*.pid")} == labels
    assert {path.stem for path in (data / "logs").glob("*-0.jsonl")} == labels
    assert {psutil.Process(up.pid_of(label)).ppid() for label in labels} == {up.pid}

    env = dict(line.split("=", 1) for line in (data / "dev.env").read_text().splitlines())
    assert set(env) == {"BULKHEAD_URL", "BULKHEAD_LLM_URL", "BULKHEAD_API_KEY"}
    assert env["BULKHEAD_URL"] == f"http://127.0.0.1:{up.base}"
    assert env["BULKHEAD_LLM_URL"] == f"http://127.0.0.1:{up.base + 1}"
    assert stat.S_IMODE((data / "dev.env").stat().st_mode) == 0o600
    for told in (env["BULKHEAD_URL"], env["BULKHEAD_API_KEY"], "SIMULATOR", "traces", "chat --thread", "ingest"):
        assert told in up.output()

    client = connect(f"redis://127.0.0.1:{up.base + 13}/0")
    principal = await Accounts(client).resolve(env["BULKHEAD_API_KEY"])
    await client.aclose()
    assert (principal.tier, principal.scopes) == ("enterprise", ("*",))

    addresses = json.loads((data / "run/addresses.json").read_text())
    expected = {"orchestrator": 2, "llm_gateway": 3, "tool_executor": 4, "memory": 5}
    assert addresses == {name: [f"127.0.0.1:{up.base + offset}"] for name, offset in expected.items()}

    family = up.family()
    assert len(family) >= len(labels)
    assert up.interrupt() < 10
    assert gone(family)
    assert not list((data / "run").glob("*.pid"))
    order = journal.read_text().split()
    assert order[:2] == ["gateway", "orchestrator"]
    assert set(order[2:5]) == {"llm_gateway", "tool_executor", "memory"}
    assert order[5:] == ["simulator"]

    again = start("--only", "gateway").ready()
    assert env["BULKHEAD_API_KEY"] in again.output()
    assert env["BULKHEAD_API_KEY"] in (data / "dev.env").read_text()
    again.interrupt()


def test_a_script_is_told_each_stage_and_where_everything_is(start):
    up = start(*FEW, "--json")
    up.says('"event": "ready"')
    os.kill(up.pid_of("orchestrator-0"), signal.SIGKILL)
    up.says("orchestrator-0 is ready again")
    assert up.interrupt() < 10
    told = [json.loads(line) for line in up.output().splitlines()]
    events = [one["event"] for one in told]
    assert (events[0], events[-1], events.count("ready"), events.count("draining")) == ("starting", "stopped", 1, 1)
    assert {"gateway-0", "orchestrator-0", "valkey_state-0"} <= set(told[0]["processes"])
    ready = told[events.index("ready")]
    before = told[: events.index("ready")]
    assert {one["process"] for one in before if one.get("ready")} == set(told[0]["processes"]) == set(ready["processes"])
    assert (ready["url"], ready["llm_url"], ready["partial"]) == (f"http://127.0.0.1:{up.base}", None, True)
    assert ready["processes"]["orchestrator-0"]["grpc"] == up.base + 2
    env = dict(line.split("=", 1) for line in Path(ready["env_file"]).read_text().splitlines())
    assert env["BULKHEAD_URL"] == ready["url"]
    assert env["BULKHEAD_API_KEY"] not in up.output()
    assert "orchestrator-0 ended: signal SIGKILL" in next(one["text"] for one in told if one["event"] == "message")
    assert [one["elapsed_s"] for one in told] == sorted(one["elapsed_s"] for one in told)


def test_a_script_is_told_on_stderr_why_nothing_starts(start):
    with listening(start.base + 13):
        up = start(*FEW, "--json")
        assert up.wait() == 1
    assert up.output().startswith(f"bulkhead: port {start.base + 13} is taken")


def test_a_killed_service_is_reported_and_started_again_at_the_same_port(start):
    up = start(*FEW).ready()
    first = up.pid_of("orchestrator-0")
    os.kill(first, signal.SIGKILL)
    up.says("orchestrator-0 ended")
    assert "signal SIGKILL" in up.output()
    up.says("orchestrator-0 is ready again")
    assert up.pid_of("orchestrator-0") != first
    assert json.loads((up.data_dir / "run/addresses.json").read_text())["orchestrator"] == [f"127.0.0.1:{up.base + 2}"]
    assert up.running()


def test_a_service_that_keeps_crashing_is_told_with_its_last_error_and_ends_the_start(start):
    up = start(*FEW, BULKHEAD_STAND_IN_GATEWAY="crash")
    assert up.wait() == 1
    assert "gateway-0 ended: exit status 1 (last error: fell_over no luck); restarting in 0.2 s" in up.output()
    assert "restarting in 0.4 s" in up.output()
    assert "gateway-0 cannot start" in up.output()
    assert "Traceback" not in up.output()


def test_a_refused_start_shows_every_problem_and_leaves_nothing(start):
    up = start(*FEW, BULKHEAD_STAND_IN_ORCHESTRATOR="refuse")
    assert up.wait() == 1
    assert "orchestrator-0 cannot start:\n  - BULKHEAD_STATE_URL is required\n  - agents.yaml line 3: no such tool" in up.output()
    assert not list((up.data_dir / "run").glob("*.pid"))
    log = [json.loads(line) for line in (up.data_dir / "logs/orchestrator-0.jsonl").read_text().splitlines()]
    assert log[0]["line"] == "orchestrator: cannot start"


def test_what_ignores_sigterm_is_killed_in_the_end_with_its_children(start):
    impatient = {"BULKHEAD_STAND_IN_PATIENCE_S": "2"}
    up = start(*FEW, BULKHEAD_STAND_IN_GATEWAY="deaf", BULKHEAD_STAND_IN_ORCHESTRATOR="parent", **impatient).ready()
    family = up.family()
    # The bound here is against hanging.
    assert up.interrupt() < 20, up.output()
    assert gone(family)
    assert "gateway-0 did not end in time and was killed" in up.output()


def test_a_second_ctrl_c_ends_everything_at_once(start):
    up = start(*FEW, BULKHEAD_STAND_IN_GATEWAY="deaf").ready()
    family = up.family()
    up.signal(signal.SIGINT)
    up.says("draining")
    assert up.interrupt() < 5
    assert gone(family)


def test_ctrl_c_during_the_start_leaves_nothing(start):
    up = start("--only", "gateway")
    eventually(lambda: list((up.data_dir / "run").glob("*.pid")), "the first process is there")
    family = up.family()
    assert up.interrupt() < 10
    assert gone(family)


@pytest.mark.parametrize("manner", ["", pytest.param("parent", marks=pytest.mark.system)])
def test_a_killed_up_leaves_no_process_and_the_next_one_starts(start, manner):
    up = start(*FEW, BULKHEAD_STAND_IN_ORCHESTRATOR=manner).ready()
    family = up.family()
    up.signal(signal.SIGKILL)
    up.wait()
    again = start(*FEW).ready()
    assert gone(family)
    again.interrupt()


def test_a_second_up_on_the_same_folder_is_one_clear_line(start):
    up = start(*FEW).ready()
    second = start(*FEW)
    assert second.wait() == 1
    assert second.output().strip().count("\n") == 0
    assert f"already running on {up.data_dir} (process {up.pid})" in second.output()
    assert up.running()
    assert psutil.pid_exists(up.pid_of("gateway-0"))


def test_a_busy_port_is_one_clear_line_before_anything_is_started(start):
    base = start.base
    with listening(base + 13):
        up = start(*FEW)
        assert up.wait() == 1
    assert up.output().strip().count("\n") == 0
    assert f"port {base + 13} is taken" in up.output()
    assert "BULKHEAD_STATE_URL of valkey_state" in up.output()
    assert f"process {os.getpid()}" in up.output()


def test_replicas_take_free_ports_and_the_address_file_lists_them(start):
    up = start(*FEW, "--replicas", "orchestrator=2").ready()
    addresses = json.loads((up.data_dir / "run/addresses.json").read_text())["orchestrator"]
    assert addresses[0] == f"127.0.0.1:{up.base + 2}"
    other = int(addresses[1].rpartition(":")[2])
    assert other not in range(up.base, up.base + 16)
    first, second = up.pid_of("orchestrator-0"), up.pid_of("orchestrator-1")
    assert [c.laddr.port for c in psutil.Process(second).net_connections() if c.status == "LISTEN"] == [other]

    os.kill(second, signal.SIGSTOP)
    os.kill(second, signal.SIGKILL)
    up.says("orchestrator-1 is ready again")
    assert up.pid_of("orchestrator-0") == first
    up.interrupt()


def test_a_closed_terminal_does_not_keep_it_from_draining(tmp_path):
    base = testing.free_port_base()
    command = testing.python(str(STAND_IN_UP), "--port-base", str(base), "--data-dir", str(tmp_path / "other"), *FEW)
    up = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    try:
        assert up.stdout is not None
        assert any("Bulkhead is ready" in line for line in up.stdout)
        up.stdout.close()
        os.kill(int((tmp_path / "other/run/gateway-0.pid").read_text()), signal.SIGKILL)
        family = psutil.Process(up.pid).children(recursive=True)
        up.send_signal(signal.SIGHUP)
        up.wait(15)
        assert gone(family)
    finally:
        if up.poll() is None:
            os.killpg(up.pid, signal.SIGKILL)
