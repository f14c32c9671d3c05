"""`/ws` from below: handshakes, keys and origins, and bytes that are no conversation."""

import asyncio

import aiohttp
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from services.common import testing
from services.gateway.surfaces.websocket import wire
from tests.integration.websocket_client import close_code, frame, raw, refused, talk, watched

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(autouse=True)
def _short_goodbyes(monkeypatch):
    """Clients of these tests that were thrown out wait for the end of the connection, and answer nothing."""
    monkeypatch.setattr(wire, "CUT_S", 0.1)


async def test_a_key_is_needed_and_comes_by_header_or_subprotocol_and_never_by_query(front, caplog, capfd):
    assert await refused(front, key="") == (401, "API_KEY_MISSING")
    assert await refused(front, key="bh_nobody") == (401, "INVALID_API_KEY")
    async with talk(front, key="", headers={"x-api-key": front.key}) as ws:
        assert (await ws.ask("cancel", run_id="r"))["type"] == "ack"
    offered = ["bulkhead.v1", f"bulkhead.bearer.{front.key}"]
    async with talk(front, key="", subprotocols=offered) as ws:
        assert ws.connection.subprotocol == "bulkhead.v1"
        assert front.key not in str(ws.connection.response.headers)
        assert (await ws.ask("cancel", run_id="r"))["type"] == "ack"
    assert await refused(front, key="", subprotocols=offered[1:]) == (400, "INVALID_INPUT")
    assert await refused(front, key="", subprotocols=["bulkhead.v1", "bulkhead.bearer.bh_nobody"]) == (401, "INVALID_API_KEY")
    url = front.url.replace("http", "ws") + f"/ws?key={front.key}"
    with pytest.raises(InvalidStatus) as found:
        async with connect(url, additional_headers=front.headers(), proxy=None):
            pass
    assert found.value.response.status_code == 400
    assert front.key not in found.value.response.body.decode()
    out, err = capfd.readouterr()
    assert "websocket_closed" in out
    assert front.key not in out + err + caplog.text


async def test_a_key_that_is_revoked_is_refused_with_its_next_command_and_the_connection_ends(front):
    issued = await front.accounts.create_key(tenant="acme", user="bo", tier="enterprise", scopes=("*",))
    async with talk(front, key=issued.secret) as ws:
        _, watch = await watched(ws, "hang")
        await front.accounts.revoke("acme", issued.record.key_id)

        async def is_refused():
            return (await ws.ask("cancel", run_id="r"))["type"] == "error"

        await testing.eventually_async(is_refused, "the key is refused")
        assert await ws.rest() == 3000
        assert ws.closing["reason"] == "unauthenticated"
        assert [one["watch"] for one in ws.closing["watches"]] == [watch]


async def test_more_messages_at_once_than_are_kept_end_the_connection_and_none_is_carried_out(front, monkeypatch):
    monkeypatch.setattr(wire, "MOST_QUEUED", 16)
    async with raw(front) as (reader, writer):
        before = len(front.calls("CancelRun"))
        writer.write(frame(1, b'{"id":"a","type":"cancel","run_id":"r"}') * 5000)
        assert await close_code(reader) == 1008
        assert len(front.calls("CancelRun")) == before


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        (frame(9, b"x" * 125) * 5000, 1008),
        (frame(1, b"", fin=False) + frame(0, b"", fin=False) * 5000, 1008),
        (frame(1, b'{"id": "n", "text": "\xed\xa0\xbd"}'), 1007),
        (frame(1, b"\xff\xfe"), 1007),
        (frame(3, b"x"), 1002),
        (frame(0, b"x"), 1002),
        (frame(2, b'{"id":"b","type":"cancel","run_id":"r"}'), 1003),
    ],
    ids=["pings", "fragments", "surrogates", "no-utf8", "opcode", "continuation", "binary"],
)
async def test_bytes_that_are_no_conversation_end_the_connection_with_their_code(front, frames, code):
    before = len(front.calls("CancelRun"))
    async with raw(front) as (reader, writer):
        writer.write(frames)
        assert await close_code(reader) == code
    assert len(front.calls("CancelRun")) == before


async def test_a_handshake_that_websockets_cannot_read_is_refused(front):
    for head, status in ((b"x-long: " + b"x" * 9000, b"431"), (b"x: 1\r\n" * 200, b"431"), (b"x\xe9: 1", b"400"), (b"x: \x01", b"400")):
        async with raw(front, head=head.rstrip() + b"\r\n") as (reader, _):
            async with asyncio.timeout(10):
                assert (await reader.readline()).startswith(b"HTTP/1.1 " + status), head[:20]
                await reader.read()
    async with aiohttp.ClientSession(front.url, headers=front.headers()) as http, http.get("/v1/agents") as response:
        assert response.status == 200
