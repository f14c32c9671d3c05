"""The supervisor and what it asks: readiness that does not come, logs that tell why, configuration that was refused."""

import io
import json
import os
import sys
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2_grpc
from rich.console import Console

from services.cli.doctor import config_rows
from services.cli.failure import CommandFailure
from services.cli.up import preflight
from services.cli.up.display import PlainDisplay
from services.cli.up.environment import Wiring
from services.cli.up.live import LiveDisplay
from services.cli.up.plan import make_plan
from services.cli.up.probes import READY, failing, http, listening, valkey
from services.cli.up.process import Keeper, last_error
from services.cli.up.supervisor import DRAIN_ORDER, NEXT_STAGE_S, SERVICES_END_S, STORES_END_S, Supervisor
from services.cli.up.workspace import Lock, Workspace
from services.common import testing
from services.common.config import ConfigFile
from services.common.health import Health, HealthServicer
from services.common.http import UvicornListener
from services.common.settings import PRESETS
from services.llm_gateway.model_port.app import ModelPort

STAND_IN = Path(__file__).with_name("stand_in.py")


class Told:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def begin(self, labels) -> None:
        self.lines.append(" ".join(labels))

    def end(self) -> None:
        self.lines.append("end")

    def state(self, label, text, *, ready=False) -> None:
        self.lines.append(f"{label} {text}")

    def say(self, line) -> None:
        self.lines.append(line)

    def stage(self, stage, facts, lines) -> None:
        self.lines += lines


class StandIns(Wiring):
    def command(self, planned, ports):
        return [sys.executable, str(STAND_IN), planned.name]


@pytest.fixture
def workspace(tmp_path):
    made = Workspace(tmp_path / "data")
    made.open()
    return made


@pytest.mark.parametrize("terminal", [True, False])
def test_what_a_process_left_in_its_log_commands_no_terminal(terminal):
    told = io.StringIO()
    display = LiveDisplay(Console(file=told, width=80)) if terminal else PlainDisplay(told)
    display.say("gateway-0 ended (last error: \x1b]0;owned\x07\x9b2J)")
    assert told.getvalue() == "gateway-0 ended (last error: ]0;owned2J)\n"


async def test_what_does_not_become_ready_is_named_with_its_reason(workspace, monkeypatch):
    monkeypatch.setenv("BULKHEAD_STAND_IN_SIMULATOR", "unready")
    base = testing.free_port_base()
    plan = make_plan(only=["simulator"], port_base=base)
    lock = Lock(workspace.lock)
    lock.acquire()
    keeper = Keeper(lock.descriptor)
    supervisor = Supervisor(StandIns(workspace, plan, workspace.root, dict(os.environ), base), keeper, Told())
    try:
        supervisor.start()
        with pytest.raises(CommandFailure) as failure:
            await supervisor.ready(timeout_s=2)
        assert str(failure.value) == "not ready after 2 s\n  simulator-0: waiting for memory"
    finally:
        await supervisor.drain()
        keeper.close()
        lock.release()


async def test_probes_tell_ready_from_starting(state_url):
    port = int(state_url.rpartition(":")[2].partition("/")[0])
    nobody = testing.free_port()
    assert await valkey(port) == READY
    assert await listening(port) == READY
    assert await valkey(nobody) == await listening(nobody) == await http(nobody, "/ready") == "starting"
    assert await http(port, "/ready") != READY


def test_the_ready_answer_names_what_is_away():
    assert (
        failing(b'{"status": "not ready", "failing": {"orchestrator": "timed out", "memory": "not ready"}}')
        == "waiting for memory, orchestrator"
    )
    assert failing(b"[]") == failing(b"") == failing(b'{"failing": {}}') == ""


def test_the_last_error_of_a_log_is_found_after_its_start(tmp_path):
    log = tmp_path / "x.jsonl"
    log.write_text(json.dumps({"level": "error", "event": "old", "error": "before"}) + "\n")
    start = log.stat().st_size
    assert last_error(log) == "old before"
    with log.open("a") as out:
        out.write("no json\n" + json.dumps({"level": "error", "event": "died", "exception": "Traceback\n  line\nValueError: bad"}) + "\n")
        out.write(json.dumps({"level": "info", "event": "bye"}) + "\n")
    assert last_error(log, start) == "died ValueError: bad"
    assert last_error(tmp_path / "nowhere") == ""


async def test_doctor_shows_what_processes_have_refused_however_long_ago(workspace):
    """A process over gRPC with its problems, one over HTTP with names only, and one that is away."""
    (workspace.root / "models.yaml").write_text("a: 1")
    models = ConfigFile(workspace.root / "models.yaml", dict)
    policies = ConfigFile(workspace.root / "models.yaml", dict, absent=dict)
    health = Health({}, [models])
    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(HealthServicer(health), server)
    grpc_port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    listener = UvicornListener(ModelPort(dict, [], None, Health({}, [policies])), "127.0.0.1", 0)
    await listener.start()
    ports = {"llm_gateway-0": {"grpc": grpc_port}, "gateway-0": {"http": listener.bound_port}, "memory-0": {"grpc": testing.free_port()}}
    workspace.processes.write_text(json.dumps(ports))
    try:
        assert [row.good for row in await config_rows(workspace)] == [True]
        (workspace.root / "models.yaml").write_text("a: 1\na: 2")
        models.reload()
        policies.reload()
        over_http, over_grpc = await config_rows(workspace)
        assert over_grpc.found == "llm_gateway-0 keeps the last good models.yaml"
        assert "line 2: the key 'a' stands twice" in over_grpc.way_out
        assert over_http.found == "gateway-0 keeps the last good models.yaml"
        assert str(workspace.log_file("gateway-0")) in over_http.way_out
        # However much is wrong, the answer stays within what a health check may say.
        models.problem = ["x" * 1000] * 100
        (row,) = [row for row in await config_rows(workspace) if "llm_gateway-0" in row.found]
        assert 1_000 < len(row.way_out) < 4_000
        (workspace.root / "models.yaml").write_text("a: 2")
        models.reload()
        policies.reload()
        assert [row.good for row in await config_rows(workspace)] == [True]
    finally:
        await server.stop(None)
        await listener.stop_accepting()
        await listener.close()


def test_the_whole_drain_fits_into_ten_seconds():
    last_service_s = NEXT_STAGE_S * (len(DRAIN_ORDER) - 2)
    assert last_service_s + PRESETS["local"]["drain_grace_s"] <= SERVICES_END_S < STORES_END_S < 10


def test_a_missing_package_is_one_line_with_the_way_out(monkeypatch):
    monkeypatch.setattr(preflight, "_installed", lambda package: package != "milvus_lite")
    found = preflight.problems(make_plan(port_base=testing.free_port_base()))
    assert len(found) == 1
    assert found[0].startswith("milvus_lite is missing, which milvus needs: `make run` installs it")
