"""Which threads gRPC moves its bytes with."""

import os
import subprocess
import sys

import orjson

from services.common import testing

CALLS = """
import asyncio, os, sys
from services.common.rpc import server
import grpc

async def echo(request, context):
    return request

def worked():
    found = {}
    for task in os.listdir("/proc/self/task"):
        name = open(f"/proc/self/task/{task}/comm").read().strip()
        found[name] = found.get(name, 0) + int(open(f"/proc/self/task/{task}/schedstat").read().split()[0])
    return found

async def main():
    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(echo)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("echo.Service", {"Echo": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary("/echo.Service/Echo")
        await call(b"first")
        before = worked().get("event_engine", 0)
        for _ in range(200):
            assert await call(b"again") == b"again"
        print((worked().get("event_engine", 0) - before) // 200)
    await server.stop(None)

asyncio.run(main())
"""


def _engine_ns_a_call(**environment: str) -> tuple[int, str]:
    env = {name: value for name, value in os.environ.items() if name != "GRPC_EXPERIMENTS"}
    done = subprocess.run(
        [sys.executable, "-c", CALLS], env={**env, **environment}, cwd=testing.ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    return orjson.loads(done.stdout), done.stderr


def test_no_thread_hands_on_what_another_has_read():
    spent_ns, told = _engine_ns_a_call()
    # What gRPC says of an experiment that it does not know any more.
    assert "nknown experiment" not in told
    assert spent_ns < 5_000


def test_an_operator_may_choose_the_engine_of_grpc():
    spent_ns, _ = _engine_ns_a_call(GRPC_EXPERIMENTS="event_engine_client,event_engine_listener")
    assert spent_ns > 5_000
