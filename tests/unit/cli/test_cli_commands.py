"""The command line itself: help, quickness, where it finds Bulkhead."""

import json
import subprocess
import sys

import pytest

from services.cli.connection import find_connection
from services.cli.failure import Denied, Unreachable
from services.common import testing


def test_help_names_every_command_and_loads_nothing_heavy():
    code = """
import sys
from services.cli.__main__ import main
sys.argv = ["bulkhead", "--help"]
try:
    main()
finally:
    print(sorted(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for command in (
        "up",
        "ingest",
        "chat",
        "runs",
        "threads",
        "approvals",
        "schedules",
        "memories",
        "webhooks",
        "hooks",
        "feedback",
        "blobs",
        "erasures",
        "quota",
        "replay",
        "keys",
        "doctor",
    ):
        assert f" {command} " in done.stdout
    for heavy in ("'grpc'", "'aiohttp'", "'redis'", "'pydantic'", "'opentelemetry'"):
        assert heavy not in done.stdout


def test_the_environment_wins_over_dev_env(tmp_path):
    (tmp_path / "dev.env").write_text("# made by up\nBULKHEAD_URL=http://127.0.0.1:1/\nBULKHEAD_API_KEY=bh_one\n")
    found = find_connection(tmp_path, {})
    assert (found.url, found.api_key) == ("http://127.0.0.1:1", "bh_one")
    found = find_connection(tmp_path, {"BULKHEAD_URL": "http://other:2", "BULKHEAD_API_KEY": ""})
    assert (found.url, found.api_key) == ("http://other:2", "bh_one")
    assert "bh_one" not in repr(found)


def test_what_is_missing_is_told_with_the_way_out(tmp_path):
    with pytest.raises(Unreachable, match="make run"):
        find_connection(tmp_path, {})
    with pytest.raises(Denied, match="BULKHEAD_API_KEY"):
        find_connection(tmp_path, {"BULKHEAD_URL": "http://x"})


def test_a_gateway_that_does_not_answer_is_one_line_and_status_3(tmp_path):
    url = f"http://127.0.0.1:{testing.free_port()}"
    (tmp_path / "dev.env").write_text(f"BULKHEAD_URL={url}\nBULKHEAD_API_KEY=bh_secret\n")
    done = subprocess.run(testing.python("-m", "services.cli", "runs", "--data-dir", str(tmp_path)), capture_output=True, text=True)
    assert done.returncode == 3
    assert done.stderr.startswith(f"bulkhead: Bulkhead does not answer at {url}")
    assert done.stderr.count("\n") == 1
    assert "bh_secret" not in done.stderr


def test_a_reader_that_has_enough_is_no_failure(tmp_path):
    command = testing.python("-m", "services.cli", "doctor", "--json", "--data-dir", str(tmp_path))
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={"PATH": ""})
    process.stdout.close()
    told = process.stderr.read()
    assert (process.wait(), told) == (0, b"")


def test_doctor_tells_each_finding_as_json(tmp_path):
    command = testing.python("-m", "services.cli", "doctor", "--json", "--data-dir", str(tmp_path))
    done = subprocess.run(command, capture_output=True, text=True, env={"PATH": ""})
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 1
    assert rows[0]["what"] == "gateway"
    assert (rows[0]["good"], "make run" in rows[0]["way_out"]) == (False, True)
