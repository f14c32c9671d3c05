"""The command line as its tests use it. A process that has imported it all is forked for each command, which costs a hundredth of a
second instead of a whole one, and leaves the process of the test, with its servers, alone."""

import asyncio
import functools
import importlib
import io
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.common import testing

MODULES = ("client", "commands", "following", "replay", "regression.running", "regression.recording", "watching", "quota", "webhooks")


@dataclass(frozen=True, slots=True)
class Done:
    """What a command ended with."""

    status: int
    out: str
    err: str

    def json(self) -> list[Any]:
        """The values that were printed, one a line."""
        return [json.loads(line) for line in self.out.splitlines()]


async def command(*arguments: str, status: int | None = 0, constants: Mapping[str, Any] | None = None) -> Done:
    """Runs a command to its end; its standard streams are no terminals. A `status` of None is any. `constants` are other values of those
    of the command line, by names as `client.RETRIES`."""
    reader, writer = await asyncio.open_unix_connection((await asyncio.to_thread(_forking))[0])
    try:
        asked = {"arguments": arguments, "env": dict(os.environ), "constants": dict(constants or {}), "cwd": str(Path.cwd())}
        writer.write(json.dumps(asked).encode() + b"\n")
        done = Done(**json.loads(await reader.read()))
    finally:
        writer.close()
    assert status is None or done.status == status, f"{arguments}: {done}"
    assert "Traceback" not in done.err, done.err
    return done


@functools.cache
def _forking() -> tuple[str, subprocess.Popen[bytes]]:
    """The socket of the process that is forked, and that process, kept here because it ends with what it reads from: this process."""
    path = str(Path(tempfile.mkdtemp(prefix="bh-cli-")) / "socket")
    process = subprocess.Popen(testing.python("-m", __name__, path), cwd=testing.ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return path, process


def fork_on_demand(path: str) -> None:
    """Forks itself for each connection, until its standard input ends."""
    import select

    for name in MODULES:
        importlib.import_module(f"services.cli.{name}")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    print("ready", flush=True)
    while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
        connection, _ = listener.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listener.close()
            _serve(connection)
            os._exit(0)
        connection.close()
    os.unlink(path)
    os.rmdir(os.path.dirname(path))


def _serve(connection: socket.socket) -> None:
    from services.cli.__main__ import main

    asked = json.loads(connection.makefile().readline())
    os.environ.clear()
    os.environ.update(asked["env"])
    os.chdir(asked["cwd"])
    for name, value in asked["constants"].items():
        module, _, constant = name.rpartition(".")
        setattr(importlib.import_module(f"services.cli.{module}"), constant, value)
    out, err, ended = io.StringIO(), io.StringIO(), 0
    sys.stdin = io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main(asked["arguments"])
        except SystemExit as end:
            ended = int(end.code or 0)
        except BaseException as error:  # noqa: BLE001 - the process must answer whatever a command raised
            err.write(f"Traceback of {error!r}")
    connection.sendall(json.dumps({"status": ended, "out": out.getvalue(), "err": err.getvalue()}).encode())
    connection.close()


@asynccontextmanager
async def on_a_terminal(*arguments: str) -> AsyncIterator[tuple[bytearray, asyncio.subprocess.Process, Callable[[str], None]]]:
    """The command as a process of its own at a terminal of 100 columns: what it wrote there, its process, and what types."""
    leader, follower = pty.openpty()
    os.set_blocking(leader, False)
    written = bytearray()
    loop = asyncio.get_running_loop()

    def take() -> None:
        with suppress(OSError):
            written.extend(os.read(leader, 65536))

    loop.add_reader(leader, take)
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "30"}
    process = await asyncio.create_subprocess_exec(
        *testing.python("-m", "services.cli", *arguments), stdin=follower, stdout=follower, stderr=follower, env=env
    )
    os.close(follower)
    try:
        yield written, process, lambda text: _all_of(leader, text)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        loop.remove_reader(leader)
        os.close(leader)


def _all_of(terminal: int, text: str) -> None:
    os.write(terminal, text.encode())


if __name__ == "__main__":
    fork_on_demand(sys.argv[1])
