"""Asks a gRPC server for its health, as a kubelet would: no token, no deadline rules, no trace.

Imports nothing of ours: whoever starts many processes must not be slow itself.
"""

import json

import grpc

_REFUSED = "bulkhead-config-refused-bin"
_CHECK = "/grpc.health.v1.Health/Check"
_SERVING = b"\x08\x01"  # HealthCheckResponse{status: SERVING}


class HealthProbe:
    """One server's health; `close()` at the end."""

    def __init__(self, address: str) -> None:
        """`address` is host:port."""
        # A refused connection is tried again at once: the server is expected any moment.
        options = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.min_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200)]
        self._channel = grpc.aio.insecure_channel(address, options=[*options, ("grpc.use_local_subchannel_pool", 1)])
        self._check = self._channel.unary_unary(_CHECK)

    async def serving(self, name: str, timeout_s: float = 1.0) -> bool | None:
        """Whether the health service `name` (liveness, readiness) is SERVING; None when the server does not answer."""
        encoded = name.encode()
        try:
            answer = await self._check(b"\x0a" + bytes([len(encoded)]) + encoded, timeout=timeout_s)
        except grpc.RpcError:
            return None
        return answer == _SERVING

    async def refused(self, timeout_s: float = 1.0) -> dict[str, list[str]]:
        """Configuration files that the server has refused to take over, each with what is wrong; empty without an answer."""
        call = self._check(b"", timeout=timeout_s)
        try:
            await call
            found = dict(await call.trailing_metadata() or ()).get(_REFUSED)
            return json.loads(found) if found else {}
        except (grpc.RpcError, ValueError):
            return {}

    async def close(self) -> None:
        """Closes the connection."""
        await self._channel.close()
