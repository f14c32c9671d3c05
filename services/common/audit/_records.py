"""What audit records are made of: digests, and canonical JSON that a chain can be built over."""

import hashlib
from collections.abc import Mapping
from typing import Any

import orjson

from services.common.identity import Principal

# Integers beyond this are not the same in every JSON reader, and RFC 8785 writes all numbers as they are in JavaScript.
MOST_INTEGER = 2**53 - 1


def canonical(record: Mapping[str, Any]) -> bytes:
    """JSON as RFC 8785 writes it, for strings, integers, booleans, None, lists and mappings with names in ASCII.

    Raises ValueError for anything else: a fraction, whose digits differ between languages, has no place in what is hashed.
    """
    _check(record)
    return orjson.dumps(record, option=orjson.OPT_SORT_KEYS)


def _check(value: Any) -> None:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if not isinstance(name, str) or not name.isascii():
                raise ValueError("names in audit records are text in ASCII")
            _check(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            _check(inner)
    elif isinstance(value, bool) or value is None or isinstance(value, str):
        return
    elif not isinstance(value, int) or abs(value) > MOST_INTEGER:
        raise ValueError(f"audit records hold text and integers, and no {type(value).__name__}")


def digest(content: str | bytes) -> str:
    """SHA-256 of what somebody said or was told, in hex: it proves a text that is shown later, and says nothing of it.

    A text that is short enough to be guessed can be found by its digest. Salted commitments come with the chain.
    """
    return hashlib.sha256(content.encode(errors="surrogatepass") if isinstance(content, str) else content).hexdigest()


def whom(principal: Principal) -> dict[str, Any]:
    """The fields of a record that say for whom something was done: the user by digest, the key by its id."""
    return {"user_hash": user_hash(principal.tenant, principal.user), "key_id": principal.key_id, "tier": principal.tier}


def user_hash(tenant: str, user: str) -> str:
    """A user of a tenant, as records name them."""
    return digest(f"{tenant}\n{user}")
