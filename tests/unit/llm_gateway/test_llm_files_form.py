"""Forms of file uploads, cut anywhere."""

import time
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.llm_gateway.model_port.errors import Refused
from services.llm_gateway.model_port.multipart import MAX_HEAD_BYTES, Multipart, Part, boundary_of

BOUNDARY = b"b-7"


def read(pieces) -> list[tuple[str, str | None, bytes]]:
    """(name, filename, content) of each part."""
    form, found = Multipart(BOUNDARY), []
    for piece in pieces:
        for event in form.feed(piece):
            if isinstance(event, Part):
                found.append([event.name, event.filename, b""])
            else:
                found[-1][2] += event
    assert form.done
    return [tuple(part) for part in found]


# Contents made of what a boundary is made of are the hard ones.
contents = st.lists(st.sampled_from([b"\r", b"\n", b"-", b"b-7", b"\r\n--b-", b"\r\n--", b"x", b"\x00"]), max_size=12).map(b"".join)
names = st.text(st.characters(min_codepoint=33, blacklist_characters='"\\%', blacklist_categories=("Cs",)), min_size=1, max_size=10)


@given(
    st.lists(st.tuples(names, st.none() | names, contents), min_size=1, max_size=4),
    st.lists(st.integers(0, 400), max_size=6),
    st.booleans(),
)
def test_every_part_comes_whole_however_the_network_cuts_the_form(parts, cuts, preamble):
    parts = [(name, filename, content) for name, filename, content in parts if b"\r\n--b-7" not in b"\r\n" + content]
    raw = b"what comes before is nobody's\r\n" if preamble else b""
    for name, filename, content in parts:
        more = "" if filename is None else f'; filename="{filename}"'
        raw += b"--" + BOUNDARY + f'\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + content + b"\r\n"
    raw += b"--" + BOUNDARY + b"--\r\nwhat comes behind neither"
    edges = sorted({0, len(raw), *(cut for cut in cuts if cut < len(raw))})
    assert read(raw[a:b] for a, b in pairwise(edges)) == parts
    assert read(raw[n : n + 1] for n in range(len(raw))) == parts


@given(st.binary(max_size=300), st.integers(1, 50))
def test_no_bytes_do_more_than_be_refused(raw, size):
    form = Multipart(b"x")
    with suppress(Refused):
        for at in range(0, len(raw), size):
            list(form.feed(raw[at : at + size]))
            assert len(form._held) <= size + MAX_HEAD_BYTES


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        ("multipart/form-data; boundary=abc", b"abc"),
        ('Multipart/Form-Data; charset=utf-8; boundary="a b;c"', b"a b;c"),
        ("multipart/form-data;boundary=abc; charset=utf-8", b"abc"),
    ],
)
def test_the_boundary_is_found(content_type, expected):
    assert boundary_of(content_type) == expected


@pytest.mark.parametrize(
    "content_type", ["", "application/json", "multipart/form-data", "multipart/mixed; boundary=a", "multipart/form-data; boundary="]
)
def test_what_is_no_form_is_refused(content_type):
    with pytest.raises(Refused) as raised:
        boundary_of(content_type)
    assert raised.value.status == 415


def test_names_are_read_as_browsers_and_sdks_write_them():
    head = b'content-disposition:form-data;name="a%22b" ; filename="x\\"y.jsonl"'
    raw = b"--b-7\r\nX: y\r\n" + head + b"\r\nContent-Type: text/plain\r\n\r\n\r\n--b-7--"
    assert read([raw]) == [('a"b', 'x"y.jsonl', b"")]


def test_a_long_word_in_a_head_does_not_keep_the_loop_busy():
    head = b"--x\r\ncontent-disposition: form-data; " + b"a" * 15_000 + b"\r\n\r\n"
    began = time.process_time()
    with pytest.raises(Refused):
        list(Multipart(b"x").feed(head))
    # It took two seconds, and a form may have 32 parts.
    assert time.process_time() - began < 0.5
