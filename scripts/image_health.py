"""The HEALTHCHECK of the images: exit 0 when the process inside answers. Kubernetes has its own probes and ignores it.

`http://host:port/path` must answer 200; `grpc://host:port` must answer SERVING for the health service `liveness`.
"""

import sys
import urllib.error
import urllib.request
from urllib.parse import urlsplit

TIMEOUT_S = 5.0


def http_alive(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False


def grpc_alive(address: str) -> bool:
    # Only the gRPC services' images hold these packages.
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with grpc.insecure_channel(address) as channel:
        try:
            stub = health_pb2_grpc.HealthStub(channel)
            answer = stub.Check(health_pb2.HealthCheckRequest(service="liveness"), timeout=TIMEOUT_S)
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def main() -> int:
    target = urlsplit(sys.argv[1])
    alive = grpc_alive(target.netloc) if target.scheme == "grpc" else http_alive(sys.argv[1])
    return 0 if alive else 1


if __name__ == "__main__":
    sys.exit(main())
