"""What headers say of contents and of files: media types with their parameters, names of files, ranges and entity tags.

media_type('text/plain; charset="utf-8"')       # ("text/plain", {"charset": "utf-8"})
disposition("bär.png", "image/png", "b1")       # inline; filename="b_r.png"; filename*=UTF-8''b%C3%A4r.png
byte_range("bytes=5-", 10)                      # (5, 9)
"""

import re
import unicodedata
from collections.abc import Mapping
from urllib.parse import quote, unquote_to_bytes

from services.common.errors import InvalidInput
from services.gateway.refusals import RangeNotSatisfiable
from services.gateway.surfaces.native.blobs_models import ANY_TYPE, ENDINGS, MOST_NAME_CHARS

_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_MEDIA = re.compile(rf"({_WORD}/{_WORD})[ \t]*", re.A)
_BEGINNING = re.compile(rf"({_WORD})[ \t]*", re.A)
# Each part begins where the one before cannot go on, so that no text makes it try again.
_PARAMETER = re.compile(rf';[ \t]*({_WORD})=(?:"((?:[^"\\]|\\.)*)"|({_WORD}))[ \t]*', re.A | re.S)
_ESCAPED = re.compile(r'\\(["\\])')
_RANGE = re.compile(r"bytes=[ \t]*(\d{0,18})-(\d{0,18})[ \t]*", re.A | re.I)
_TAG = re.compile(r'(W/)?("[\x21\x23-\x7e\x80-\xff]*")')
# Letters that turn the direction of what stands beside them: photo_gpj.exe is read as photo_exe.jpg.
_TURNING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
# The one that decoders put for what was no UTF-8, and the mark at the beginning of a text.
_NO_LETTERS = frozenset("\ufffd\ufeff")
_UNSEEN = frozenset({"Cc", "Cs", "Zl", "Zp"})
# Files of these are run by whatever opens them.
_RUN = frozenset({"html", "htm", "xhtml", "xht", "shtml", "mht", "mhtml", "svg", "svgz", "xml", "js", "mjs", "hta", "swf"})
_UNSAFE = re.compile(r"[^A-Za-z0-9._ ()+-]")
_INLINE = re.compile(r"image/(?:png|jpeg|gif|webp)|audio/.+")


def media_type(value: str) -> tuple[str, Mapping[str, str]]:
    """A Content-Type: the type in lower case, and its parameters. Raises ValueError where it is none, or names a parameter twice."""
    found = _MEDIA.match(value.strip())
    if found is None:
        raise ValueError("it is not a media type")
    return found.group(1).lower(), _parameters(value.strip(), found.end())


def parameters(value: str) -> tuple[str, Mapping[str, str]]:
    """A header of one word and parameters, as Content-Disposition. Raises ValueError where it is none, or names a parameter twice."""
    found = _BEGINNING.match(value.strip())
    if found is None:
        raise ValueError("it does not begin with a word")
    return found.group(1).lower(), _parameters(value.strip(), found.end())


def _parameters(value: str, at: int) -> dict[str, str]:
    found: dict[str, str] = {}
    while at < len(value):
        part = _PARAMETER.match(value, at)
        if part is None:
            raise ValueError("its parameters cannot be read")
        name, quoted, bare = part.group(1).lower(), part.group(2), part.group(3)
        if name in found:
            raise ValueError(f"it has two parameters {name}")
        found[name] = bare if quoted is None else _ESCAPED.sub(r"\1", quoted)
        at = part.end()
    return found


def extended(value: str) -> str:
    """The text of a parameter as `UTF-8''b%C3%A4r.png` (RFC 8187). Raises ValueError."""
    charset, _, rest = value.partition("'")
    _, apostrophe, text = rest.partition("'")
    if charset.lower() != "utf-8" or not apostrophe:
        raise ValueError("it is not in UTF-8")
    return unquote_to_bytes(text).decode("utf-8")


def file_name(value: str, field: str) -> str:
    """A name that a file may have for display: letters that nobody sees are left out, and spaces are those of the keyboard.

    Raises InvalidInput that names `field` for what would mislead.
    """
    if len(value) > MOST_NAME_CHARS:
        raise InvalidInput.field(field, f"must be at most {MOST_NAME_CHARS} characters")
    if "/" in value or "\\" in value or (value and not value.strip(". ")):
        raise InvalidInput.field(field, "must be the name of a file and not a path")
    if any(c in _TURNING or c in _NO_LETTERS or unicodedata.category(c) in _UNSEEN for c in value):
        raise InvalidInput.field(field, "must not have control characters, marks of direction or what is not valid UTF-8")
    return "".join(" " if c.isspace() else c for c in value if c.isspace() or c.isprintable())


def disposition(name: str, mime_type: str, blob_id: str) -> str:
    """A Content-Disposition (RFC 6266): images and sounds are shown, everything else is saved.

    The name is made safe again, whoever checked it before, and has an ending that its type has where its own would be run.
    """
    safe = "".join(c for c in name if c not in _TURNING and c not in _NO_LETTERS and unicodedata.category(c) not in _UNSEEN)
    safe = re.sub(r'[/\\:*?"<>|]', "_", safe).strip(". ")[:MOST_NAME_CHARS] or blob_id
    endings = ENDINGS.get(mime_type, ENDINGS[ANY_TYPE])
    ending = safe.rpartition(".")[2].lower() if "." in safe else ""
    if (not ending and mime_type != ANY_TYPE) or (ending in _RUN and ending not in endings):
        safe = f"{safe}.{endings[0]}"
    kind = "inline" if is_shown(mime_type) else "attachment"
    plain = _UNSAFE.sub("_", safe)
    also = "" if plain == safe else f"; filename*=UTF-8''{quote(safe, safe='')}"
    return f'{kind}; filename="{plain}"{also}'


def is_shown(mime_type: str) -> bool:
    """Whether a browser may show a content of this type by itself."""
    return mime_type in ENDINGS and _INLINE.fullmatch(mime_type) is not None


def has_tag(value: str, tag: str) -> bool:
    """Whether an If-None-Match names the entity tag `tag`, which is in quotes, or all."""
    return value.strip() == "*" or any(found.group(2) == tag for found in _TAG.finditer(value))


def byte_range(value: str, size: int) -> tuple[int, int] | None:
    """The first and last byte of the one range that a Range header asks for; None where it asks in another unit than bytes.

    Raises RangeNotSatisfiable for a range that has no byte of the content, for one that is none, and for several at once.
    """
    if not value.strip().lower().startswith("bytes="):
        return None
    found = _RANGE.fullmatch(value.strip())
    if found is None or not (found.group(1) or found.group(2)):
        raise RangeNotSatisfiable(size)
    first, last = found.groups()
    if not first:
        start, end = max(0, size - int(last)), size - 1
    else:
        start, end = int(first), min(int(last), size - 1) if last else size - 1
        if last and int(last) < start:
            raise RangeNotSatisfiable(size)
    if start >= size or start > end:
        raise RangeNotSatisfiable(size)
    return start, end
