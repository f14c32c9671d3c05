"""Milvus Lite as a server whose clients cannot lose each other's rows.

Its own command (`milvus-lite server`, as of 3.2) answers from ten threads and locks neither of two things:

- Opening. The first two calls after a start each open the collection; a row written through the one that is not kept is
  acknowledged and gone, and both write the same log file. After a crash that is the usual way to begin: a write beside a search.
- Writing. Two writes of one collection share a log stream. Writers may agree to take turns, but the write of a caller who gave
  up or died still runs when the next one starts; a log that both wrote into is read up to the first broken batch only.

Here opening and writing go one at a time; reads go beside them. The file stands alone, so that an image needs nothing else of ours.
"""

import argparse
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from milvus_lite.adapter.grpc.servicer import MilvusServicer
from milvus_lite.db import MilvusLite
from pymilvus.grpc_gen import milvus_pb2_grpc

WORKERS = 16
# Milvus' own bound of a message.
MAX_MESSAGE_BYTES = 256 * 1024 * 1024
GRACE_S = 5.0
# Every other method counts as a write.
READS = ("Check", "Connect", "Describe", "Get", "Has", "HybridSearch", "List", "Query", "Search", "Show")


class Database(MilvusLite):
    """Opens and makes a collection once, however many ask at the same time."""

    def __init__(self, folder: str) -> None:
        self._opening = threading.RLock()
        super().__init__(folder)

    def get_collection(self, *args: Any, **options: Any) -> Any:
        """See MilvusLite."""
        with self._opening:
            return super().get_collection(*args, **options)

    def create_collection(self, *args: Any, **options: Any) -> Any:
        """See MilvusLite."""
        with self._opening:
            return super().create_collection(*args, **options)


class OneWriter(grpc.ServerInterceptor):
    """Lets one call that writes into the store at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def intercept_service(self, continuation: Callable, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """See gRPC; every method of Milvus is unary."""
        handler = continuation(details)
        if handler is None or details.method.rpartition("/")[2].startswith(READS):
            return handler
        answer = handler.unary_unary

        def alone(request: Any, context: grpc.ServicerContext) -> Any:
            with self._lock:
                return answer(request, context)

        return grpc.unary_unary_rpc_method_handler(alone, handler.request_deserializer, handler.response_serializer)


def main() -> None:
    """Serves until SIGTERM or SIGINT, then lets calls end, writes what is only in the log, and closes."""
    parser = argparse.ArgumentParser(description="Milvus Lite as a server")
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=19530)
    options = parser.parse_args()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    database = Database(options.data_dir)
    limits = [("grpc.max_receive_message_length", MAX_MESSAGE_BYTES), ("grpc.max_send_message_length", MAX_MESSAGE_BYTES)]
    # Without reuse, a second server on the port fails at once instead of taking every other connection.
    server = grpc.server(ThreadPoolExecutor(WORKERS), interceptors=[OneWriter()], options=[*limits, ("grpc.so_reuseport", 0)])
    milvus_pb2_grpc.add_MilvusServiceServicer_to_server(MilvusServicer(database), server)
    server.add_insecure_port(f"{options.host}:{options.port}")
    server.start()
    stop.wait()
    server.stop(GRACE_S).wait()
    database.close()


if __name__ == "__main__":
    main()
