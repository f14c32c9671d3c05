"""Every fault in every dialect and both modes, as bytes on the wire, and the bill of each."""

import asyncio
import gzip
import re
import zlib

import orjson
import pytest

from services.simulator.faults import KINDS
from tests.unit.simulator.raw_http import DIALECTS, QUESTION, ask, request, send


def data(body: bytes):
    """The data of each event."""
    return [line[6:].strip() for line in body.splitlines() if line.startswith(b"data: ")]


def words(body: bytes) -> int:
    """Pieces of text that were sent."""
    return sum(bool(re.search(rb'"(?:content|text)":"[^"]+"', event)) and b"content_block_start" not in event for event in data(body))


def finished(body: bytes) -> bool:
    return bool(re.search(rb'"(?:finish_reason|finishReason|stop_reason)":"', body))


def bill(line) -> int:
    return line["prompt_tokens"] * 150 + line["completion_tokens"] * 600


both = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
every = pytest.mark.parametrize("dialect", DIALECTS)
STATUSES = (301, 302, 307, 308, 400, 401, 402, 403, 404, 405, 406, 408, 409, 410, 413, 415, 418, 422, 425, 429, *range(500, 506), 520, 529)


@every
async def test_every_status_in_the_dialect_s_form(sim, dialect):
    for status in STATUSES:
        path, body = request(dialect, f"sim-1+status={status}", status % 2 == 0)
        wire = await send(sim, path, body)
        assert wire.raw.startswith(b"HTTP/1.1 %d " % status)
        error = orjson.loads(wire.body)["error"]
        assert error["message"]
        assert {"chat": "param", "messages": "type", "gemini": "status"}[dialect] in error
    lines = await sim.log()
    assert [line["status"] for line in lines] == list(STATUSES)
    assert not any(line["billed_nanousd"] for line in lines)


@every
@pytest.mark.parametrize(
    ("form", "header"),
    [
        ("seconds:7", rb"retry-after: 7"),
        ("date:9", rb"retry-after: \w+, \d\d \w+ 20\d\d [\d:]+ gmt"),
        ("ms:1500", rb"retry-after-ms: 1500"),
        ("x-ms:1500", rb"x-ms-retry-after-ms: 1500"),
        ("reset:3", rb"x-ratelimit-reset: 3"),
        ("reset-epoch:3", rb"x-ratelimit-reset: \d{10}"),
        ("reset-requests:3", rb"x-ratelimit-reset-requests: 3s"),
        ("anthropic-reset:3", rb"anthropic-ratelimit-requests-reset: 20\d\d-\d\d-\d\dt[\d:]+z"),
        ("junk", rb"retry-after: soon"),
    ],
)
async def test_every_form_of_a_wait(sim, dialect, form, header):
    wire, line = await ask(sim, dialect, f"rate_limit={form}", True)
    assert re.search(rb"\r\n" + header + rb"(?:\r\n|$)", wire.head)
    assert line["status"] == 429


async def test_gemini_tells_its_own_wait_in_the_body(sim):
    for form, told in (("7", "7s"), ("retry-info:0.5", "0.5s"), ("none", None), ("seconds:7", None)):
        wire, _ = await ask(sim, "gemini", f"rate_limit={form}", False)
        details = orjson.loads(wire.body)["error"]["details"]
        assert next((item.get("retryDelay") for item in details if "RetryInfo" in item["@type"]), None) == told
        assert (b"retry-after" in wire.head) == (form == "seconds:7")


@every
async def test_a_whole_stream_is_the_measure(sim, dialect):
    wire, line = await ask(sim, dialect, "", True)
    assert wire.ended_well
    assert words(wire.body) == line["completion_tokens"] == 12
    assert finished(wire.body)
    assert line["usage_sent"] is True


@every
@pytest.mark.parametrize(
    ("fault", "sent", "ended_well"),
    [
        ("cut_after=5", 5, False),
        ("end_after=5", 5, True),
        ("error_event_after=5", 5, True),
        ("cut_after=0", 0, False),
        ("end_after=0", 0, True),
    ],
)
async def test_a_stream_that_breaks_off(sim, dialect, fault, sent, ended_well):
    wire, line = await ask(sim, dialect, fault, True)
    assert (words(wire.body), line["completion_tokens"]) == (sent, sent)
    assert wire.closed
    assert wire.ended_well == ended_well
    assert not finished(wire.body)
    assert line["billed_nanousd"] == bill(line) > 0
    if "error" in fault:
        assert "error" in orjson.loads(data(wire.body)[-1])
        assert (b"event: error" in wire.body) == (dialect == "messages")


@every
@pytest.mark.parametrize("fault", ["error_event_after=0", "error_body", "empty_body", "html_body"])
@both
async def test_an_answer_that_is_none_costs_nothing(sim, dialect, fault, stream):
    wire, line = await ask(sim, dialect, fault, stream)
    assert wire.raw.startswith(b"HTTP/1.1 200 ")
    assert (line["billed_nanousd"], line["completion_tokens"], line["usage_sent"]) == (0, 0, False)
    if fault == "empty_body":
        assert wire.body == b""
    elif fault == "html_body":
        assert wire.body.startswith(b"<html>")
        assert b"content-type: text/html" in wire.head
    elif stream and fault.startswith("error_event"):
        assert "error" in orjson.loads(data(wire.body)[0])
    else:
        assert "error" in orjson.loads(wire.body)


@every
async def test_an_error_event_stands_for_a_whole_body_and_costs_nothing(sim, dialect):
    wire, line = await ask(sim, dialect, "error_event_after=5", False)
    assert "error" in orjson.loads(wire.body)
    assert (line["billed_nanousd"], line["completion_tokens"]) == (0, 0)


@every
@pytest.mark.parametrize(("place", "arguments"), [("before", False), ("inside", True), ("after", True)])
async def test_a_cut_around_the_arguments_of_a_tool(sim, dialect, place, arguments):
    wire, line = await ask(sim, dialect, f"cut_in_arguments={place}", True, text=QUESTION, tool=True)
    assert not wire.ended_well
    assert not finished(wire.body)
    sent = b"".join(re.findall(rb'"(?:arguments|partial_json)":"((?:[^"\\]|\\.)*)"', wire.body)).replace(b"\\", b"")
    if dialect == "gemini":
        assert (b'"args"' in wire.body) == arguments
        assert wire.body.endswith(b"\r\n\r\n") == (place == "after")
    else:
        assert bool(sent) == arguments
        assert (sent == b'{"expression":"17*23"}') == (place == "after")
    assert line["billed_nanousd"] == bill(line)


@every
@both
async def test_arguments_that_break_off(sim, dialect, stream):
    wire, _ = await ask(sim, dialect, "malformed_tool_arguments", stream, text=QUESTION, tool=True)
    assert wire.ended_well
    assert b'17*23"}' not in wire.body
    assert (b"MALFORMED_FUNCTION_CALL" in wire.body) == (dialect == "gemini")


@every
@both
async def test_finish_and_usage_that_are_missing_or_odd(sim, dialect, stream):
    wire, line = await ask(sim, dialect, "missing_usage", stream)
    assert not re.search(rb'"usage(?:Metadata)?":\{', wire.body)
    assert (line["completion_tokens"], line["usage_sent"]) == (12, False)
    wire, line = await ask(sim, dialect, "usage_zero", stream)
    assert not re.search(rb'(?:_tokens|Count)":[1-9]', wire.body)
    assert line["completion_tokens"] == 12, "it is billed all the same"
    wire, _ = await ask(sim, dialect, "missing_finish", stream)
    assert not finished(wire.body)
    assert wire.ended_well
    wire, line = await ask(sim, dialect, "finish_without_content", stream)
    assert finished(wire.body)
    assert words(wire.body) == line["completion_tokens"] == 0


@every
async def test_where_the_usage_of_a_stream_stands(sim, dialect):
    wire, line = await ask(sim, dialect, "usage_in_extra_chunk", True)
    events = [orjson.loads(event) for event in data(wire.body) if event != b"[DONE]"]
    with_usage = [event for event in events if event.get("usage") or event.get("usageMetadata")]
    assert not finished(orjson.dumps(with_usage[-1]))
    assert finished(wire.body)
    assert line["usage_sent"] is True
    wire, _ = await ask(sim, dialect, "usage_with_finish", True)
    events = [orjson.loads(event) for event in data(wire.body) if event != b"[DONE]"]
    with_usage = [event for event in events if event.get("usage") or event.get("usageMetadata")]
    assert finished(orjson.dumps(with_usage[-1]))


@every
async def test_events_that_are_odd(sim, dialect):
    plain, _ = await ask(sim, dialect, "", True)
    usual = len(data(plain.body))
    for fault, more in (("duplicate_chunk=3", 1), ("role_chunks=4", 4), ("unknown_event=2", 1), ("malformed_json=2", 1)):
        wire, line = await ask(sim, dialect, fault, True)
        assert len(data(wire.body)) == usual + more, fault
        assert line["completion_tokens"] == 12
    for fault, mark in (("invalid_utf8=2", b"\xff\xfe"), ("nul_bytes=2", b"\x00\x00"), ("keepalive", b": keep-alive\n\n")):
        wire, _ = await ask(sim, dialect, fault, True)
        assert mark in wire.body, fault
    wire, _ = await ask(sim, dialect, "bom", True)
    assert wire.body.startswith(b"\xef\xbb\xbf")
    wire, _ = await ask(sim, dialect, "crlf", True)
    assert b"\r\n\r\n" in wire.body
    assert not re.search(rb"[^\r]\n", wire.body)
    wire, _ = await ask(sim, dialect, "huge_event=100000", True)
    assert max(map(len, data(wire.body))) > 100_000


@every
async def test_whole_bodies_that_are_odd(sim, dialect):
    for fault, mark in (("invalid_utf8", b"\xff\xfe"), ("nul_bytes", b"\x00\x00"), ("bom", b"\xef\xbb\xbf")):
        wire, _ = await ask(sim, dialect, fault, False)
        assert mark in wire.body, fault
        with pytest.raises(orjson.JSONDecodeError):
            orjson.loads(wire.body)
    for fault in ("malformed_json", "end_after"):
        wire, _ = await ask(sim, dialect, fault, False)
        assert wire.ended_well
        with pytest.raises(orjson.JSONDecodeError):
            orjson.loads(wire.body)
    wire, _ = await ask(sim, dialect, "cut_after", False)
    assert not wire.ended_well


@every
@both
async def test_http_itself_is_broken_or_slow(sim, dialect, stream):
    plain, _ = await ask(sim, dialect, "", stream)
    wire, _ = await ask(sim, dialect, "gzip", stream)
    assert b"content-encoding: gzip" in wire.head
    unpacked = zlib.decompressobj(wbits=31).decompress(wire.body) if stream else gzip.decompress(wire.body)
    assert abs(len(unpacked) - len(plain.body)) < 100
    wire, _ = await ask(sim, dialect, "content_length=10", stream)
    assert not wire.ended_well
    assert wire.closed
    wire, _ = await ask(sim, dialect, "content_length=-10", stream)
    assert not wire.ended_well
    wire, _ = await ask(sim, dialect, "bad_chunked", stream)
    assert b"not a length" in wire.raw
    assert not wire.ended_well
    wire, _ = await ask(sim, dialect, "trickle", stream)
    assert wire.ended_well
    if stream:
        assert wire.raw.count(b"\r\n1\r\n") > 500, "each byte is a chunk"


@both
async def test_answers_that_are_late(sim, stream):
    for fault in ("slow_headers=300", "delay_after_headers=300", "first_token_delay=300"):
        wire, _ = await ask(sim, "messages", fault, stream, wait_s=0.15, logged=False)
        assert not wire.closed
        assert (wire.raw == b"", b"\r\n\r\n" in wire.raw) == (
            (True, False) if "first" in fault else (False, True) if "delay" in fault else (False, False)
        )
        wire, _ = await ask(sim, "messages", fault, stream)
        assert wire.ended_well
        assert finished(wire.body)


@every
@both
async def test_stalls_and_closed_connections(sim, dialect, stream):
    wire, _ = await ask(sim, dialect, "stall_after=2", stream, wait_s=0.2, logged=False)
    assert (wire.closed, wire.raw[:13]) == (False, b"HTTP/1.1 200 ")
    wire, _ = await ask(sim, dialect, "hang", stream, wait_s=0.2, logged=False)
    assert (wire.closed, wire.raw) == (False, b"")
    for fault in ("reset", "close_before_body"):
        wire, _ = await ask(sim, dialect, fault, stream)
        assert (wire.closed, wire.raw) == (True, b"")
    wire, _ = await ask(sim, dialect, "redirect=/else+status=302", stream)
    assert wire.raw.startswith(b"HTTP/1.1 302 ")
    assert b"location: /else" in wire.head


@every
async def test_a_connection_is_closed_before_the_body_is_read(sim, dialect):
    path, _ = request(dialect, "sim-1", False)
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n"
    for how in ("header", "order"):
        if how == "order":
            await sim.call("POST", "/sim/faults", {"match": {"endpoint": dialect}, "fault": "close_before_body", "times": 1})
        reader, writer = await asyncio.open_connection("127.0.0.1", int(sim.url.rpartition(":")[2]))
        writer.write((head + ("x-sim-fault: close_before_body\r\n" if how == "header" else "") + "\r\n{").encode())
        async with asyncio.timeout(5):
            assert await reader.read() == b"", how
        writer.close()


@every
@both
async def test_keys_and_prefills(sim, dialect, stream):
    path, body = request(dialect, "sim-1", stream)
    asked = "x-sim-require-key: right-key\r\n"
    header = {"chat": "authorization: Bearer {}", "messages": "x-api-key: {}", "gemini": "x-goog-api-key: {}"}[dialect]
    for key, accepted in (("right-key", True), ("wrong-key", False)):
        wire = await send(sim, path, body, headers=asked + header.format(key) + "\r\n")
        assert wire.raw.startswith(b"HTTP/1.1 200 ") == accepted
    wire = await send(sim, path, body, headers=asked)
    assert wire.raw.startswith(b"HTTP/1.1 400 " if dialect == "gemini" else b"HTTP/1.1 401 ")
    told = orjson.dumps(await sim.log())
    assert b'-key"' not in told, "no key is ever logged"
    for fault, status in (("unauthorized", 400 if dialect == "gemini" else 401), ("forbidden", 403)):
        wire, _ = await ask(sim, dialect, fault, stream)
        assert wire.raw.startswith(b"HTTP/1.1 %d " % status)


async def test_every_fault_in_every_dialect_and_mode_is_no_defect(sim):
    """No combination of one fault, a dialect and a mode makes the server fail by itself, and what it bills is never more than was sent."""
    given = {"first_token_delay": "1", "tokens_per_s": "1000", "status": "418", "require_key": "k"}
    short = {"slow_headers": "1", "delay_after_headers": "1"}
    for name in KINDS.keys() - {"hang", "stall_after"}:
        value = given.get(name) or short.get(name)
        fault = f"{name}={value}" if value else name
        for dialect in DIALECTS:
            for stream in (False, True):
                path, body = request(dialect, f"sim-1+{fault}", stream)
                wire = await send(sim, path, body)
                assert wire.closed, (name, dialect, stream)
                assert b" 500 " not in wire.raw[:20]
                assert b"defect" not in wire.raw
    for line in await sim.log():
        spent = line["prompt_tokens"] * 150 + (line["completion_tokens"]) * 600
        assert line["billed_nanousd"] <= spent
