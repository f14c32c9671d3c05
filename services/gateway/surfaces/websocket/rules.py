"""Bounds of one connection, and how one is ended."""

from dataclasses import dataclass

from services.gateway.settings import Settings

SUBPROTOCOL = "bulkhead.v1"
# A browser can set no header, so its key comes as a subprotocol, which is never answered and never logged.
KEY_PREFIX = "bulkhead.bearer."
# Seconds of the pace that may come at once; and that are refused before it is a flood.
BURST_S, DEBT_S = 2.0, 5.0
# So much of a message counts as one more command: reading a megabyte of brackets takes a tenth of a second, in which nobody is served.
COMMAND_CHARS = 64 * 1024
# How long a command under way is waited for before a connection that has to go is ended.
FINISH_S = 2.0
AT_ONCE_MS = 100
LATER_MS = 1000


@dataclass(frozen=True, slots=True)
class ConnectionRules:
    """Of each connection; bytes of a message, its JSON's depth, commands a second, watches at a time, times in seconds."""

    message_bytes: int
    json_depth: int
    commands_per_s: float
    watches: int
    idle_s: float
    max_age_s: float
    slow_reader_s: float
    ping_s: float

    @classmethod
    def of(cls, settings: Settings) -> "ConnectionRules":
        """As the settings say."""
        return cls(
            settings.websocket_message_bytes, settings.json_depth_limit, settings.websocket_commands_per_s, settings.websocket_watches,
            settings.websocket_idle_s, settings.stream_max_age_s, settings.slow_reader_s, settings.websocket_ping_s,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Farewell:
    """Why the gateway ends a connection: the close code of RFC 6455 or IANA's registry, the name of the reason, and when to come back,
    in milliseconds, None where the same would only happen again."""

    code: int
    reason: str
    reconnect_ms: int | None = None


DRAINING = Farewell(1012, "draining", AT_ONCE_MS)
TOO_OLD = Farewell(1001, "too_old", AT_ONCE_MS)
SLOW_READER = Farewell(3008, "slow_reader", LATER_MS)
IDLE = Farewell(3008, "idle")
UNAUTHENTICATED = Farewell(3000, "unauthenticated")
BINARY = Farewell(1003, "binary_message")
FLOOD = Farewell(1008, "flood")
BROKEN = Farewell(1011, "internal", LATER_MS)
# A command under way is let finish before these.
PATIENT = (DRAINING, TOO_OLD)
