"""Uploads as they come: the bare content and forms of one part, whole or in any pieces, good, broken, late and too large."""

import asyncio
import itertools
from contextlib import aclosing

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from opentelemetry import trace
from starlette.requests import Request

from services.common.errors import InvalidInput
from services.gateway.edge.body import body_pieces
from services.gateway.edge.exchange import SCOPE_KEY, Exchange
from services.gateway.refusals import BodyTimeout, BodyTooLarge, ClientGone, UnsupportedMediaType
from services.gateway.settings import Settings
from services.gateway.surfaces.native.blobs_uploading import MOST_HEAD_BYTES, PIECE_BYTES, opened, put_requests

LIMIT = 2048
SETTINGS = Settings(upload_limit_bytes=LIMIT, body_timeout_s=5.0, upload_timeout_s=5.0)
FORM = {"content-type": "multipart/form-data; boundary=b0"}
HEAD = b'Content-Disposition: form-data; name="file"; filename="a.txt"\r\nContent-Type: text/plain\r\n'


def form(content, head=HEAD, boundary=b"b0", end=b"--\r\n"):
    return b"--" + boundary + b"\r\n" + head + b"\r\n" + content + b"\r\n--" + boundary + end


class Wire:
    """A client that sends `pieces`, and then stops; `asked` is how many of them were read."""

    def __init__(self, pieces, *, then="end"):
        self.pieces, self.then, self.asked = list(pieces), then, 0

    async def receive(self):
        if self.asked < len(self.pieces):
            self.asked += 1
            more = self.asked < len(self.pieces) or self.then != "end"
            return {"type": "http.request", "body": self.pieces[self.asked - 1], "more_body": more}
        if self.then == "silence":
            await asyncio.Event().wait()
        return {"type": "http.disconnect"} if self.then == "gone" else {"type": "http.request", "body": b"", "more_body": False}


def split(content, at):
    """`content` cut at each of these places."""
    places = sorted({0, len(content), *(place % (len(content) + 1) for place in at)})
    return [content[begin:end] for begin, end in itertools.pairwise(places)] or [b""]


async def sent(wire, headers, settings=SETTINGS):
    """(start, content) as they go on to the orchestrator."""
    about = Exchange("r", "t", trace.INVALID_SPAN, {name: value for name, value in headers.items() if value is not None})
    request = Request({"type": "http", "method": "POST", "headers": [], SCOPE_KEY: about}, wire.receive)
    upload = await opened(request, settings)
    async with aclosing(put_requests(upload, "", "", "key")) as messages:
        found = [message async for message in messages]
    assert [message.WhichOneof("item") for message in found] == ["start"] + ["chunk"] * (len(found) - 1)
    assert all(0 < len(message.chunk) <= PIECE_BYTES for message in found[1:])
    return found[0].start, b"".join(message.chunk for message in found[1:])


def refused(wrong, wire, headers=FORM, settings=SETTINGS):
    with pytest.raises(wrong) as raised:
        asyncio.run(sent(wire, headers, settings))
    return raised.value


CUTS = st.lists(st.integers(0, 10_000), max_size=6)
# Much that looks like the boundary and is none.
CONTENT = st.lists(st.binary(max_size=8) | st.sampled_from([b"\r\n", b"--", b"\r\n--", b"\r\n--b", b"b0", b"\r\n-"]), max_size=12).map(
    b"".join
)


@given(CONTENT.filter(lambda content: b"\r\n--b0" not in content and content), CUTS)
@example(b"\r\n--b", [1, 2, 3])
def test_a_form_of_one_part_is_the_same_in_whatever_pieces_it_comes(content, at):
    start, found = asyncio.run(sent(Wire(split(form(content), at)), FORM))
    assert found == content
    assert (start.mime_type, start.name, start.idempotency_key) == ("text/plain", "a.txt", "key")


@given(st.binary(min_size=1, max_size=200), CUTS)
def test_a_bare_content_is_the_same_in_whatever_pieces_it_comes(content, at):
    start, found = asyncio.run(sent(Wire(split(content, at)), {"content-type": "application/zip"}))
    assert (start.mime_type, start.name, found) == ("application/zip", "", content)


def test_a_large_piece_goes_on_in_smaller_ones():
    large = Settings(upload_limit_bytes=4 * PIECE_BYTES)
    content = bytes(3 * PIECE_BYTES + 7)
    assert asyncio.run(sent(Wire([content]), {"content-type": "application/zip"}, large))[1] == content


@given(st.integers(0, len(form(b"some content")) - 3), CUTS)
def test_a_form_that_ends_early_is_refused_wherever_it_ends(length, at):
    assert refused(InvalidInput, Wire(split(form(b"some content")[:length], at))).reason == "INVALID_FORM"


PART = b'Content-Disposition: form-data; name="file"\r\n'
TYPED = b"Content-Type: text/plain\r\n"


@pytest.mark.parametrize(
    "body",
    [
        b"preamble\r\n" + form(b"x"),
        form(b"x") + b"epilogue",
        form(b"x", end=b"--\r\n\r\n"),
        form(b"x", end=b"\r\n" + HEAD + b"\r\ny\r\n--b0--\r\n"),
        form(b"x", end=b"oundary--"),
        form(b"x", boundary=b"b1"),
        form(b"x", head=TYPED),
        form(b"x", head=PART.replace(b"file", b"image") + TYPED),
        form(b"x", head=b"Content-Disposition: form-data\r\n" + TYPED),
        form(b"x", head=PART.replace(b"form-data", b"attachment") + TYPED),
        form(b"x", head=PART + PART + TYPED),
        form(b"x", head=PART.replace(b'"file"', b'"file"; name="file"') + TYPED),
        form(b"x", head=PART.replace(b'"file"', b'"file'[:5]) + TYPED),
        form(b"x", head=b"Content-Disposition : form-data; name=file\r\n" + TYPED),
        form(b"x", head=PART + b" folded\r\n" + TYPED),
        form(b"x", head=PART + b"X: a\rb\r\n" + TYPED),
        form(b"x", head=PART + b"X: a\0b\r\n" + TYPED),
        form(b"x", head=PART + b"X: \xff\r\n" + TYPED),
        form(b"x", head=PART.replace(b"\r\n", b"\n") + TYPED),
        form(b"x", head=PART + TYPED + b"X: " + b"y" * MOST_HEAD_BYTES + b"\r\n"),
        form(b"x", head=PART[:-2] + b"; filename*=latin-1''%E4\r\n" + TYPED),
    ],
)
@pytest.mark.parametrize("cuts", [[], range(1, 300)])
def test_a_form_that_is_broken_or_of_another_shape_is_refused(body, cuts):
    assert refused(InvalidInput, Wire(split(body, cuts))).reason == "INVALID_FORM"


@pytest.mark.parametrize("boundary", ["", '""', "é", '"ends with a space "', "x" * 71, '"a\\\r\nb"'])
def test_a_boundary_that_is_none_is_refused(boundary):
    error = refused(InvalidInput, Wire([form(b"x")]), {"content-type": f"multipart/form-data; boundary={boundary}"})
    assert error.reason in ("INVALID_FORM", "UNSUPPORTED_MEDIA_TYPE")
    refused(InvalidInput, Wire([form(b"x")]), {"content-type": "multipart/form-data"})


@pytest.mark.parametrize(
    "name", [b"../../etc/passwd", b"C:\\\\x.txt", b"a\tb", "photo\u202egpj.exe".encode(), b"x" * 300, "\ufffd".encode()]
)
def test_the_name_of_a_part_must_be_that_of_a_file(name):
    head = b'Content-Disposition: form-data; name="file"; filename="' + name + b'"\r\n' + TYPED
    error = refused(InvalidInput, Wire([form(b"x", head=head)]))
    assert [violation.field for violation in error.violations] == ["filename"] or error.reason == "INVALID_FORM"


def test_a_name_that_is_extended_wins():
    head = b"Content-Disposition: form-data; name=file; filename=\"a.txt\"; filename*=UTF-8''b%C3%A4r.txt\r\n" + TYPED
    assert asyncio.run(sent(Wire([form(b"x", head=head)]), FORM))[0].name == "bär.txt"


@pytest.mark.parametrize(
    ("headers", "part"),
    [
        ({"content-type": None}, b""),
        ({"content-type": "text/html"}, b""),
        ({"content-type": "image/svg+xml"}, b""),
        ({"content-type": "application/x-www-form-urlencoded"}, b""),
        ({"content-type": "multipart/mixed; boundary=b0"}, b""),
        ({"content-type": "text/plain; charset=latin-1"}, b""),
        ({"content-type": "text/plain", "content-encoding": "gzip"}, b""),
        ({**FORM, "content-encoding": "br"}, b""),
        (FORM, PART),
        (FORM, PART + b"Content-Type: text/html\r\n"),
        (FORM, PART + b"Content-Type: multipart/mixed; boundary=b1\r\n"),
        (FORM, PART + TYPED + b"Content-Transfer-Encoding: base64\r\n"),
        (FORM, PART + TYPED + b"Content-Encoding: gzip\r\n"),
    ],
)
def test_types_and_codings_that_are_not_taken_are_refused_as_such(headers, part):
    wire = Wire([form(b"x", head=part) if part else b"x"])
    assert refused(UnsupportedMediaType, wire, headers).http_status == 415
    assert wire.asked == (1 if part else 0)


@pytest.mark.parametrize("body", [[b""], [b"", b""]])
def test_what_has_no_content_is_refused(body):
    assert refused(InvalidInput, Wire(body), {"content-type": "text/plain"}).reason == "EMPTY_BODY"
    assert refused(InvalidInput, Wire([form(b"")])).reason == "EMPTY_BODY"


def test_a_content_that_is_announced_as_too_large_is_refused_unread():
    for headers, size in (({"content-type": "text/plain"}, LIMIT + 1), (FORM, LIMIT + 100_000)):
        wire = Wire([b"x"] * 5)
        assert refused(BodyTooLarge, wire, {**headers, "content-length": str(size)}).http_status == 413
        assert wire.asked == 0


def test_a_content_that_is_not_announced_is_cut_at_the_limit():
    wire = Wire([b"x" * 512] * 100)
    refused(BodyTooLarge, wire, {"content-type": "text/plain"})
    assert wire.asked == LIMIT // 512 + 1
    refused(BodyTooLarge, Wire([form(b"x" * (LIMIT + 1))]))
    assert len(asyncio.run(sent(Wire([form(b"x" * LIMIT)]), FORM))[1]) == LIMIT
    wire = Wire([form(b"x"), *[b"y" * 512] * 100])
    assert refused(InvalidInput, wire).reason == "INVALID_FORM"
    assert wire.asked <= 2


@pytest.mark.parametrize("begun", [[], [form(b"x" * 600)[:70]], [form(b"x" * 600)[:400]]])
def test_a_client_that_falls_silent_or_leaves_is_given_up(begun):
    quick = Settings(upload_limit_bytes=LIMIT, body_timeout_s=0.05)
    assert refused(BodyTimeout, Wire(begun, then="silence"), FORM, quick).http_status == 408
    refused(ClientGone, Wire(begun, then="gone"), FORM)


def test_a_client_that_sends_little_at_a_time_has_an_end_as_well():
    async def drop():
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def read():
        async with aclosing(body_pieces(drop, None, LIMIT, 5.0, 0.3)) as pieces:
            return [piece async for piece in pieces]

    with pytest.raises(BodyTimeout):
        asyncio.run(read())
