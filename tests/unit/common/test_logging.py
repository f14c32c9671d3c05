"""Redaction: what must never stand in a log line, and what must stay readable."""

import asyncio
import datetime
import json
import logging
import sys
import threading

import pytest
import structlog
from grpc._cython import cygrpc
from hypothesis import given
from hypothesis import strategies as st

from services.common import logging as bulkhead_logging
from services.common.logging import REDACTED, redact, redacted
from services.common.settings import ServiceSettings

SECRETS = [
    "bh_" + "a1B2" * 8,
    "sk-" + "proj" * 6,
    "Bearer abcdefghijklmnop",
    "eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJhbmEifQ.c2lnbmF0dXJl",
    "ana.lee+work@example.org",
    "+49 170 1234567",
    "4111 1111 1111 1111",
]


@pytest.mark.parametrize("secret", SECRETS)
@given(before=st.text("abc xyz.", max_size=12), after=st.text(" xyz,", max_size=12))
def test_secrets_and_personal_data_leave_no_trace(secret, before, after):
    text = f"{before} {secret} {after}"
    assert secret not in redact(text)
    assert secret not in json.dumps(redacted({"event": text, "deep": {"list": [text]}}))


def test_passwords_in_urls_and_values_under_secret_names_are_hidden():
    assert redact("redis://user:hunter2@host:1/0") == f"redis://{REDACTED}@host:1/0"
    assert redact("redis://:hunter2@host:1/0") == f"redis://{REDACTED}@host:1/0"
    event = redacted({"api_key": "x", "Authorization": "y", "access_token": "t", "max_tokens": 5, "input_tokens": 7})
    assert event == {"api_key": REDACTED, "Authorization": REDACTED, "access_token": REDACTED, "max_tokens": 5, "input_tokens": 7}


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-21T13:48:13.123456Z",
        "trace 4bf92f3577b34da6a3ce929d0e0e4736",
        "run_0193f1c2a7b84d5e9f00112233445566",
        "took 1234567890123 ns",
        "127.0.0.1:50051",
        "1.85.1+local",
    ],
)
def test_ordinary_values_stay_readable(text):
    assert redact(text) == text


def test_daily_files_hold_one_json_object_a_line(tmp_path):
    settings = ServiceSettings(log_sink="jsonl_daily", log_dir=tmp_path, log_format="json", instance="one", log_level="INFO")
    before = structlog.get_config()
    try:
        bulkhead_logging.configure(settings)
        structlog.get_logger("test").info("hello", user="ana@example.org", n=1)
    finally:
        structlog.configure(**before)
    day = datetime.datetime.now(datetime.UTC).date().isoformat()
    path = tmp_path / f"one-{day}.jsonl"
    structlog.reset_defaults()
    import gc

    gc.collect()
    line = json.loads(path.read_text().splitlines()[0])
    assert (line["event"], line["user"], line["n"], line["level"]) == ("hello", REDACTED, 1, "info")


@pytest.fixture
def as_before():
    """Logging is after the test as it was before."""
    before, root = structlog.get_config(), logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.configure(**before)
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.usefixtures("as_before")
@pytest.mark.parametrize("shape", ["json", "console"])
def test_lines_of_libraries_go_the_same_way_without_secrets(capsys, shape):
    bulkhead_logging.configure(ServiceSettings(log_format=shape, log_level="INFO"))
    try:
        raise ValueError("redis://:hunter2@store:6379 is away")
    except ValueError:
        logging.getLogger("some.library").warning("key %s", SECRETS[1], exc_info=True)
    out, err = capsys.readouterr()
    assert err == ""
    assert "is away" in out
    assert f"key {REDACTED}" in out
    assert "hunter2" not in out


@pytest.mark.usefixtures("as_before")
def test_a_caller_that_is_gone_is_no_error_of_grpc_and_all_else_is(capsys):
    bulkhead_logging.configure(ServiceSettings(log_format="json"))
    of_grpc = logging.getLogger(cygrpc.__name__)
    of_grpc.error("ExecuteBatchError raised in core by servicer method [%s]", "/a.B/C")
    of_grpc.error("Unexpected [%s] raised by servicer method [%s]", "KeyError", "/a.B/C")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["event"] for line in lines] == ["Unexpected [KeyError] raised by servicer method [/a.B/C]"]


def test_a_line_of_every_call_is_the_line_that_structlog_writes(tmp_path):
    settings = ServiceSettings(log_sink="jsonl_daily", log_dir=tmp_path, log_format="json", instance="one", log_level="INFO")
    before = structlog.get_config()
    try:
        bulkhead_logging.configure(settings)
        logger = structlog.get_logger("any")
        names = {"model": "main", "who": "ana.lee@example.org", "key": "bh_" + "a1B2" * 8}
        values = {"tokens": 5, "none": None, "share": 0.5}
        logger.info("llm_call", **names, **values)
        bulkhead_logging.EveryCall(logger).info("llm_call", names, values)
        bulkhead_logging.configure(settings.model_copy(update={"log_level": "WARNING"}))
        bulkhead_logging.EveryCall(logger).info("llm_call", names, values)
        (file,) = tmp_path.iterdir()
        first, second = (json.loads(line) for line in file.read_text().splitlines())
    finally:
        structlog.configure(**before)
        logging.getLogger().handlers[:] = []
    assert first.pop("ts")[:16] == second.pop("ts")[:16]
    assert first == second
    assert (first["who"], first["key"]) == (REDACTED, REDACTED)


class _Stream:
    """Keeps what each write brought."""

    def __init__(self) -> None:
        self.written: list[str] = []

    def write(self, text: str) -> None:
        self.written.append(text)

    def flush(self) -> None:
        self.written.append("")


async def test_lines_of_every_call_go_out_together_and_no_later_line_overtakes_them(monkeypatch):
    stream, before, handlers = _Stream(), structlog.get_config(), logging.getLogger().handlers[:]
    monkeypatch.setattr(sys, "stdout", stream)
    try:
        bulkhead_logging.configure(ServiceSettings(log_format="json", log_level="INFO"))
        logger = structlog.get_logger("any")
        lines = bulkhead_logging.EveryCall(logger)
        for number in range(3):
            lines.info("llm_call", {"model": "main"}, {"tokens": number})
        assert stream.written == []
        await asyncio.sleep(0)
        (together, flushed) = stream.written
        assert [json.loads(line)["tokens"] for line in together.splitlines()] == [0, 1, 2]
        assert flushed == ""
        lines.info("llm_call", {"model": "main"}, {"tokens": 3})
        logger.warning("stopping")
        assert [json.loads(line)["event"] for text in stream.written[2:] for line in text.splitlines()] == ["llm_call", "stopping"]
        await asyncio.sleep(0)
        assert sum(text.count("\n") for text in stream.written) == 5
    finally:
        structlog.configure(**before)
        logging.getLogger().handlers[:] = handlers


def test_a_line_of_another_thread_neither_loses_nor_repeats_those_that_wait(monkeypatch):
    """The watchdog logs while the loop is at work."""
    stream, before, handlers = _Stream(), structlog.get_config(), logging.getLogger().handlers[:]
    monkeypatch.setattr(sys, "stdout", stream)
    often = sys.getswitchinterval()
    done = threading.Event()
    try:
        bulkhead_logging.configure(ServiceSettings(log_format="json", log_level="INFO"))
        logger = structlog.get_logger("any")
        lines = bulkhead_logging.EveryCall(logger)

        def watch():
            while not done.is_set():
                logger.warning("late")

        async def work():
            for number in range(20_000):
                lines.info("llm_call", {"model": "main"}, {"number": number})
                if number % 5 == 0:
                    await asyncio.sleep(0)

        threads = [threading.Thread(target=watch) for _ in range(3)]
        sys.setswitchinterval(1e-6)
        for thread in threads:
            thread.start()
        asyncio.run(work())
        done.set()
        for thread in threads:
            thread.join()
        logger.warning("stopping")
    finally:
        done.set()
        sys.setswitchinterval(often)
        structlog.configure(**before)
        logging.getLogger().handlers[:] = handlers
    written = [json.loads(line) for line in "".join(stream.written).splitlines()]
    assert sorted(line["number"] for line in written if line["event"] == "llm_call") == list(range(20_000))
