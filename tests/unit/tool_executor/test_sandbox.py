"""The tool python, in real Monty workers: what it can do, and all that it cannot."""

import asyncio
import os
import signal
import time

import psutil
import pytest

from services.common import testing
from services.tool_executor.adapters.sandbox import MontySandbox
from services.tool_executor.builtin.python import Python, PythonOptions
from services.tool_executor.failures import ToolFailure
from services.tool_executor.outcomes import PartialOutput
from services.tool_executor.tools import ToolCall


@pytest.fixture
async def sandbox():
    made = MontySandbox()
    yield made
    await made.close()


async def ran(sandbox, code, **options):
    events = []
    call = ToolCall(testing.principal_of(), events.append, options=PythonOptions(**{"max_seconds": 1, **options}))
    return await Python(sandbox).python(call=call, code=code), events


async def failed(sandbox, code, **options):
    with pytest.raises(ToolFailure) as caught:
        await ran(sandbox, code, **options)
    return caught.value


@pytest.mark.parametrize(
    ("code", "result"),
    [
        ("1 + 1", 2),
        ("x = [n * n for n in range(5)]\nsum(x)", 30),
        ("{'a': (1, 2), 'b': {3}, 4: None}", {"a": [1, 2], "b": [3], "4": None}),
        ("import math\nmath.sqrt(2)", 2**0.5),
        ("2 ** 200", str(2**200)),
        ("float('inf')", "inf"),
        ("b'abc'", "abc"),
        ("import datetime\ndatetime.date(2026, 3, 1)", "2026-03-01"),
        ("x = 5", None),
    ],
)
async def test_the_last_expression_is_the_result(sandbox, code, result):
    assert (await ran(sandbox, code))[0]["result"] == result


async def test_what_is_printed_is_told_and_kept(sandbox):
    found, events = await ran(sandbox, "print('one')\nprint('two')\n3")
    assert found == {"result": 3, "stdout": "one\ntwo\n", "stdout_truncated": False}
    assert "".join(e.text for e in events if isinstance(e, PartialOutput)) == "one\ntwo\n"


async def test_calls_share_nothing(sandbox):
    await ran(sandbox, "secret = 42")
    assert "NameError" in (await failed(sandbox, "secret")).agent_message


@pytest.mark.parametrize(
    ("code", "code_of_failure"),
    [
        ("while True: pass", "sandbox.deadline"),
        ("sum(range(10**10))", "sandbox.deadline"),
        ("x = []\nwhile True: x.append('a' * 10**6)", "sandbox.oom"),
        ("'a' * 10**9", "sandbox.oom"),
        ("10 ** 10 ** 10", "sandbox.oom"),
        ("def f(n): return f(n + 1)\nf(0)", "input.invalid"),
        ("1 / 0", "input.invalid"),
        ("x = (", "input.invalid"),
        ("list(range(200000))", "output.too_large"),
        ("x = []\nfor _ in range(500): x = [x]\nx", "output.too_large"),
        ("10 ** 5000", "output.too_large"),
    ],
)
async def test_limits(sandbox, code, code_of_failure):
    started = time.monotonic()
    assert (await failed(sandbox, code)).code == code_of_failure
    # The limit is a second; without it the code would run for ever.
    assert time.monotonic() - started < 20
    assert (await ran(sandbox, "1 + 1"))[0]["result"] == 2


@pytest.mark.parametrize(
    "code",
    [
        "open('/etc/passwd').read()",
        "import os\nos.listdir('/')",
        "import os\nos.environ['PATH']",
        "import os\nos.system('ls')",
        "from pathlib import Path\nPath('/tmp/x').write_text('x')",
        "import socket",
        "import subprocess",
        "import urllib.request",
        "import ctypes",
        "import sys\nsys.exit(1)",
        "__import__('os')",
        "().__class__.__base__.__subclasses__()",
        "eval.__globals__",
        "input()",
    ],
)
async def test_there_is_no_way_out(sandbox, code):
    assert (await failed(sandbox, code)).code == "input.invalid"


async def test_an_error_tells_its_traceback_but_not_without_end(sandbox):
    failure = await failed(sandbox, "def f():\n    raise ValueError('x' * 100000)\nf()")
    assert "ValueError" in (await failed(sandbox, "raise ValueError('no such thing')")).agent_message
    assert len(failure.agent_message) < 3000


async def test_a_flood_of_output_is_cut(sandbox):
    found, events = await ran(sandbox, "for _ in range(5000): print('x' * 100)\n1", max_printed_chars=1000)
    assert found["result"] == 1
    assert found["stdout_truncated"]
    assert len(found["stdout"]) == sum(len(e.text) for e in events) == 1000


async def test_sleeping_holds_no_worker(sandbox):
    started = time.monotonic()
    await ran(sandbox, "import time\ntime.sleep(1000)")
    assert time.monotonic() - started < 20


def workers():
    found = set()
    for child in psutil.Process().children():
        try:
            if child.name() == "monty":
                found.add(child.pid)
        except psutil.NoSuchProcess:
            continue  # it ended while it was looked at
    return found


async def test_a_worker_that_hangs_before_it_begins_is_killed_and_replaced(sandbox, monkeypatch):
    monkeypatch.setattr("services.tool_executor.adapters.sandbox.ANSWER_WITHIN_S", 2.0)
    await ran(sandbox, "1")
    (worker,) = workers()
    os.kill(worker, signal.SIGSTOP)
    assert (await failed(sandbox, "1", max_seconds=0.5)).code == "sandbox.deadline"
    assert (await ran(sandbox, "2"))[0]["result"] == 2
    assert worker not in workers()


async def test_a_worker_that_hangs_at_work_is_killed_and_replaced(sandbox):
    # Long enough for a busy machine to see the code run before its own time limit ends it.
    task = asyncio.create_task(failed(sandbox, "while True: pass", max_seconds=5))
    (worker,) = await testing.eventually_async(workers, "a worker")
    await testing.eventually_async(lambda: psutil.Process(worker).cpu_percent(0.05) > 20, "the code runs")
    os.kill(worker, signal.SIGSTOP)
    assert (await task).code == "sandbox.deadline"
    assert (await ran(sandbox, "2"))[0]["result"] == 2
    assert worker not in workers()


async def test_a_worker_that_dies_is_told_and_replaced(sandbox):
    await ran(sandbox, "1")
    (worker,) = workers()
    task = asyncio.create_task(failed(sandbox, "while True: pass", max_seconds=30))
    await testing.eventually_async(lambda: psutil.Process(worker).cpu_percent(0.05) > 20, "the code runs")
    os.kill(worker, signal.SIGKILL)
    assert (await task).code == "sandbox.killed"
    assert (await ran(sandbox, "2"))[0]["result"] == 2


async def test_a_cancelled_call_leaves_no_code_running(sandbox):
    await ran(sandbox, "1")
    (worker,) = workers()
    task = asyncio.create_task(ran(sandbox, "while True: pass", max_seconds=60))
    await testing.eventually_async(lambda: psutil.Process(worker).cpu_percent(0.05) > 20, "the code runs")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await testing.eventually_async(lambda: worker not in workers(), "the worker is gone")


async def test_more_runs_than_workers_wait_for_their_turn(sandbox):
    found = await asyncio.gather(*(ran(sandbox, f"{n} * 2") for n in range(12)))
    assert [f["result"] for f, _ in found] == [n * 2 for n in range(12)]


def test_a_process_that_used_it_ends_well(tmp_path):
    program = """
import asyncio
from services.tool_executor.adapters.sandbox import MontySandbox

async def main():
    sandbox = MontySandbox()
    limits = {"max_seconds": 60, "max_memory_bytes": 1 << 25, "max_recursion_depth": 100}
    await sandbox.run("print(1)", limits, print)
    hung = asyncio.create_task(sandbox.run("while True: pass", limits, print))
    await asyncio.sleep(0.1)
    await sandbox.close()
    await asyncio.gather(hung, return_exceptions=True)

asyncio.run(main())
"""
    for number in range(5):
        process = testing.Process(testing.python("-c", program), log=tmp_path / f"{number}.log")
        try:
            assert process.wait(30) == 0, process.output()
        finally:
            process.stop()


async def test_the_loop_goes_on_while_code_runs(sandbox):
    running = asyncio.create_task(failed(sandbox, "while True: pass", max_seconds=1))
    turns = 0
    while not running.done():
        await asyncio.sleep(0.01)
        turns += 1
    assert turns > 20
