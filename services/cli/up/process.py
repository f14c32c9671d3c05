"""One child process: started in a group of its own, its output in its log, its pid in its pid file."""

import asyncio
import datetime
import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

KEEPER = Path(__file__).with_name("keeper.py")
KEPT_LINES = 60
TAIL_BYTES = 64 * 1024


class Keeper:
    """The process that ends the others when this one is killed."""

    def __init__(self, lock_descriptor: int) -> None:
        self._lock_descriptor = lock_descriptor
        self._groups: dict[int, tuple[int, int]] = {}
        self._popen = self._start()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._popen.pid

    def _start(self) -> subprocess.Popen:
        command = [sys.executable, "-I", "-S", str(KEEPER)]
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, text=True, bufsize=1, start_new_session=True, pass_fds=[self._lock_descriptor]
        )

    def add(self, group: int, stage: int, number: int) -> None:
        """From now on `group` must not outlive this process; it is asked to end with signal `number`."""
        self._groups[group] = (stage, number)
        self._tell(f"+ {group} {stage} {number}\n")

    def remove(self, group: int) -> None:
        """`group` has ended; its number may go to somebody else."""
        self._groups.pop(group, None)
        self._tell(f"- {group}\n")

    def _tell(self, line: str) -> None:
        pipe = self._popen.stdin
        assert pipe is not None
        try:
            pipe.write(line)
            pipe.flush()
        except OSError:
            # Somebody ended the keeper: a new one is told all.
            self._popen.wait()
            self._popen = self._start()
            assert self._popen.stdin is not None
            self._popen.stdin.writelines(f"+ {group} {stage} {number}\n" for group, (stage, number) in self._groups.items())
            self._popen.stdin.flush()

    def close(self) -> None:
        """Ends the keeper, and with it whatever is still there."""
        if self._popen.stdin is not None:
            with suppress(OSError):
                self._popen.stdin.close()
        self._popen.wait()


@dataclass(frozen=True, slots=True)
class Ended:
    """How a process ended. `problems` is what a service printed when it refused to start; `last_error` is one line."""

    status: int
    uptime_s: float
    problems: tuple[str, ...]
    last_error: str

    @property
    def refused(self) -> bool:
        """Whether it refused to start, which a restart will not change."""
        return bool(self.problems) and self.status in (1, 2)

    def how(self) -> str:
        """As `exit status 1` or `signal SIGKILL`."""
        if self.status >= 0:
            return f"exit status {self.status}"
        try:
            return f"signal {signal.Signals(-self.status).name}"
        except ValueError:
            return f"signal {-self.status}"


class Child:
    """A running child. `plain_output`: it speaks no JSON, so what it prints is wrapped line by line."""

    def __init__(self, label: str, popen: asyncio.subprocess.Process, log: Path, log_start: int, plain_output: bool) -> None:
        self.label = label
        self.pid = popen.pid
        self._popen = popen
        self._log = log
        self._log_start = log_start
        self._started = time.monotonic()
        self._printed: deque[str] = deque(maxlen=KEPT_LINES)
        stream = popen.stdout if plain_output else popen.stderr
        assert stream is not None
        self._reader = asyncio.create_task(self._read(stream, "info" if plain_output else "error"), name=f"output-{label}")

    @classmethod
    async def start(cls, label: str, command: Sequence[str], env: Mapping[str, str], log: Path, *, plain_output: bool = False) -> "Child":
        """Starts `command` in a new session, so that Ctrl-C at the terminal reaches `up` alone. Raises OSError."""
        with log.open("ab") as out:
            start = out.tell()
            popen = await asyncio.create_subprocess_exec(
                *command,
                env=dict(env),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE if plain_output else out,
                stderr=asyncio.subprocess.STDOUT if plain_output else asyncio.subprocess.PIPE,
                start_new_session=True,
            )
        return cls(label, popen, log, start, plain_output)

    async def _read(self, stream: asyncio.StreamReader, level: str) -> None:
        with self._log.open("ab") as out:
            while True:
                try:
                    raw = await stream.readline()
                except ValueError:
                    continue  # a line beyond the reader's limit: what comes next may be of use
                if not raw:
                    return
                self._keep(raw, level, out)

    def _keep(self, raw: bytes, level: str, out: BinaryIO) -> None:
        line = raw.decode(errors="replace").rstrip()
        if not line:
            return
        self._printed.append(line)
        now = datetime.datetime.now(datetime.UTC).isoformat()
        entry = {"ts": now, "level": level, "event": "printed", "instance": self.label, "line": line}
        # One write a line: the process appends to the same file.
        out.write(json.dumps(entry).encode() + b"\n")
        out.flush()

    async def wait(self) -> Ended:
        """Returns when the process has ended and what it printed was read."""
        status = await self._popen.wait()
        uptime_s = time.monotonic() - self._started
        # A grandchild may hold the pipe open; it is killed with the group and nobody waits for it here.
        await asyncio.wait([self._reader], timeout=0.5)
        self._reader.cancel()
        return Ended(status, uptime_s, self._problems(), self._last_error())

    def signal(self, number: int) -> None:
        """Sends a signal to the process."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill_group(self) -> None:
        """SIGKILL for the process and all that it started."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def _problems(self) -> tuple[str, ...]:
        lines = list(self._printed)
        for number in range(len(lines) - 1, -1, -1):
            if lines[number].endswith("cannot start"):
                return tuple(line.strip().removeprefix("- ") for line in lines[number + 1 :] if line.startswith("  - "))
        return ()

    def _last_error(self) -> str:
        # Valkey warns about its machine at each start; that is not why it ended.
        printed = next((line for line in reversed(self._printed) if "# WARNING " not in line), "")
        if printed:
            return printed.strip()[:300]
        return last_error(self._log, self._log_start)


def last_error(log: Path, start: int = 0) -> str:
    """The last line of level error or critical in a JSON log, in short; empty when there is none."""
    for entry in reversed(entries(log, start)):
        if entry.get("level") in ("error", "critical"):
            told = {k: v for k, v in entry.items() if k in ("problem", "problems", "error", "exception", "line")}
            detail = str(next(iter(told.values()), "")).strip().splitlines()
            return f"{entry.get('event', '')} {detail[-1] if detail else ''}".strip()[:300]
    return ""


def entries(log: Path, start: int = 0) -> list[dict]:
    """The JSON lines at the end of a log (at most 64 KiB), oldest first; other lines are left out."""
    try:
        with log.open("rb") as lines:
            size = lines.seek(0, os.SEEK_END)
            lines.seek(max(start, size - TAIL_BYTES))
            raw = lines.read()
    except OSError:
        return []
    found = []
    for line in raw.splitlines():
        with suppress(ValueError):
            entry = json.loads(line)
            if isinstance(entry, dict):
                found.append(entry)
    return found
