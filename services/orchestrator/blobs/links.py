"""Tokens with which anybody may read one blob until a date.

A token names tenant, blob and date in the open, and proves them with an HMAC under a secret that stands in the blob's record alone: it ends
with its date, or with the blob, and who can read a token can make no other.
"""

import base64
import hashlib
import hmac
from typing import NamedTuple

import orjson

MOST_TOKEN = 1_024


class Link(NamedTuple):
    """What a token names. `expires_ms` since 1970."""

    tenant: str
    blob_id: str
    expires_ms: int


def signed(link: Link, secret: bytes) -> str:
    """The token of a link, safe in a URL."""
    told = orjson.dumps(list(link))
    # Of nothing else that may ever be signed with it.
    proof = hmac.new(secret, b"bulkhead blob link 1\0" + told, hashlib.sha256).digest()
    return f"{_encoded(told)}.{_encoded(proof)}"


def named(token: str) -> Link | None:
    """What a token names, of which nothing is proved yet; None where it is none."""
    if len(token) > MOST_TOKEN or not token.isascii():
        return None
    told = token.partition(".")[0]
    try:
        found = orjson.loads(base64.urlsafe_b64decode(told + "=" * (-len(told) % 4)))
    except ValueError:
        return None
    if not isinstance(found, list) or [type(part) for part in found] != [str, str, int]:
        return None
    return Link(*found)


def proved(token: str, link: Link, secret: bytes) -> bool:
    """Whether the token is the one that was made for this link, character for character."""
    return hmac.compare_digest(signed(link, secret).encode(), token.encode())


def _encoded(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
