"""Signatures of thoughts: clients must give them back unchanged, and this server knows its own again."""

import base64
import hashlib

_SIGNED = b"bulkhead-simulator:"


def signature_of(thinking: str) -> str:
    """The signature of a thought, as base64."""
    return base64.b64encode(_SIGNED + hashlib.blake2b(thinking.encode(), digest_size=24).digest()).decode()


def is_signed(thinking: str, signature: str) -> bool:
    """Whether this server signed the thought. Of a thought that was left out only the form of the signature can be looked at."""
    try:
        decoded = base64.b64decode(signature, validate=True)
    except ValueError:
        return False
    return decoded.startswith(_SIGNED) and (not thinking or signature == signature_of(thinking))
