"""Python in Monty: an interpreter without files, network and host objects, in worker processes of its own.

A worker that exceeds its time beyond a grace, or whose caller goes away, is killed, and the pool starts another. Each
run waits in a thread of ours: the threads of Monty's own asyncio client are still at work when an interpreter ends, and
then abort the whole process now and then.
"""

import asyncio
import os
import signal
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from services.tool_executor.failures import ToolFailure

if TYPE_CHECKING:
    from pydantic_monty import Monty, ResourceLimits

MAX_PROCESSES = 4
KILL_AFTER_S = 0.5
BEGIN_WITHIN_S = 5.0
# Bounds what the limit of the code does not: a worker that hangs before it has begun. Above every limit of code.
ANSWER_WITHIN_S = 65.0
CLOSE_WITHIN_S = 2.0
MAX_TRACEBACK = 2000
PRINT_EVERY_S = 0.05
_TIME_LIMIT = "feed time limit exceeded"


class _Run:
    """One run, in a thread. `kill` ends it from another."""

    def __init__(self, code: str, limits: Mapping[str, Any], heard: Callable[[str, str], None]) -> None:
        self._code = code
        self._limits: ResourceLimits = {
            "max_feed_duration_secs": limits["max_seconds"],
            "max_memory": limits["max_memory_bytes"],
            "max_recursion_depth": limits["max_recursion_depth"],
        }
        self._heard = heard
        self._worker: int | None = None
        self._killed = False

    def value(self, pool: "Monty") -> Any:
        """Runs the code. Raises MontyError, or TimeoutError when no worker was free."""
        # Code that sleeps would only hold a worker.
        with pool.checkout(limits=self._limits, os_policy={"sleep": "zero"}, print_flush_interval=PRINT_EVERY_S) as session:
            self._worker = session.worker_pid
            try:
                return None if self._killed else session.feed_run(self._code, print_callback=self._heard)
            finally:
                # From here on the process may serve somebody else.
                self._worker = None

    def kill(self) -> None:
        """Ends the run at once, also one that has not begun."""
        self._killed = True
        if self._worker is not None:
            with suppress(ProcessLookupError):
                os.kill(self._worker, signal.SIGKILL)


class MontySandbox:
    """Implements ports.Sandbox. The first run starts the pool: an executor whose Python tool is not used has no workers."""

    def __init__(self) -> None:
        self._pool: Monty | None = None
        self._starting = asyncio.Lock()
        self._threads = ThreadPoolExecutor(MAX_PROCESSES, thread_name_prefix="monty")
        self._runs: set[_Run] = set()

    async def run(self, code: str, limits: Mapping[str, Any], printed: Callable[[str], None]) -> Any:
        """As the port says. `limits`: max_seconds, max_memory_bytes, max_recursion_depth."""
        from pydantic_monty import MontyCrashedError, MontyError, MontyRuntimeError

        pool = await self._started()
        loop = asyncio.get_running_loop()
        run = _Run(code, limits, lambda _, text: loop.call_soon_threadsafe(printed, text) and None)
        self._runs.add(run)
        try:
            return await loop.run_in_executor(self._threads, run.value, pool)
        except asyncio.CancelledError:
            run.kill()
            raise
        except TimeoutError as error:
            raise ToolFailure("sandbox.killed", "No sandbox was ready in time.", developer_message="no worker in time") from error
        except MontyCrashedError as error:
            if error.timed_out:
                raise _out_of_time(limits) from error
            raise ToolFailure("sandbox.killed", "The sandbox that ran the code died.", developer_message="worker crashed") from error
        except MontyRuntimeError as error:
            inner = error.exception()
            if isinstance(inner, TimeoutError) and str(inner).startswith(_TIME_LIMIT):
                raise _out_of_time(limits) from error
            if isinstance(inner, MemoryError):
                raise ToolFailure("sandbox.oom", f"The code needs more than {limits['max_memory_bytes'] >> 20} MiB of memory.") from error
            raise ToolFailure("input.invalid", f"The code raised an error:\n{error.display()[-MAX_TRACEBACK:]}") from error
        except MontyError as error:
            raise ToolFailure("input.invalid", f"The code cannot be run: {str(error)[:MAX_TRACEBACK]}") from error
        finally:
            self._runs.discard(run)

    async def close(self) -> None:
        """Ends the workers and what they still run."""
        for run in list(self._runs):
            run.kill()
        if self._pool is not None:
            pool, self._pool = self._pool, None
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_WITHIN_S):
                    await asyncio.to_thread(pool.__exit__, None, None, None)
        self._threads.shutdown(wait=False)

    async def _started(self) -> "Monty":
        async with self._starting:
            if self._pool is None:
                from pydantic_monty import Monty

                pool = Monty(
                    min_processes=0,
                    max_processes=MAX_PROCESSES,
                    checkout_timeout=BEGIN_WITHIN_S,
                    request_timeout=ANSWER_WITHIN_S,
                    feed_duration_limit_grace=KILL_AFTER_S,
                )
                self._pool = await asyncio.to_thread(pool.__enter__)
            return self._pool


def _out_of_time(limits: Mapping[str, Any]) -> ToolFailure:
    return ToolFailure("sandbox.deadline", f"The code ran longer than {limits['max_seconds']:g} s.")
