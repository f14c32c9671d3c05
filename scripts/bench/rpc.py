"""What our interception adds to a call: raw grpc.aio against our server and channel, in one run.

Both servers run as processes of their own with the same servicer and the same messages; both clients run one after the
other in this process, in rounds, so that a noisy machine disturbs both alike. CPU time is what is compared.
"""

import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import grpc
import uvloop
from bulkhead.llm.v1 import llm_pb2, llm_pb2_grpc

from scripts.bench.machine import Figure, cpu_seconds
from services.common import testing
from services.common.identity import Verifier
from services.common.rpc.server import Service, serve
from services.common.settings import ServiceSettings

CALLS = 3000
STREAM_MESSAGES = 20_000
ROUNDS = 5


class Echo(llm_pb2_grpc.LlmServiceServicer):
    """Answers at once."""

    async def Complete(self, request, context):
        return llm_pb2.CompleteResponse(message=llm_pb2.Message(role="assistant", text=request.input.model))

    async def StreamComplete(self, request, context):
        message = llm_pb2.StreamCompleteResponse(text_delta=llm_pb2.TextDelta(text="word "))
        for _ in range(int(request.input.model)):
            yield message


def serve_ours(port: int, keys: str) -> None:
    """Entry of the child process with our server."""
    settings = ServiceSettings(grpc_port=port, identity_keys_file=Path(keys), log_level="WARNING", drain_grace_s=1.0)
    add = partial(llm_pb2_grpc.add_LlmServiceServicer_to_server, Echo())
    serve(settings, lambda _: Service("llm_gateway", [add], verifier=Verifier.from_file(Path(keys))))


def serve_raw(port: int) -> None:
    """Entry of the child process with a plain grpc.aio server."""

    async def main() -> None:
        server = grpc.aio.server()
        llm_pb2_grpc.add_LlmServiceServicer_to_server(Echo(), server)
        server.add_insecure_port(f"127.0.0.1:{port}")
        await server.start()
        await server.wait_for_termination()

    uvloop.run(main())


async def _unary(stub, timeout: float | None) -> None:
    request = llm_pb2.CompleteRequest(input=llm_pb2.CompletionInput(model="echo"))
    for _ in range(CALLS):
        await (stub.Complete(request, timeout=timeout) if timeout else stub.Complete(request))


async def _stream(stub) -> None:
    request = llm_pb2.StreamCompleteRequest(input=llm_pb2.CompletionInput(model=str(STREAM_MESSAGES)))
    call = stub.StreamComplete(request)
    if hasattr(call, "read"):  # the raw call, read the cheaper of its two ways, which is the one that ours uses
        while await call.read() is not grpc.aio.EOF:
            pass
        return
    async for _ in call:
        pass


async def _measure(work, pid: int, count: int) -> tuple[float, float, float]:
    client, server, wall = time.process_time(), cpu_seconds(pid), time.perf_counter()
    await work
    return (
        (time.process_time() - client) / count * 1e6,
        (cpu_seconds(pid) - server) / count * 1e6,
        (time.perf_counter() - wall) / count * 1e6,
    )


async def _compare(identities: testing.Identities, ports: dict[str, int], pids: dict[str, int]) -> list[Figure]:
    rows: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    async with (
        grpc.aio.insecure_channel(f"127.0.0.1:{ports['raw']}") as raw_channel,
        testing.dialer("orchestrator", {"llm_gateway": f"127.0.0.1:{ports['ours']}"}) as dialer,
    ):
        raw = llm_pb2_grpc.LlmServiceStub(raw_channel)
        ours = llm_pb2_grpc.LlmServiceStub(dialer.channel("llm_gateway"))
        with testing.calling(identities, timeout_s=600):
            for number in range(ROUNDS + 1):
                for name, stub in (("raw", raw), ("ours", ours)):
                    unary = await _measure(_unary(stub, 30.0 if name == "raw" else None), pids[name], CALLS)
                    stream = await _measure(_stream(stub), pids[name], STREAM_MESSAGES)
                    if number:  # the first round warms up
                        rows.setdefault((name, "unary"), []).append(unary)
                        rows.setdefault((name, "stream"), []).append(stream)
    middle = {key: [statistics.median(column) for column in zip(*values, strict=True)] for key, values in rows.items()}
    figures = []
    for kind, target in (("unary", 150.0), ("stream", 15.0)):
        for side, index in (("client", 0), ("server", 1)):
            base, own = middle["raw", kind][index], middle["ours", kind][index]
            what = "call" if kind == "unary" else "message"
            figures.append(Figure(f"{kind}: raw {side} CPU a {what}", base, "µs"))
            figures.append(Figure(f"{kind}: added {side} CPU a {what}", own - base, "µs", target))
    return figures


def run() -> list[Figure]:
    """Runs the comparison."""
    with tempfile.TemporaryDirectory() as folder:
        identities = testing.Identities(Path(folder) / "keys")
        ports = {"raw": testing.free_port(), "ours": testing.free_port()}
        code = "import sys; from scripts.bench import rpc; "
        commands = {
            "raw": f"{code}rpc.serve_raw({ports['raw']})",
            "ours": f"{code}rpc.serve_ours({ports['ours']}, {str(identities.keys_file)!r})",
        }
        children = {name: testing.Process([sys.executable, "-c", c], log=Path(folder) / f"{name}.log") for name, c in commands.items()}
        try:
            for name, child in children.items():
                testing.wait_for_port(ports[name], child)
            return uvloop.run(_compare(identities, ports, {name: child.pid for name, child in children.items()}))
        finally:
            for child in children.values():
                child.stop()
