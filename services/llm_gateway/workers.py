"""Further processes of the same program that share a port with this one.

    listeners = [UvicornListener(app, host, port, reuse_port=True), Workers(command, environments)]

Each worker is a whole process with a loop of its own; what they share lies in Valkey. The kernel spreads new connections over all
that listen (SO_REUSEPORT). A worker that ends is started again after a pause; one whose parent has gone drains and ends.
"""

import asyncio
import os
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

import structlog

from services.common.tasks import end

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
# Who has served for so long did not fail at its start: the next pause is the first one again.
STEADY_S = 60.0
log = structlog.get_logger("bulkhead.workers")


class Workers:
    """Starts the workers after this process has its port, and ends them with it: a listener like any other."""

    def __init__(self, command: Sequence[str], environments: Sequence[Mapping[str, str]]) -> None:
        """One worker for each of `environments`, which are whole."""
        self._command = list(command)
        self._environments = list(environments)
        self._running: dict[int, asyncio.subprocess.Process] = {}
        self._keepers: list[asyncio.Task[None]] = []
        self._ending = False

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers that run now."""
        return [process.pid for process in self._running.values()]

    async def start(self) -> None:
        """Starts them; does not wait until they serve."""
        for number, environment in enumerate(self._environments, start=1):
            self._keepers.append(asyncio.create_task(self._keep(number, environment), name=f"worker-{number}"))

    async def stop_accepting(self) -> None:
        """Tells all of them to drain."""
        self._ending = True
        self._signal(signal.SIGTERM)

    async def finish(self) -> None:
        """Waits until the last has ended."""
        await asyncio.gather(*(process.wait() for process in list(self._running.values())))

    async def close(self) -> None:
        """Ends what is left."""
        self._ending = True
        await end(self._keepers)
        self._signal(signal.SIGKILL)
        await asyncio.gather(*(process.wait() for process in self._running.values()))

    async def _keep(self, number: int, environment: Mapping[str, str]) -> None:
        pause_s = FIRST_PAUSE_S
        while not self._ending:
            began = time.monotonic()
            # Its standard input is the one thing that ends when this process does, however it ends.
            process = await asyncio.create_subprocess_exec(*self._command, env=environment, stdin=asyncio.subprocess.PIPE)
            self._running[number] = process
            if self._ending:
                process.terminate()  # it was told before it was there to hear
            status = await process.wait()
            if self._ending:
                return
            del self._running[number]
            pause_s = FIRST_PAUSE_S if time.monotonic() - began > STEADY_S else pause_s
            log.error("worker_ended", worker=number, pid=process.pid, status=status, restart_in_s=pause_s)
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)

    def _signal(self, number: int) -> None:
        for process in self._running.values():
            with suppress(ProcessLookupError):
                process.send_signal(number)


class Parent:
    """What a worker knows of the process that started it: that its standard input stays open."""

    async def start(self) -> None:
        """From now on the end of the parent is a SIGTERM to this process."""
        os.set_blocking(0, False)
        asyncio.get_running_loop().add_reader(0, self._readable)

    async def stop(self) -> None:
        """The parent is nobody's business any more."""
        asyncio.get_running_loop().remove_reader(0)

    def _readable(self) -> None:
        with suppress(BlockingIOError):
            if os.read(0, 1024) == b"":
                asyncio.get_running_loop().remove_reader(0)
                os.kill(os.getpid(), signal.SIGTERM)
