"""Python in Monty: an interpreter without files, network and host objects, in worker processes of its own.

A worker that exceeds its time beyond a grace, or whose caller goes away, is killed and replaced by the pool.
"""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Any

from services.tool_executor.failures import ToolFailure

if TYPE_CHECKING:
    from pydantic_monty import AsyncMonty

MAX_PROCESSES = 4
KILL_AFTER_S = 0.5
BEGIN_WITHIN_S = 5.0
MAX_TRACEBACK = 2000
PRINT_EVERY_S = 0.05
_TIME_LIMIT = "feed time limit exceeded"


class MontySandbox:
    """Implements ports.Sandbox. The first run starts the pool: an executor without Python tools has no workers."""

    def __init__(self) -> None:
        self._pool: AsyncMonty | None = None
        self._starting = asyncio.Lock()

    async def run(self, code: str, limits: Mapping[str, Any], printed: Callable[[str], None]) -> Any:
        """As the port says. `limits`: max_seconds, max_memory_bytes, max_recursion_depth."""
        from pydantic_monty import MontyCrashedError, MontyError, MontyRuntimeError

        pool = await self._started()
        loop = asyncio.get_running_loop()

        def heard(_: str, text: str) -> None:
            # Comes in a thread of Monty's.
            loop.call_soon_threadsafe(printed, text)

        session = pool.checkout(
            limits={
                "max_feed_duration_secs": limits["max_seconds"],
                "max_memory": limits["max_memory_bytes"],
                "max_recursion_depth": limits["max_recursion_depth"],
                "max_suspensions": 1000,
            },
            # Code that waits would only hold a worker.
            os_policy={"sleep": "zero"},
            print_flush_interval=PRINT_EVERY_S,
        )
        try:
            async with AsyncExitStack() as stack:
                # The pool itself does not notice a worker that hangs before it has begun; leaving it here kills it.
                async with asyncio.timeout(BEGIN_WITHIN_S):
                    await stack.enter_async_context(session)
                return await session.feed_run(code, print_callback=heard)
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

    async def close(self) -> None:
        """Ends the workers."""
        if self._pool is not None:
            pool, self._pool = self._pool, None
            with suppress(ProcessLookupError):
                await pool.__aexit__(None, None, None)

    async def _started(self) -> "AsyncMonty":
        async with self._starting:
            if self._pool is None:
                from pydantic_monty import AsyncMonty

                pool = AsyncMonty(min_processes=0, max_processes=MAX_PROCESSES, feed_duration_limit_grace=KILL_AFTER_S)
                self._pool = await pool.__aenter__()
            return self._pool


def _out_of_time(limits: Mapping[str, Any]) -> ToolFailure:
    return ToolFailure("sandbox.deadline", f"The code ran longer than {limits['max_seconds']:g} s.")
