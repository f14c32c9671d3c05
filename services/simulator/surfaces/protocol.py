"""uvicorn's HTTP protocol with one addition: the application may reset the connection, as a broken provider would."""

import socket
import struct

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

RESET = "bulkhead.reset"
"""Name of the ASGI extension that holds the function to call."""

RAW = "bulkhead.raw"
"""Name of the one that writes bytes past HTTP."""

# l_onoff 1, l_linger 0: close sends RST and drops what was not sent yet.
_LINGER_NONE = struct.pack("ii", 1, 0)


class ResettableProtocol(HttpToolsProtocol):
    """Adds `scope["extensions"]["bulkhead.reset"]` to each request."""

    def on_message_begin(self) -> None:
        """Begins a request (called by the parser)."""
        super().on_message_begin()
        # ASGI lets an extension be any object; uvicorn's type says a dict.
        self.scope["extensions"] = {RESET: self._reset, RAW: self._write_raw}  # type: ignore[dict-item]

    def _write_raw(self, data: bytes) -> None:
        self.transport.write(data)

    def _reset(self, *, at_once: bool) -> None:
        """End the connection: with RST at once, or after what is written has gone out, without a proper end of the body."""
        if not at_once:
            self.transport.close()
            return
        connection = self.transport.get_extra_info("socket")
        if connection is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NONE)
        self.transport.abort()
