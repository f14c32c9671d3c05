"""Health: what is alive, what is ready, and why not.

`liveness` says that the process and its event loop work and nothing else; `readiness` (and the empty name) says that
every dependency of the service answered lately and that it is not draining. Readiness comes back by itself.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Protocol

import grpc
import orjson
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc

CHECK_EVERY_S = 1.0
# While something is missing, so that a start or a recovery is not held up by the rhythm of the checks.
CHECK_AGAIN_S = 0.2
CHECK_TIMEOUT_S = 2.0
# What a refused configuration says of itself in the metadata of a health check; metadata is bounded, at 8 KiB by default.
REFUSED_KEY = "bulkhead-config-refused-bin"
MOST_PROBLEM_CHARS = 300
MOST_REFUSED_BYTES = 3_000
Check = Callable[[], Awaitable[bool | None]]
log = structlog.get_logger("bulkhead.health")


class Watched(Protocol):
    """A configuration file that follows its changes; services.common.config.ConfigFile is one."""

    @property
    def name(self) -> str:
        """The file's name."""
        ...

    @property
    def problem(self) -> Sequence[str]:
        """What is wrong with its newest content; empty while that is in force."""
        ...


class Health:
    """Runs the dependency checks and keeps their last result. A check passes unless it raises or answers False.

    A file of `configs` that was refused is told and makes nothing unready: the last good content goes on.
    """

    def __init__(self, checks: Mapping[str, Check], configs: Sequence[Watched] = ()) -> None:
        self._checks = dict(checks)
        self._configs = tuple(configs)
        self._failing: dict[str, str] = dict.fromkeys(self._checks, "not checked yet")
        self._draining = False
        self._changed = asyncio.Event()
        self._task: asyncio.Task | None = None

    @property
    def ready(self) -> bool:
        """Whether new work may come."""
        return not self._draining and not self._failing

    @property
    def draining(self) -> bool:
        """Whether the process is on its way out."""
        return self._draining

    def failing(self) -> dict[str, str]:
        """The dependencies that are down, each with a short reason."""
        return dict(self._failing)

    def refused(self) -> dict[str, list[str]]:
        """Configuration files whose newest content is not in force, each with what is wrong."""
        return {file.name: list(file.problem) for file in self._configs if file.problem}

    def start(self) -> None:
        """Starts the checks: each second, more often while one fails."""
        self._task = asyncio.create_task(self._run(), name="health")

    async def stop(self) -> None:
        """Ends the checks."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    def drain(self) -> None:
        """Turns readiness off for good."""
        self._draining = True
        self._notify()

    def next_change(self) -> asyncio.Event:
        """Set at the next change of readiness. Taken before looking, so that no change falls between the look and the wait."""
        return self._changed

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _run(self) -> None:
        while True:
            await asyncio.gather(*(self._one(name, check) for name, check in self._checks.items()))
            await asyncio.sleep(CHECK_AGAIN_S if self._failing else CHECK_EVERY_S)

    async def _one(self, name: str, check: Check) -> None:
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_S):
                verdict = await check()
            reason = "not ready" if verdict is False else ""
        except TimeoutError:
            reason = "timed out"
        except Exception as error:  # noqa: BLE001 - a check fails in whatever way its dependency fails; every way means "not ready"
            reason = type(error).__name__
        was_ready, before = self.ready, self._failing.get(name)
        if reason:
            self._failing[name] = reason
        else:
            self._failing.pop(name, None)
        if bool(before) != bool(reason) or before == "not checked yet":
            log.info("dependency", dependency=name, up=not reason, reason=reason)
        if self.ready != was_ready:
            self._notify()


class HealthServicer(health_pb2_grpc.HealthServicer):
    """grpc.health.v1 over a Health; an unknown service name answers NOT_FOUND."""

    def __init__(self, health: Health) -> None:
        self._health = health

    def _status(self, name: str) -> "health_pb2.HealthCheckResponse.ServingStatus | None":
        if name == "liveness":
            return health_pb2.HealthCheckResponse.SERVING
        if name in ("", "readiness"):
            ready = self._health.ready
            return health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
        return None

    async def Check(self, request, context):
        """One look. Its trailing metadata has what was refused of the configuration, as JSON."""
        status = self._status(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown health service; known: liveness, readiness")
        if refused := self._health.refused():
            context.set_trailing_metadata(((REFUSED_KEY, _bounded(refused)),))
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(self, request, context):
        """Each change, until the process goes: an open watch must not hold up its end."""
        last = None
        while True:
            change, leaving = self._health.next_change(), self._health.draining
            status = self._status(request.service)
            if status is None:
                status = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
            if status != last:
                yield health_pb2.HealthCheckResponse(status=status)
                last = status
            if leaving:
                return
            await change.wait()


def _bounded(refused: Mapping[str, Sequence[str]]) -> bytes:
    """As JSON, with as many problems as fit."""
    kept: dict[str, list[str]] = {name: [] for name in refused}
    left = MOST_REFUSED_BYTES
    for name, problems in refused.items():
        for problem in problems:
            left -= len(problem[:MOST_PROBLEM_CHARS].encode())
            if left >= 0:
                kept[name].append(problem[:MOST_PROBLEM_CHARS])
    return orjson.dumps(kept)
