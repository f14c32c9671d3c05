"""The simulator as a process: starting, refusing to start, ending."""

import json
import signal
import urllib.request

import pytest

from services.common import testing


@pytest.fixture
def start(tmp_path):
    started = []

    def begin(**env: str) -> testing.Process:
        defaults = {
            "BULKHEAD_ENV": "test",
            "BULKHEAD_METRICS_PORT": "0",
            "BULKHEAD_HTTP_PORT": str(testing.free_port()),
            "BULKHEAD_DRAIN_GRACE_S": "5",
        }
        process = testing.Process(testing.python("-m", "services.simulator"), env={**defaults, **env}, log=tmp_path / f"out-{len(started)}")
        started.append(process)
        return process

    yield begin
    for process in started:
        process.stop()


def get(port: int, path: str) -> dict:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        return json.loads(answer.read())


def post(port: int, path: str, body: dict, timeout_s: float = 10):
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", json.dumps(body).encode(), {"content-type": "application/json"})
    return urllib.request.urlopen(request, timeout=timeout_s)


def test_it_serves_and_ends_at_sigterm_even_with_a_stalled_stream(start, tmp_path):
    port, metrics = testing.free_port(), testing.free_port()
    log = tmp_path / "deep" / "served.jsonl"
    process = start(BULKHEAD_HTTP_PORT=str(port), BULKHEAD_METRICS_PORT=str(metrics), BULKHEAD_SIMULATOR_LOG=str(log))
    testing.wait_for_port(port, process)
    message = {"messages": [{"role": "user", "content": "hello"}]}
    with post(port, "/v1/chat/completions", {"model": "sim-1", **message}) as answer:
        assert json.loads(answer.read())["model"] == "sim-1"
    with urllib.request.urlopen(f"http://127.0.0.1:{metrics}/metrics", timeout=10) as answer:
        assert "bulkhead_simulator_requests_total" in answer.read().decode()
    stalled = post(port, "/v1/chat/completions", {"model": "sim-1+stall", "stream": True, **message})
    assert stalled.readline().startswith(b"data: ")
    process.signal(signal.SIGTERM)
    assert process.wait() == 0
    stalled.close()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["model"] for line in lines] == ["sim-1", "sim-1"], "the stalled request has its line too"
    assert "Traceback" not in process.output()


def test_a_pace_can_be_set_for_all_requests(start):
    port = testing.free_port()
    process = start(BULKHEAD_HTTP_PORT=str(port), BULKHEAD_SIMULATOR_FIRST_TOKEN_DELAY_MS="50", BULKHEAD_SIMULATOR_TOKENS_PER_S="1000")
    testing.wait_for_port(port, process)
    with post(port, "/v1/chat/completions", {"model": "sim-1", "messages": [{"role": "user", "content": "hello"}]}) as answer:
        answer.read()
    (line,) = get(port, "/sim/log")["lines"]
    assert line["faults"] == {"first_token_delay": 50.0, "tokens_per_s": 1000.0}
    assert line["first_byte_monotonic_s"] - line["received_monotonic_s"] >= 0.05


def test_it_refuses_to_start_and_lists_every_problem(start, tmp_path):
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "bad.yaml").write_text("scenarios: {one: {steps: []}, two: {steps: [{fault: nonsense}]}}")
    process = start(BULKHEAD_SIMULATOR_SCENARIOS=str(tmp_path / "scripts"), BULKHEAD_SIMULATOR_LOG="/dev/null/nowhere")
    assert process.wait() != 0
    output = process.output()
    assert "one: 'steps' must be a list" in output
    assert "Unknown fault 'nonsense'" in output
    assert "BULKHEAD_SIMULATOR_LOG" in output
    assert "Traceback" not in output


def test_a_busy_port_is_one_clear_line(start):
    port = testing.free_port()
    testing.wait_for_port(port, start(BULKHEAD_HTTP_PORT=str(port)))
    second = start(BULKHEAD_HTTP_PORT=str(port))
    assert second.wait() != 0
    assert f"port {port} is taken" in second.output()
    assert "Traceback" not in second.output()


def test_settings_out_of_range_are_refused(start):
    process = start(BULKHEAD_SIMULATOR_TOKENS_PER_S="-1", BULKHEAD_SIMULATOR_FIRST_TOKEN_DELAY_MS="fast")
    assert process.wait() != 0
    assert "BULKHEAD_SIMULATOR_TOKENS_PER_S" in process.output()
    assert "BULKHEAD_SIMULATOR_FIRST_TOKEN_DELAY_MS" in process.output()
