"""Media types, names of files, ranges and entity tags of blobs, as headers have them."""

import re
import unicodedata
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import InvalidInput
from services.gateway.refusals import RangeNotSatisfiable
from services.gateway.surfaces.native.blobs_headers import (
    byte_range,
    disposition,
    extended,
    file_name,
    has_tag,
    is_shown,
    media_type,
    parameters,
)
from services.gateway.surfaces.native.blobs_models import ENDINGS, MOST_NAME_CHARS


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("image/PNG", ("image/png", {})),
        (' text/plain; Charset="utf-8" ', ("text/plain", {"charset": "utf-8"})),
        ("audio/ogg;codecs=opus", ("audio/ogg", {"codecs": "opus"})),
        (r'multipart/form-data; boundary="a\"b\\c;d"', ("multipart/form-data", {"boundary": 'a"b\\c;d'})),
    ],
)
def test_a_media_type_is_read_with_its_parameters(value, found):
    assert media_type(value) == found


@pytest.mark.parametrize(
    "value", ["", "png", "image/", "image/png,text/html", "a/b; c", "a/b; c=d; C=e", 'a/b; c="d', "a/b; c=é", "a/b;;", 'a/b; c="d"e'],
)  # fmt: skip
def test_what_is_no_media_type_is_refused(value):
    with pytest.raises(ValueError):
        media_type(value)


def test_a_text_of_an_extended_parameter_is_utf8():
    assert extended("UTF-8''b%C3%A4r%20.png") == "bär .png"
    for wrong in ("latin-1''b%E4r", "utf-8''%C3", "utf-8'b", "b"):
        with pytest.raises(ValueError):
            extended(wrong)


MISLEADING = [
    "a/b", "..\\b", "/etc/passwd", "C:\\x", ".", "..", "a\0b", "a\r\nContent-Type: text/html", "a\x7f", "a\x85b", "photo\u202egpj.exe",
    "a\u2066b", "\ufeffa", "b\ufffdr", "\ud800", "a\u2028b", "x" * (MOST_NAME_CHARS + 1),
]  # fmt: skip


@pytest.mark.parametrize("name", MISLEADING)
def test_a_name_that_misleads_is_refused_by_its_field(name):
    with pytest.raises(InvalidInput) as refused:
        file_name(name, "filename")
    assert [violation.field for violation in refused.value.violations] == ["filename"]


def test_a_name_is_kept_but_for_what_nobody_sees():
    for name in ("", "bär 2.png", 'a"b;c.txt', "x" * MOST_NAME_CHARS, "写真.jpg"):
        assert file_name(name, "name") == name
    assert file_name("at 3.04\u202fPM\u200b.png", "name") == "at 3.04 PM.png"


SAVED = re.compile(r'(inline|attachment); filename="([A-Za-z0-9._ ()+-]+)"(?:; filename\*=UTF-8\'\'([A-Za-z0-9._~%-]+))?')


@given(st.text(max_size=300) | st.sampled_from(MISLEADING), st.sampled_from([*ENDINGS, "text/html", "image/svg+xml"]))
def test_whatever_the_name_the_header_is_one_line_and_the_file_is_none_that_runs(name, mime_type):
    found = SAVED.fullmatch(disposition(name, mime_type, "blob_1"))
    assert found is not None
    kind, plain, more = found.groups()
    whole = unquote(more, errors="strict") if more else plain
    assert kind == ("inline" if mime_type in ENDINGS and mime_type.split("/")[0] in ("image", "audio") else "attachment")
    assert not set('/\\"\r\n\0\u202e') & set(whole)
    assert not any(unicodedata.category(c) in ("Cc", "Cs") for c in whole)
    assert whole.strip(". ") == whole != ""
    assert whole.rpartition(".")[2].lower() not in ("html", "htm", "svg", "xml", "js", "hta")


@pytest.mark.parametrize(
    ("name", "mime_type", "header"),
    [
        ("chart.png", "image/png", 'inline; filename="chart.png"'),
        ("bär.png", "image/png", "inline; filename=\"b_r.png\"; filename*=UTF-8''b%C3%A4r.png"),
        ("", "audio/mpeg", 'inline; filename="blob_1.mp3"'),
        ("README", "text/markdown", 'attachment; filename="README.md"'),
        ("x.HTML", "text/plain", 'attachment; filename="x.HTML.txt"'),
        ("x.svg", "application/octet-stream", 'attachment; filename="x.svg.bin"'),
        ("data.tar.gz", "application/octet-stream", 'attachment; filename="data.tar.gz"'),
        ('a"b', "application/zip", 'attachment; filename="a_b.zip"'),
        ("..hidden.csv.", "text/csv", 'attachment; filename="hidden.csv"'),
    ],
)
def test_names_are_those_of_files_of_their_type(name, mime_type, header):
    assert disposition(name, mime_type, "blob_1") == header


def test_only_images_and_sounds_are_shown():
    assert {kind for kind in ENDINGS if is_shown(kind)} == {
        "image/png", "image/jpeg", "image/gif", "image/webp", "audio/mpeg", "audio/wav", "audio/ogg"
    }  # fmt: skip
    assert not is_shown("image/svg+xml")
    assert not is_shown("text/html")


@given(st.integers(1, 50), st.integers(0, 60), st.integers(0, 60))
def test_a_range_is_that_of_a_slice(size, first, last):
    content = bytes(range(size))
    for header, wanted in (
        (f"bytes={first}-{last}", content[first : last + 1] if first <= last else b""),
        (f"bytes={first}-", content[first:]),
        (f"bytes=-{last}", content[-last:] if last else b""),
    ):
        if wanted:
            start, end = byte_range(header, size)
            assert content[start : end + 1] == wanted
        else:
            with pytest.raises(RangeNotSatisfiable) as refused:
                byte_range(header, size)
            assert refused.value.size == size


@pytest.mark.parametrize("value", ["bytes=", "bytes=-", "bytes=a-b", "bytes=0-1,3-4", "bytes=1", "bytes=--1", "bytes=0-" + "9" * 30])
def test_several_ranges_and_none_are_refused(value):
    with pytest.raises(RangeNotSatisfiable):
        byte_range(value, 10)


def test_another_unit_is_no_range():
    assert byte_range("lines=1-2", 10) is None
    assert byte_range("Bytes=1-2", 10) == (1, 2)


def test_an_entity_tag_is_found_in_a_list():
    tag = '"abc"'
    for value in ('"abc"', 'W/"abc"', '"x", "abc"', "*", '"x",W/"abc" , "y"'):
        assert has_tag(value, tag)
    for value in ("", "abc", '"ab"', '"abcd"', 'W/"x"'):
        assert not has_tag(value, tag)


def test_a_header_of_one_word_is_read_as_one():
    assert parameters('form-data; name="file"; filename="a b.png"') == ("form-data", {"name": "file", "filename": "a b.png"})
    with pytest.raises(ValueError):
        parameters('form-data; name="file"; name="other"')
