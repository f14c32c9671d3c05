"""One attempt: a tool's function in a task of its own, with a time limit that holds even for a tool that ignores it."""

import asyncio
import random
from collections.abc import Mapping
from typing import Any

import structlog
from opentelemetry import trace

from services.tool_executor.failures import ToolFailure
from services.tool_executor.outcomes import Event
from services.tool_executor.tools import Tool, ToolCall

# A cancelled tool has this long to put its things away. A tool that takes longer keeps its slot, but not its caller.
SETTLE_S = 1.0
log = structlog.get_logger("bulkhead.tools")


class Ended:
    """Stands in the queue of events for the end of an attempt."""


class TimedOut:
    """Stands in the queue of events for the end of an attempt's time."""


class Stopped:
    """Stands in the queue of events for somebody's wish that the call ends."""


Queue = asyncio.Queue[Event | Ended | TimedOut | Stopped]


class Slots:
    """How many calls of each tool are at work in this process. A hung tool holds its own slot and no other."""

    def __init__(self) -> None:
        self._used: dict[tuple[str, str], int] = {}

    def take(self, tool: Tool) -> None:
        """Raises ToolFailure when all slots of the tool are taken."""
        key = (tool.name, tool.version)
        used = self._used.get(key, 0)
        if used >= tool.limits.concurrent_calls:
            raise ToolFailure(
                "limit.concurrency",
                f"The tool {tool.name} is busy with as many calls as it takes at once. Try again later.",
                retry_after_s=1.0,
            )
        self._used[key] = used + 1

    def give_back(self, tool: Tool) -> None:
        """The inverse of `take`."""
        self._used[tool.name, tool.version] -= 1


class Attempt:
    """Starts at once; its events, and at last Ended or TimedOut, go to `queue`."""

    def __init__(
        self, tool: Tool, call: ToolCall, arguments: Mapping[str, Any], queue: Queue, timeout_s: float, slots: Slots, span: trace.Span
    ) -> None:
        slots.take(tool)
        self._tool = tool
        self.timeout_s = timeout_s
        self.stopped = False
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(timeout_s, queue.put_nowait, TimedOut())
        self._task = loop.create_task(self._run(call, arguments, span), name=f"tool:{tool.name}")

        def ended(_: asyncio.Task) -> None:
            self._timer.cancel()
            slots.give_back(tool)
            queue.put_nowait(Ended())

        self._task.add_done_callback(ended)

    async def _run(self, call: ToolCall, arguments: Mapping[str, Any], span: trace.Span) -> Any:
        with trace.use_span(span, end_on_exit=False, record_exception=False, set_status_on_exception=False):
            return await self._tool.run(call, arguments)

    def cancel(self) -> None:
        """Tells the tool to stop, without waiting for it."""
        self._timer.cancel()
        self._task.cancel()

    async def settle(self) -> bool:
        """Cancels the tool and waits up to a second for it to end; False when it did not."""
        self.cancel()
        await asyncio.wait({self._task}, timeout=SETTLE_S)
        if not self._task.done():
            log.error("tool_ignores_cancel", tool=self._tool.name, version=self._tool.version)
        return self._task.done()

    def value(self) -> Any:
        """What the tool answered. Raises ToolFailure, also for an attempt that was cancelled or is still at work."""
        if not self._task.done() or self._task.cancelled():
            if self.stopped:
                raise ToolFailure("transport.cancelled", "The call was cancelled.")
            raise ToolFailure("transport.timeout", f"The tool {self._tool.name} did not answer within {self.timeout_s:.3g} s.")
        error = self._task.exception()
        if error is None:
            return self._task.result()
        if isinstance(error, ToolFailure):
            raise error
        log.error("tool_crashed", tool=self._tool.name, version=self._tool.version, exc_info=error)
        raise ToolFailure("internal", f"The tool {self._tool.name} failed.", developer_message=type(error).__name__) from error


def wait_before_retry(tool: Tool, failure: ToolFailure, attempts: int, deadline: float) -> float | None:
    """Seconds to wait before the next attempt, None when there is none."""
    if not failure.retried or not tool.repeatable or attempts > tool.limits.retry.times:
        return None
    wait_s = failure.retry_after_s if failure.retry_after_s is not None else random.uniform(*tool.limits.retry.backoff_s)  # noqa: S311
    return wait_s if asyncio.get_running_loop().time() + wait_s < deadline else None
