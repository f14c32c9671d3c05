"""A provider that costs next to nothing: the same completion for every POST, whole or as a stream of events.

    python -m scripts.bench.llm_upstream PORT GAP_MS

Each event of a stream is a write of its own, GAP_MS after the one before; 0 sends them one loop turn apart.
"""

import asyncio
import sys

import orjson
import uvloop

TOKENS = 29
ANSWER_BYTES = 1_024


def _whole() -> bytes:
    message = {"role": "assistant", "content": "x" * (ANSWER_BYTES - 300)}
    usage = {"prompt_tokens": 120, "completion_tokens": 180, "total_tokens": 300}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    body = {"id": "c-1", "object": "chat.completion", "created": 1, "model": "static-1", "choices": [choice], "usage": usage}
    return _chunked_or_not(orjson.dumps(body), b"application/json")


def _chunked_or_not(body: bytes, kind: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-length: %d\r\nx-request-id: r-1\r\n\r\n%b" % (kind, len(body), body)


def _events() -> list[bytes]:
    """31 events: the tokens, the finish with the usage, and [DONE]; the head of the answer goes with the first."""
    data = []
    for number in range(TOKENS):
        delta = {"role": "assistant", "content": "word "} if number == 0 else {"content": f"word{number} "}
        data.append({"index": 0, "delta": delta, "finish_reason": None})
    data.append({"index": 0, "delta": {}, "finish_reason": "stop"})
    usage = {"prompt_tokens": 120, "completion_tokens": TOKENS, "total_tokens": 120 + TOKENS}
    texts = []
    for choice in data:
        body = {"id": "c-1", "object": "chat.completion.chunk", "created": 1, "model": "static-1", "choices": [choice]}
        if choice["finish_reason"]:
            body["usage"] = usage
        texts.append(b"data: " + orjson.dumps(body) + b"\n\n")
    texts.append(b"data: [DONE]\n\n")
    events = [b"%x\r\n%b\r\n" % (len(text), text) for text in texts]
    events[0] = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n" + events[0]
    events[-1] += b"0\r\n\r\n"
    return events


WHOLE, EVENTS = _whole(), _events()


class Provider(asyncio.Protocol):
    """One connection. Requests are trusted to be POSTs with a content-length, one at a time."""

    gap_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._read = b""
        self._open = True

    def connection_lost(self, exc: Exception | None) -> None:
        self._open = False

    def data_received(self, data: bytes) -> None:
        self._read = self._read + data if self._read else data
        end = self._read.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._read[:end].lower()
        at = head.find(b"content-length:")
        length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        if len(self._read) < end + 4 + length:
            return
        streamed = b'"stream":true' in self._read
        self._read = b""
        if streamed:
            self._send(0)
        else:
            self._transport.write(WHOLE)

    def _send(self, number: int) -> None:
        if not self._open:
            return
        self._transport.write(EVENTS[number])
        if number + 1 < len(EVENTS):
            loop = asyncio.get_running_loop()
            if self.gap_s:
                loop.call_later(self.gap_s, self._send, number + 1)
            else:
                loop.call_soon(self._send, number + 1)


async def main(port: int, gap_ms: float) -> None:
    """Serves until the process is ended."""
    Provider.gap_s = gap_ms / 1000
    server = await asyncio.get_running_loop().create_server(Provider, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), float(sys.argv[2])))
