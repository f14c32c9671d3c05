"""Server-sent events out of bytes."""

from services.cli.sse import ServerSentEvent, parse

BODY = (
    b': hello\n\nid: 7\nevent: message_delta\ndata: {"a": "\xc3\xa4"}\n\n: heartbeat\n\n'
    b"retry: 1000\n\nid: 8\r\nevent: run_finished\r\ndata: one\r\ndata: two\r\n\r\nid: 9\ndata: unfinished\n"
)
EVENTS = [ServerSentEvent("7", "message_delta", '{"a": "ä"}'), ServerSentEvent("8", "run_finished", "one\ntwo")]


async def chunks(body: bytes, size: int):
    for start in range(0, len(body), size):
        yield body[start : start + size]


async def test_events_come_out_however_the_bytes_are_cut():
    for size in range(1, len(BODY) + 1):
        assert [event async for event in parse(chunks(BODY, size))] == EVENTS
