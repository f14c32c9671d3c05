"""The provider client's parsing: headers and URLs that are none, and answers cut anywhere."""

import asyncio
import itertools
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.llm_gateway.adapters.http_connection import BrokenOff, Connection, Unreachable, request_head, target_of
from services.llm_gateway.adapters.http_upstream import shown
from tests.unit.llm_gateway.http_client.conftest import WHOLE


@pytest.mark.parametrize("headers", [{"x": "a\r\nevil: 1"}, {"x": "a\nb"}, {"x\r\ny": "a"}, {"x": "a\0"}, {"x": "字"}])
def test_a_header_that_would_be_more_than_one_never_leaves(headers):
    with pytest.raises(ValueError):
        request_head(target_of("http://h/"), headers, 0)


@given(st.dictionaries(st.text(max_size=8), st.text(max_size=20), max_size=4))
def test_whatever_headers_hold_the_head_has_one_line_for_each(headers):
    try:
        head = request_head(target_of("http://h/p"), headers, 3)
    except ValueError:
        return
    assert head.endswith(b"\r\n\r\n")
    assert len(head[:-4].split(b"\r\n")) == 3 + len(headers)


@pytest.mark.parametrize("url", ["ftp://h/", "http://", "http://h/a b", "http://h/\r\nx: y", "nothing", "http://h:99999/"])
def test_a_url_that_is_none_is_refused(url):
    with pytest.raises(ValueError):
        target_of(url)


class _Wire:
    """A transport that only counts."""

    def __init__(self):
        self.aborted = False

    def write(self, data):
        pass

    def abort(self):
        self.aborted = True

    def is_closing(self):
        return self.aborted

    def pause_reading(self):
        pass

    def resume_reading(self):
        pass


STREAM = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"10\r\ndata: {\"a\": 1}\n\n\r\n6\r\n: hi\n\n\r\n0\r\n\r\n"
)  # fmt: skip


@settings(max_examples=200)
@given(answer=st.sampled_from([WHOLE, STREAM, b"HTTP/1.1 100 Continue\r\n\r\n" + WHOLE]), cuts=st.lists(st.integers(1, 150), max_size=12))
def test_an_answer_may_be_cut_anywhere_on_the_wire(answer, cuts):
    async def work():
        connection = Connection(asyncio.get_running_loop())
        connection.connection_made(_Wire())
        connection.send(b"", b"")
        places = sorted({min(cut, len(answer)) for cut in cuts} | {0, len(answer)})
        for begin, end in itertools.pairwise(places):
            assert not connection.complete
            connection.data_received(answer[begin:end])
        assert connection.complete
        assert connection.usable
        body = b""
        while read := await connection.read(time.monotonic() + 1):
            body += read
        return body

    assert asyncio.run(work()) == (b'data: {"a": 1}\n\n: hi\n\n' if answer is STREAM else b"hello")


@settings(max_examples=300)
@given(
    st.lists(
        st.one_of(st.binary(max_size=40), st.sampled_from([b"HTTP/1.1 200 OK\r\n", b"\r\n", b"content-length: 3\r\n", WHOLE])), max_size=8
    )
)
def test_no_bytes_of_a_server_raise_anything_but_the_clients_own_errors(pieces):
    async def work():
        connection = Connection(asyncio.get_running_loop())
        connection.connection_made(_Wire())
        connection.send(b"", b"")
        for piece in pieces:
            connection.data_received(piece)
        connection.connection_lost(None)
        try:
            await connection.head(time.monotonic() + 1)
            while await connection.read(time.monotonic() + 1):
                pass
        except (Unreachable, BrokenOff):
            pass

    asyncio.run(work())


def test_an_address_in_a_trace_holds_no_secret():
    assert shown("http://user:pw@up:8000/v1/x?key=1") == "http://up:8000/v1/x"
    assert shown("https://up/a@b") == "https://up/a@b"
