"""What a request must be, field by field. Every failure is an InvalidInput that names the field."""

import base64
import binascii
import re

from services.common.errors import InvalidInput

MAX_ID_CHARS = 256
MAX_QUERY_CHARS = 8_000
MAX_TITLE_CHARS = 512
MAX_TURN_BYTES = 512 * 1024
MAX_TURNS = 100
MAX_ERASED_SESSIONS = 1_000
MAX_FORGOTTEN = 1_000
MAX_MEMORIES = 100
MAX_MEMORY_CHARS = 8_000
MAX_DOCUMENT_BYTES = 2 * 1024 * 1024
MAX_DOCUMENT_IDS = 100
CONTENT_TYPES = ("text/plain", "text/markdown")
MEMORY_KINDS = ("fact", "episode")
_DOCUMENT_ID = re.compile(r"[A-Za-z0-9._-]{1,128}", re.ASCII)


def identifier(field: str, value: str) -> str:
    """An id that was made elsewhere: short and printable."""
    if not value:
        raise InvalidInput.field(field, "is required")
    if len(value) > MAX_ID_CHARS or not value.isprintable():
        raise InvalidInput.field(field, f"must be at most {MAX_ID_CHARS} printable characters")
    return value


def document_id(field: str, value: str) -> str:
    """A document id; the narrow alphabet leaves no room for wildcards."""
    if not _DOCUMENT_ID.fullmatch(value):
        raise InvalidInput.field(field, "must match [A-Za-z0-9._-]{1,128}")
    return value


def text(field: str, value: str, most: int) -> str:
    """A text that says something, of at most `most` characters."""
    if not value.strip():
        raise InvalidInput.field(field, "is required")
    if len(value) > most:
        raise InvalidInput.field(field, f"must be at most {most:,} characters")
    return value


def one_of(field: str, value: str, allowed: tuple[str, ...]) -> str:
    """One of a few words."""
    if value not in allowed:
        raise InvalidInput.field(field, f"must be one of {', '.join(allowed)}")
    return value


def share(field: str, value: float, default: float) -> float:
    """A number from 0 to 1; 0 stands for the default."""
    if not 0 <= value <= 1:  # false for NaN as well
        raise InvalidInput.field(field, "must be from 0 to 1")
    return value or default


def page_size(value: int, default: int, most: int) -> int:
    """A page size; 0 stands for the default."""
    if not 0 <= value <= most:
        raise InvalidInput.field("page_size", f"must be from 1 to {most}")
    return value or default


def page_token(after: tuple[int, str]) -> str:
    """The token of the page after an entry (created ms, id)."""
    return base64.urlsafe_b64encode(f"{after[0]}:{after[1]}".encode()).decode()


def after(token: str) -> tuple[int, str] | None:
    """The entry that a page token stands for; None for the first page."""
    if not token:
        return None
    try:
        score, _, name = base64.b64decode(token.encode(), altchars=b"-_", validate=True).decode().partition(":")
        if not score.isdigit() or len(score) > 18 or not name:
            raise ValueError(score)
        return int(score), name
    except (ValueError, binascii.Error) as error:
        raise InvalidInput.field("page_token", "is not a token of this list") from error
