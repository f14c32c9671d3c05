"""What may be kept as a blob: types by their first bytes, sizes of images by their headers, names, and links that prove one blob."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import InvalidInput
from services.orchestrator.blobs import kinds, links

WEBP = b"RIFF\x24\x00\x00\x00WEBP"


def png(width, height):
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBB", 13, b"IHDR", width, height, 8, 2, 0, 0, 0) + b"\0" * 8


def gif(width, height):
    return b"GIF89a" + struct.pack("<HH", width, height) + b"\0\0\0;"


def jpeg(width, height, frame=0xC0, before=b""):
    return b"\xff\xd8" + before + struct.pack(">BBHBHH", 0xFF, frame, 11, 8, height, width) + b"\1\1\x11\0\xff\xd9"


def lossy(width, height):
    return WEBP + b"VP8 " + struct.pack("<I", 20) + b"\x30\x01\x00\x9d\x01\x2a" + struct.pack("<HH", width, height) + b"\0" * 8


def lossless(width, height):
    return WEBP + b"VP8L" + struct.pack("<IBI", 20, 0x2F, (width - 1) | (height - 1) << 14) + b"\0" * 8


def extended(width, height):
    return WEBP + b"VP8X" + struct.pack("<II", 10, 0) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little") + b"\0" * 8


EXIF = struct.pack(">BBH", 0xFF, 0xE1, 12) + b"Exif\0\0\xff\xc0ab"
IMAGES = [
    ("image/png", png), ("image/gif", gif), ("image/jpeg", jpeg), ("image/webp", lossy), ("image/webp", lossless), ("image/webp", extended),
    ("image/jpeg", lambda *size: jpeg(*size, frame=0xC2)), ("image/jpeg", lambda *size: jpeg(*size, before=EXIF + b"\xff")),
]  # fmt: skip
GOOD = {
    "image/png": png(3, 4), "image/jpeg": jpeg(3, 4), "image/gif": gif(3, 4), "image/webp": lossy(3, 4),
    "audio/mpeg": b"\xff\xfb\x90\x64" + b"\0" * 400, "audio/wav": b"RIFF\x24\0\0\0WAVEfmt ", "audio/ogg": b"OggS\0\2" + b"\0" * 20,
    "application/pdf": b"%PDF-1.7\n%\xe2\xe3", "application/zip": b"PK\x03\x04\x14\0",
}  # fmt: skip


@pytest.mark.parametrize(("mime_type", "made"), IMAGES)
def test_an_images_own_header_tells_its_size(mime_type, made):
    assert kinds.size_of(made(640, 481), mime_type) == (640, 481)
    kinds.check(made(640, 481), mime_type, "a")


@pytest.mark.parametrize(("mime_type", "made"), IMAGES)
def test_one_that_claims_too_many_pixels_is_refused_and_one_below_is_not(mime_type, made):
    kinds.check(made(10_000, 5_000), mime_type, "a")
    with pytest.raises(InvalidInput, match="not taken") as refused:
        kinds.check(made(10_000, 5_001), mime_type, "a")
    assert "pixels" in refused.value.violations[0].description


@pytest.mark.parametrize(("mime_type", "made"), IMAGES)
def test_one_that_ends_within_its_header_is_refused_and_breaks_nothing(mime_type, made):
    whole = made(640, 481)
    for end in range(1, len(whole)):
        if kinds.size_of(whole[:end], mime_type) is None:
            with pytest.raises(InvalidInput):
                kinds.check(whole[:end], mime_type, "a")
        else:
            assert kinds.size_of(whole[:end], mime_type) == (640, 481)


@pytest.mark.parametrize(("mime_type", "made"), [("image/png", png), ("image/gif", gif), ("image/jpeg", jpeg), ("image/webp", lossy)])
def test_one_of_no_pixels_is_refused(mime_type, made):
    with pytest.raises(InvalidInput):
        kinds.check(made(0, 5), mime_type, "a")


@given(st.sampled_from(sorted(kinds.IMAGES)), st.binary(max_size=64))
def test_whatever_follows_the_first_bytes_breaks_nothing(mime_type, rest):
    kinds.size_of(GOOD[mime_type][:12] + rest, mime_type)
    kinds.size_of(GOOD[mime_type][:2] + rest, mime_type)


def test_each_type_is_taken_by_its_own_bytes_and_as_no_other_that_has_any():
    for named in GOOD:
        for is_, content in GOOD.items():
            if is_ == named:
                kinds.check(content, named, "a")
            else:
                with pytest.raises(InvalidInput):
                    kinds.check(content, named, "a")


@pytest.mark.parametrize("mime_type", ["text/plain", "text/csv", "text/markdown"])
def test_text_is_text(mime_type):
    kinds.check("größer, 数据\n".encode(), mime_type, "a.txt")
    for content in (b"\xff\xfe", b"a\0b", "ä".encode()[:1], *(GOOD[name] for name in ("image/png", "application/zip", "audio/ogg"))):
        with pytest.raises(InvalidInput):
            kinds.check(content, mime_type, "a.txt")


def test_json_begins_as_json():
    for content in (b'{"a": 1}', b" [1]", b'"x"', b"-1", b"null"):
        kinds.check(content, "application/json", "a.json")
    for content in (b"<html>", b"PK\x03\x04", b'{"a": "\0"}', b"   "):
        with pytest.raises(InvalidInput):
            kinds.check(content, "application/json", "a.json")


@pytest.mark.parametrize("mime_type", ["image/svg+xml", "text/html", "", "IMAGE/PNG", "image/png; a=b", "application/xhtml+xml", "image/*"])
def test_what_could_be_run_and_what_is_not_known_is_not_taken(mime_type):
    with pytest.raises(InvalidInput):
        kinds.check(b"<svg/>", mime_type, "a")


def test_types_are_told_without_parameters():
    assert kinds.mime_of(" Text/Plain; charset=utf-8") == "text/plain"


def test_nothing_and_too_much_are_refused():
    with pytest.raises(InvalidInput):
        kinds.check(b"", kinds.OPAQUE, "a")
    kinds.check(bytes(kinds.MOST_BYTES), kinds.OPAQUE, "a")
    with pytest.raises(InvalidInput) as refused:
        kinds.check(bytes(kinds.MOST_BYTES + 1), kinds.OPAQUE, "a")
    assert refused.value.reason == "BLOB_TOO_LARGE"


@pytest.mark.parametrize("name", ["a/b", "..", ".", "a\\b", "a\nb", "a\0b", "a\r\nX: y", "a\u202eb", "x" * 256, "\x7f"])
def test_names_are_no_paths_and_hold_nothing_unseen(name):
    with pytest.raises(InvalidInput):
        kinds.check(b"x", "text/plain", name)


@given(st.text())
def test_what_is_shown_of_any_name_may_be_kept(name):
    kinds.check(b"x", "text/plain", kinds.shown_name(name))


def test_what_is_shown_of_a_path_is_its_end():
    assert kinds.shown_name("../../etc/passwd") == kinds.shown_name("C:\\temp\\passwd") == "passwd"
    assert kinds.shown_name("a/..") == ""


LINK = links.Link("acme", "blob_" + "0" * 32, 1_800_000_000_000)
SECRET = b"s" * 32


def test_a_link_names_its_blob_and_is_proved_by_its_secret_alone():
    token = links.signed(LINK, SECRET)
    assert links.named(token) == LINK
    assert links.proved(token, LINK, SECRET)
    assert not links.proved(token, LINK, b"t" * 32)
    assert len(token.partition(".")[2]) == 43, "256 bit"


def test_a_link_with_any_character_changed_left_out_or_put_in_proves_nothing():
    token = links.signed(LINK, SECRET)
    changed = {token[:at] + other + token[at + 1 :] for at in range(len(token)) for other in "Aa_-.9="} - {token}
    changed |= {token[:at] + token[at + 1 :] for at in range(len(token))} - {token}
    changed |= {token + more for more in ("=", "A", "==", ".", " ")} | {token.upper(), token[::-1], ""}
    for one in changed:
        named = links.named(one)
        assert named is None or not links.proved(one, named, SECRET), one
        assert not links.proved(one, LINK, SECRET), one


@pytest.mark.parametrize(
    "told", [[1, "b", 2], ["a", "b", "c"], ["a", "b"], ["a", "b", True], ["a", "b", 1.5], {}, "x", None, ["a", "b", 1, 2]]
)
def test_what_names_no_link_is_none(told):
    assert links.named(links.signed(told, SECRET) if isinstance(told, list) else "e30.x") is None


@given(st.text(max_size=80))
def test_no_text_breaks_a_look_at_it(token):
    links.named(token)
    links.named("x" * 2_000)


def test_a_link_of_one_blob_is_none_of_another():
    token = links.signed(LINK, SECRET)
    for other in (LINK._replace(blob_id="blob_" + "1" * 32), LINK._replace(tenant="globex"), LINK._replace(expires_ms=LINK.expires_ms + 1)):
        forged = f"{links.signed(other, b'x' * 32).partition('.')[0]}.{token.partition('.')[2]}"
        assert links.named(forged) == other
        assert not links.proved(forged, other, SECRET)
