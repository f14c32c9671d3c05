"""Which contents are taken as blobs, and what their own first bytes say. Nothing is decoded, and nothing is opened."""

import struct
from collections.abc import Callable, Mapping

from services.common.errors import FieldViolation, InvalidInput

MOST_BYTES = 25 * 1024 * 1024
MOST_NAME = 255
# An image of more takes too much memory wherever it is shown: 200 MB of four bytes a pixel.
MOST_PIXELS = 50_000_000
OPAQUE = "application/octet-stream"


def _text(content: bytes) -> bool:
    if b"\0" in content:
        return False
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def _mpeg(content: bytes) -> bool:
    if content.startswith(b"ID3"):
        return True
    # Eleven bits of synchronisation, then fields of which one value each is no MPEG audio: version, layer, bit rate, sampling rate.
    if len(content) < 4 or content[0] != 0xFF or content[1] & 0xE0 != 0xE0:
        return False
    version, layer, rate, sampling = content[1] >> 3 & 3, content[1] >> 1 & 3, content[2] >> 4, content[2] >> 2 & 3
    return version != 1 and layer != 0 and rate != 15 and sampling != 3


_BEGINNINGS: Mapping[str, Callable[[bytes], bool]] = {
    "image/png": lambda content: content.startswith(b"\x89PNG\r\n\x1a\n"),
    "image/jpeg": lambda content: content.startswith(b"\xff\xd8\xff"),
    "image/gif": lambda content: content.startswith((b"GIF87a", b"GIF89a")),
    "image/webp": lambda content: content.startswith(b"RIFF") and content[8:12] == b"WEBP",
    "audio/mpeg": _mpeg,
    "audio/wav": lambda content: content.startswith(b"RIFF") and content[8:12] == b"WAVE",
    "audio/ogg": lambda content: content.startswith(b"OggS"),
    "application/pdf": lambda content: content.startswith(b"%PDF-"),
    "application/zip": lambda content: content.startswith((b"PK\x03\x04", b"PK\x05\x06")),
    "text/plain": _text,
    "text/csv": _text,
    "text/markdown": _text,
    "application/json": lambda content: content.lstrip(b" \t\r\n")[:1] in tuple(b"%c" % c for c in b'{["-0123456789tfn') and _text(content),
    OPAQUE: lambda content: True,
}
TYPES = frozenset(_BEGINNINGS)
IMAGES = frozenset(name for name in TYPES if name.startswith("image/"))


def mime_of(named: str) -> str:
    """A MIME type as it is kept: without parameters, in lower case."""
    return named.partition(";")[0].strip().lower()


def check_named(mime_type: str, name: str) -> None:
    """Raises InvalidInput where no content may be kept as this type, or under this name."""
    wrong = _wrong_name(name)
    if mime_type not in TYPES:
        wrong.append(FieldViolation("mime_type", f"must be one of {', '.join(sorted(TYPES))}"))
    if wrong:
        raise _refused(wrong)


def check(content: bytes, mime_type: str, name: str) -> None:
    """Raises InvalidInput where this content may not be kept as this type, under this name."""
    check_named(mime_type, name)
    if len(content) > MOST_BYTES:
        raise too_large()
    wrong = ""
    if not content:
        wrong = "is empty"
    elif not _BEGINNINGS[mime_type](content):
        wrong = f"is no {mime_type}, by its own bytes"
    elif mime_type in IMAGES:
        size = size_of(content, mime_type)
        if size is None or 0 in size:
            wrong = "is an image whose header tells no size"
        elif size[0] * size[1] > MOST_PIXELS:
            wrong = f"is an image of more than {MOST_PIXELS:,} pixels"
    if wrong:
        raise _refused([FieldViolation("content", wrong)])


def _refused(wrong: list[FieldViolation]) -> InvalidInput:
    return InvalidInput("the content is not taken", reason="BLOB_REFUSED", violations=wrong)


def too_large() -> InvalidInput:
    """The error for a content that is too large."""
    wrong = FieldViolation("content", f"must be at most {MOST_BYTES:,} bytes")
    return InvalidInput("the content is too large", reason="BLOB_TOO_LARGE", violations=[wrong], metadata={"limit": str(MOST_BYTES)})


def _wrong_name(name: str) -> list[FieldViolation]:
    if len(name) > MOST_NAME:
        return [FieldViolation("name", f"must be at most {MOST_NAME} characters")]
    if name in (".", "..") or any(character in "/\\" or not character.isprintable() for character in name):
        return [FieldViolation("name", "must be a file's name, without a path and of printable characters")]
    return []


def shown_name(name: str) -> str:
    """What of a name that somebody else gave may be shown as a file's name; may be empty."""
    last = name.replace("\\", "/").rpartition("/")[2]
    kept = "".join(character for character in last if character.isprintable())[:MOST_NAME]
    return "" if kept in (".", "..") else kept


def size_of(content: bytes, mime_type: str) -> tuple[int, int] | None:
    """(width, height) in pixels that an image's header claims; None where it claims none."""
    try:
        return _SIZES[mime_type](content)
    except (struct.error, IndexError):
        # It ends within its header.
        return None


def _png(content: bytes) -> tuple[int, int] | None:
    return struct.unpack(">II", content[16:24]) if content[12:16] == b"IHDR" else None


def _gif(content: bytes) -> tuple[int, int] | None:
    return struct.unpack("<HH", content[6:10])


def _jpeg(content: bytes) -> tuple[int, int] | None:
    at = 2
    while content[at] == 0xFF:
        marker = content[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if marker in (0xD9, 0xDA):
            return None
        if marker == 0x01 or 0xD0 <= marker <= 0xD7:
            at += 2
            continue
        (length,) = struct.unpack(">H", content[at + 2 : at + 4])
        # The frame's header, of whatever way of coding; the three between are tables.
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">HH", content[at + 5 : at + 9])
            return width, height
        if length < 2:
            return None
        at += 2 + length
    return None


def _webp(content: bytes) -> tuple[int, int] | None:
    kind = content[12:16]
    if kind == b"VP8X":
        width, height = (int.from_bytes(content[at : at + 3], "little") + 1 for at in (24, 27))
        return (width, height) if len(content) >= 30 else None
    if kind == b"VP8L" and content[20] == 0x2F:
        (bits,) = struct.unpack("<I", content[21:25])
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 " and content[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack("<HH", content[26:30])
        return width & 0x3FFF, height & 0x3FFF
    return None


_SIZES: Mapping[str, Callable[[bytes], tuple[int, int] | None]] = {
    "image/png": _png, "image/jpeg": _jpeg, "image/gif": _gif, "image/webp": _webp,
}  # fmt: skip
