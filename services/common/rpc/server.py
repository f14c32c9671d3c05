"""The one place that serves and that handles signals.

    def build(settings) -> Service: ...
    serve(settings, build)      # blocks; SIGTERM or SIGINT drains and exits 0

Shutdown, in order: readiness turns NOT_SERVING, listeners stop accepting, calls in flight and the service's own work
finish within the grace, what is left is cancelled (its owner continues elsewhere), telemetry is flushed.
"""

import asyncio
import gc
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import grpc
import structlog
import uvloop
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from services.common import logging as bulkhead_logging
from services.common import telemetry
from services.common.health import Check, Health, HealthServicer, Watched
from services.common.identity import Verifier
from services.common.rpc.handlers import ActiveCalls, Registrar
from services.common.rpc.watchdog import Watchdog
from services.common.settings import ServiceSettings, StartRefused, unknown_variables

MAX_MESSAGE_BYTES = 4 * 1024 * 1024
OPTIONS = (
    ("grpc.so_reuseport", 0),  # a busy port is an error and not a silent second server
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.http2.min_ping_interval_without_data_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.bdp_probe", 0),  # as in channels
)
# What calls that were cancelled at the end of the grace get for putting things back, before the stores are closed.
CLEAN_UP_S = 1.0
log = structlog.get_logger("bulkhead.server")


class HttpListener(Protocol):
    """An HTTP server that `serve` starts and ends. Implemented by `services.common.http.UvicornListener`."""

    async def start(self) -> None:
        """Binds and begins to accept. Raises StartRefused when the port is taken."""
        ...

    async def stop_accepting(self) -> None:
        """Takes no new connection."""
        ...

    async def finish(self) -> None:
        """Waits for the requests in flight."""
        ...

    async def close(self) -> None:
        """Ends what is left."""
        ...


@dataclass
class Service:
    """What a composition root hands to `serve`.

    `add_servicers` are the generated add functions bound to their servicer: `partial(add_XServicer_to_server, servicer)`.
    `start` runs after the health server is up and before readiness can be true; `drain` begins when the process is told
    to go (stop claiming work) and is waited for within the grace; `close` always runs, last made first.
    """

    name: str
    add_servicers: Sequence[Callable[[Any], None]] = ()
    checks: Mapping[str, Check] = field(default_factory=dict)
    listeners: Sequence[HttpListener] = ()
    start: Sequence[Callable[[], Awaitable[None]]] = ()
    drain: Sequence[Callable[[], Awaitable[None]]] = ()
    close: Sequence[Callable[[], Awaitable[None]]] = ()
    verifier: Verifier | None = None
    health: Health | None = None
    # Files whose refused changes are told; a `health` of the service's own has been given them already.
    configs: Sequence[Watched] = ()


def verifier_of(settings: ServiceSettings) -> Verifier:
    """The verifier over the configured key set. Raises StartRefused when the file cannot be used."""
    if settings.identity_keys_file is None:
        raise StartRefused(["BULKHEAD_IDENTITY_KEYS_FILE is required"])
    try:
        return Verifier.from_file(settings.identity_keys_file)
    except (OSError, ValueError) as error:
        raise StartRefused([f"BULKHEAD_IDENTITY_KEYS_FILE: {error}"]) from error


def serve(settings: ServiceSettings, build: Callable[[Any], "Service | Awaitable[Service]"]) -> None:
    """Runs a service until SIGTERM or SIGINT; leaves the process with exit status 0, or 1 when the start is refused."""
    bulkhead_logging.configure(settings)
    for variable, near in unknown_variables().items():
        # One that resembles no setting may be a secret that a configuration file refers to.
        (log.warning if near else log.info)("variable_unknown", variable=variable, did_you_mean=near)
    try:
        uvloop.run(_main(settings, build))
    except StartRefused as refusal:
        for problem in refusal.problems:
            log.error("start_refused", problem=problem)
        print(f"{settings.service_name}: cannot start", *(f"  - {p}" for p in refusal.problems), sep="\n", file=sys.stderr)
        raise SystemExit(1) from None


async def _main(settings: ServiceSettings, build: Callable[[Any], Any]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    # As PID 1 Python would ignore SIGTERM without a handler, so it is set before anything slow.
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    flush = telemetry.configure(settings)
    try:
        async with AsyncExitStack() as stack:
            await run_service(settings, build, stop, stack)
    finally:
        await _flushed(flush, settings.drain_flush_s)
    log.info("stopped")


async def _flushed(flush: Callable[[], None], timeout_s: float) -> None:
    """Waits for `flush` no longer than `timeout_s`: a collector that is away must not hold up the exit."""
    loop = asyncio.get_running_loop()
    done = asyncio.Event()

    def work() -> None:
        try:
            flush()
        finally:
            with suppress(RuntimeError):  # the loop has given up waiting and is closed
                loop.call_soon_threadsafe(done.set)

    # Not the loop's executor: its threads are waited for at the end, however long they take.
    threading.Thread(target=work, name="flush", daemon=True).start()
    try:
        async with asyncio.timeout(timeout_s):
            await done.wait()
    except TimeoutError:
        log.warning("telemetry_lost", waited_s=timeout_s)


async def run_service(
    settings: ServiceSettings,
    build: Callable[[Any], Any],
    stop: asyncio.Event,
    stack: AsyncExitStack,
    started: asyncio.Event | None = None,
) -> None:
    """Builds and serves until `stop` is set. Separate from `serve` so that a test can run a service in its own loop.

    `started` is set when every listener accepts.
    """
    service: Service = build(settings)
    if asyncio.iscoroutine(service):
        service = await service
    for close in service.close:
        stack.push_async_callback(close)
    health = service.health or Health(service.checks, service.configs)
    active = ActiveCalls()
    server = None
    if service.add_servicers:
        if service.verifier is None:
            raise StartRefused(["a gRPC service needs a verifier of internal tokens"])
        server = grpc.aio.server(options=OPTIONS)
        registrar = Registrar(server, service.name, service.verifier, active)
        for add in service.add_servicers:
            add(registrar)
        health_pb2_grpc.add_HealthServicer_to_server(HealthServicer(health), server)
        names = (*registrar.names, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        address = f"{host}:{settings.grpc_port}"
        try:
            bound = server.add_insecure_port(address)
        except RuntimeError:
            bound = 0
        if bound == 0:
            raise StartRefused([f"port {settings.grpc_port} is taken (BULKHEAD_GRPC_PORT)"])
        await server.start()
        stack.push_async_callback(active.ended, CLEAN_UP_S)
        stack.push_async_callback(server.stop, None)
    await _unless_stopped(service.start, stop)
    for listener in service.listeners:
        await listener.start()
        stack.push_async_callback(listener.close)
    watchdog = Watchdog()
    watchdog.start()
    stack.callback(watchdog.stop)
    health.start()
    stack.push_async_callback(health.stop)
    # What was made until now lives as long as the process: the collector need not walk it again and again.
    gc.collect()
    gc.freeze()
    # A call makes hundreds of objects that die with it: at the default of 700 the collector would run at every other call for nothing.
    gc.set_threshold(20_000, 20, 20)
    if started is not None:
        started.set()
    log.info("started", grpc_port=settings.grpc_port if server else 0, version=settings.version, track=settings.track)
    await stop.wait()
    log.info("draining", grace_s=settings.drain_grace_s, calls=len(active))
    health.drain()
    await _drain(service, server, settings.drain_grace_s)


async def _unless_stopped(hooks: Sequence[Callable[[], Awaitable[None]]], stop: asyncio.Event) -> None:
    """Runs the hooks one after the other; a process that is told to go while one hangs does not wait for it."""
    stopped = asyncio.ensure_future(stop.wait())
    try:
        for hook in hooks:
            running = asyncio.ensure_future(hook())
            await asyncio.wait({running, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not running.done():
                running.cancel()
                await asyncio.wait({running}, timeout=1.0)
                return
            running.result()
    finally:
        stopped.cancel()


async def _drain(service: Service, server: grpc.aio.Server | None, grace_s: float) -> None:
    for listener in service.listeners:
        await listener.stop_accepting()
    # The service's own work and the open calls end side by side: a watcher's stream must not hold up a hand-over.
    work = [asyncio.ensure_future(drain()) for drain in service.drain]
    work += [asyncio.ensure_future(listener.finish()) for listener in service.listeners]
    if server is not None:
        work.append(asyncio.ensure_future(server.stop(grace_s)))
    if not work:
        return
    done, late = await asyncio.wait(work, timeout=grace_s)
    for task in late:
        task.cancel()
    if late:
        log.warning("drain_incomplete", left=len(late))
        await asyncio.wait(late, timeout=1.0)
    for task in done:
        if task.exception() is not None:
            log.error("drain_failed", exc_info=task.exception())
