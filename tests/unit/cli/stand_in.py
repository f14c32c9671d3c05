"""A stand-in for a service: takes its ports from the environment as a real one does, and answers its probes.

BULKHEAD_STAND_IN_<NAME> makes it misbehave: `refuse` prints problems and leaves with 2, `crash` leaves with 1, `deaf`
ignores SIGTERM, `unready` never becomes ready, `parent` has a child that ignores SIGTERM. Started as `stand_in.py NAME`.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

NAME = sys.argv[1]
MANNER = os.environ.get(f"BULKHEAD_STAND_IN_{NAME.upper()}", "")


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readline()
    status = "503 Service Unavailable" if MANNER == "unready" else "200 OK"
    body = json.dumps({"failing": {"memory": "down"} if MANNER == "unready" else {}})
    writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}".encode())
    await writer.drain()
    writer.close()


async def serve_grpc(port: int):
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    class Health(health_pb2_grpc.HealthServicer):
        async def Check(self, request, context):
            ready = MANNER != "unready" or request.service == "liveness"
            return health_pb2.HealthCheckResponse(status=1 if ready else 2)

    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    health_pb2_grpc.add_HealthServicer_to_server(Health(), server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    return server


async def main() -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, (lambda: None) if MANNER == "deaf" else stop.set)
    servers = []
    if port := int(os.environ.get("BULKHEAD_GRPC_PORT", "0")):
        servers.append(await serve_grpc(port))
    if port := int(os.environ.get("BULKHEAD_HTTP_PORT", "0")):
        servers.append(await asyncio.start_server(answer, "127.0.0.1", port))
    print(json.dumps({"event": "started", "level": "info", "instance": os.environ["BULKHEAD_INSTANCE"]}), flush=True)
    await stop.wait()
    if journal := os.environ.get("BULKHEAD_STAND_IN_JOURNAL"):
        # O_APPEND: one write a process, in the order in which they end.
        with Path(journal).open("a") as out:
            out.write(f"{NAME}\n")


if __name__ == "__main__":
    if MANNER == "refuse":
        print(f"{NAME}: cannot start\n  - BULKHEAD_STATE_URL is required\n  - agents.yaml line 3: no such tool", file=sys.stderr)
        sys.exit(2)
    if MANNER == "crash":
        print(json.dumps({"event": "fell_over", "level": "error", "error": "no luck"}), flush=True)
        sys.exit(1)
    if MANNER == "parent":
        subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"])
    asyncio.run(main())
