"""What tests of every service need: real stores, real servers in the test's loop, real processes, real tokens.

Nothing here is imported by a service. The pytest fixtures over it stand in tests/conftest.py.
"""

import asyncio
import fcntl
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

import grpc
from grpc_health.v1 import health_pb2

from services.common import embedded
from services.common.identity import Minter, Principal, Verifier, generate_keys
from services.common.rpc import context as call_context
from services.common.rpc.addresses import Addresses
from services.common.rpc.channel import Dialer
from services.common.rpc.server import run_service
from services.common.settings import ServiceSettings

ROOT = Path(__file__).resolve().parents[2]
ISSUERS = ["gateway", "orchestrator", "llm_gateway", "memory", "test"]
# Loaded machines start processes slowly; this is a bound against hanging and no expectation.
PATIENCE_S = 60.0


# Below the range that the kernel takes outgoing ports from, so that no connection of a stranger lands on one of ours.
_PORTS = range(10_000, 32_000)
_LOCKS = Path(tempfile.gettempdir()) / "bulkhead-test-ports"
_held: dict[int, TextIO] = {}


def free_port() -> int:
    """A free TCP port on loopback that no other test process is given while this one lives."""
    return free_port_base(1)


def free_port_base(size: int = 16) -> int:
    """The first of `size` free ports in a row, each held by a lock file until this process ends."""
    _LOCKS.mkdir(mode=0o777, exist_ok=True)
    while True:
        base = random.choice(_PORTS[:-size])  # noqa: S311 - spreads test processes over the range
        taken = [port for port in range(base, base + size) if not _take(port)]
        if not taken:
            return base
        for port in range(base, base + size):
            if port not in taken:
                _held.pop(port).close()


def _take(port: int) -> bool:
    if port in _held:
        return False
    lock = (_LOCKS / str(port)).open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
    except OSError:
        lock.close()
        return False
    _held[port] = lock
    return True


def eventually(condition: Callable[[], Any], what: str, timeout_s: float = PATIENCE_S, every_s: float = 0.02) -> Any:
    """Polls until `condition()` is true and answers its value; AssertionError naming `what` when it never is."""
    end = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"never happened within {timeout_s} s: {what}")
        time.sleep(every_s)


async def eventually_async(condition: Callable[[], Any], what: str, timeout_s: float = PATIENCE_S, every_s: float = 0.02) -> Any:
    """As `eventually`, for plain or async conditions, without holding up the loop."""
    end = time.monotonic() + timeout_s
    while True:
        value = condition()
        if asyncio.iscoroutine(value):
            value = await value
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"never happened within {timeout_s} s: {what}")
        await asyncio.sleep(every_s)


# A test run that is killed from outside runs no fixture's end; the kernel tells the children instead (PR_SET_PDEATHSIG is 1).
# The child asks for it itself, on its way to the real command: a hook between fork and exec would run gRPC's fork handlers.
_WITH_PARENT = "import ctypes,os,sys;ctypes.CDLL(None).prctl(1,15);os.execvp(sys.argv[1],sys.argv[1:])"


class Process:
    """A real child process in a group of its own, with its output in a file."""

    def __init__(self, command: Sequence[str], *, env: Mapping[str, str] | None = None, log: Path, cwd: Path = ROOT) -> None:
        self.command = list(command)
        self.log = log
        with log.open("ab") as output:
            self._popen = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _WITH_PARENT, *self.command],
                env={**os.environ, **(env or {})}, cwd=cwd, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip

    @property
    def pid(self) -> int:
        """Process id."""
        return self._popen.pid

    def running(self) -> bool:
        """Whether it has not ended."""
        return self._popen.poll() is None

    def signal(self, number: int) -> None:
        """Sends a signal to the process itself."""
        self._popen.send_signal(number)

    @contextmanager
    def standing_still(self) -> Iterator[None]:
        """It does nothing meanwhile, and has lost nothing behind that."""
        self.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.signal(signal.SIGCONT)

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        """Exit status; AssertionError when it does not end in time."""
        try:
            return self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.command[:4]} did not end within {timeout_s} s\n{self.output()[-4000:]}") from None

    def output(self) -> str:
        """All that it printed."""
        return self.log.read_text(errors="replace")

    def stop(self) -> None:
        """SIGTERM, then SIGKILL for the whole group; always safe to call."""
        if self.running():
            self._popen.send_signal(signal.SIGCONT)
            self._popen.terminate()
            try:
                self._popen.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def kill(self) -> None:
        """SIGKILL for the process and what it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._popen.wait(10)


def wait_for_port(port: int, process: Process, timeout_s: float = PATIENCE_S) -> None:
    """Returns when something accepts on the port; AssertionError when the process ends first."""

    def listening() -> bool:
        if not process.running():
            raise AssertionError(f"{process.command[:4]} ended\n{process.output()[-4000:]}")
        with socket.socket() as probe:
            probe.settimeout(0.5)
            return probe.connect_ex(("127.0.0.1", port)) == 0

    eventually(listening, f"port {port} listening", timeout_s)


def _has_loaded(port: int) -> bool:
    # It listens before it has read what it kept, and refuses everything until then.
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5.0) as probe:
            probe.sendall(b"PING\r\n")
            return probe.recv(64).startswith(b"+PONG")
    except OSError:
        return False


@contextmanager
def valkey_server(kind: str = "state", port: int = 0, folder: Path | None = None) -> Iterator[tuple[str, Process]]:
    """A real Valkey; answers its URL and its process. `kind` is state or cache."""
    port = port or free_port()
    with tempfile.TemporaryDirectory(prefix="bulkhead-valkey-") as temporary:
        where = folder or Path(temporary)
        command = embedded.valkey_state_command if kind == "state" else embedded.valkey_cache_command
        process = Process(command(port, where), log=Path(temporary) / "valkey.log")
        try:
            wait_for_port(port, process)
            eventually(lambda: _has_loaded(port), "the store has read its files")
            yield f"redis://127.0.0.1:{port}/0", process
        finally:
            process.stop()


@contextmanager
def milvus_server(port: int = 0, folder: Path | None = None) -> Iterator[tuple[str, Process]]:
    """A real Milvus Lite server; answers its URI and its process."""
    port = port or free_port()
    with tempfile.TemporaryDirectory(prefix="bulkhead-milvus-") as temporary:
        process = Process(embedded.milvus_command(port, folder or Path(temporary) / "data"), log=Path(temporary) / "milvus.log")
        try:
            wait_for_port(port, process)
            yield f"http://127.0.0.1:{port}", process
        finally:
            process.stop()


class Identities:
    """Keys of every issuer in a folder, and tokens on demand."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        generate_keys(folder, ISSUERS)
        self.keys_file = folder / "jwks.json"
        self.verifier = Verifier.from_file(self.keys_file)
        self._minter = Minter.from_file(folder / "test.pem", "test")

    def signing_key(self, issuer: str) -> Path:
        """Private key file of an issuer."""
        return self.folder / f"{issuer}.pem"

    def token(self, principal: Principal | None = None) -> str:
        """An internal token; by default of a user with every scope."""
        return self._minter.mint(principal or principal_of())

    def settings(self, issuer: str = "") -> dict[str, Any]:
        """Keyword settings of a service in these tests."""
        found: dict[str, Any] = {"identity_keys_file": self.keys_file}
        if issuer:
            found["identity_signing_key_file"] = self.signing_key(issuer)
        return found


def principal_of(
    tenant: str = "acme", user: str = "ana", *, scopes: Sequence[str] = ("*",), tier: str = "enterprise", run_id: str = ""
) -> Principal:
    """A principal for tests."""
    return Principal(tenant=tenant, user=user, key_id="key_test", scopes=tuple(scopes), tier=tier, run_id=run_id)


@asynccontextmanager
async def running(settings: ServiceSettings, build: Callable[[Any], Any]) -> AsyncIterator[asyncio.Event]:
    """Runs a service in this loop through the same code as `serve`, and drains it at the end."""
    stop = asyncio.Event()
    started = asyncio.Event()

    async def main() -> None:
        async with AsyncExitStack() as stack:
            await run_service(settings, build, stop, stack, started)

    task = asyncio.create_task(main())
    waiter = asyncio.create_task(started.wait())
    await asyncio.wait([task, waiter], return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        waiter.cancel()
        task.result()
    try:
        yield stop
    finally:
        stop.set()
        await task


async def wait_ready(address: str, name: str = "readiness", timeout_s: float = PATIENCE_S) -> None:
    """Returns when the gRPC health service `name` at `address` is SERVING."""
    async with grpc.aio.insecure_channel(address) as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )

        async def serving() -> bool:
            try:
                answer = await check(health_pb2.HealthCheckRequest(service=name), timeout=2)
            except grpc.RpcError:
                return False
            return answer.status == health_pb2.HealthCheckResponse.SERVING

        await eventually_async(serving, f"{name} of {address}", timeout_s)


@asynccontextmanager
async def dialer(caller: str, addresses: Mapping[str, str]) -> AsyncIterator[Dialer]:
    """A Dialer that acts as `caller`."""
    made = Dialer(caller, Addresses(addresses))
    try:
        yield made
    finally:
        await made.close()


@contextmanager
def calling(identities: Identities, principal: Principal | None = None, *, timeout_s: float = 30.0, canary: bool = False) -> Iterator[None]:
    """Makes the calls inside belong to `principal` (by default a user with every scope), with a deadline."""
    principal = principal or principal_of()
    context = call_context.CallContext(
        canary=canary, deadline=time.monotonic() + timeout_s, principal=principal, token=identities.token(principal)
    )
    with call_context.bind(context):
        yield


def python(*arguments: str) -> list[str]:
    """Command line of this interpreter."""
    return [sys.executable, *arguments]
