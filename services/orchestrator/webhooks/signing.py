"""Secrets and signatures of the Standard Webhooks specification, version 1 (symmetric).

Source: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

import base64
import hashlib
import hmac
import secrets
from collections.abc import Sequence

PREFIX = "whsec_"
SECRET_BYTES = 32
# A sender has one for each of its secrets in use; the rest is not looked at.
MOST_SIGNATURES = 32


def new_secret() -> str:
    """A secret as its owner gets it."""
    return PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def key_of(secret: str) -> bytes:
    """What a secret signs with. Raises ValueError for one that is none; its padding may be missing."""
    if not secret.startswith(PREFIX):
        raise ValueError(f"must begin with {PREFIX}")
    text = secret.removeprefix(PREFIX)
    return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)


def _content(message_id: str, timestamp: str, body: bytes) -> bytes:
    return b".".join((message_id.encode(), timestamp.encode(), body))


def _signature(secret: str, content: bytes) -> str:
    return "v1," + base64.b64encode(hmac.digest(key_of(secret), content, hashlib.sha256)).decode()


def headers(message_id: str, timestamp_s: int, body: bytes, signing: Sequence[str]) -> dict[str, str]:
    """The three headers of a try: one signature for each secret, so that a receiver may change its own when it likes."""
    content = _content(message_id, str(timestamp_s), body)
    signatures = " ".join(_signature(secret, content) for secret in signing)
    return {"webhook-id": message_id, "webhook-timestamp": str(timestamp_s), "webhook-signature": signatures}


def signed(signatures: str, message_id: str, timestamp: str, body: bytes, secrets_: Sequence[str]) -> bool:
    """Whether one of space-separated `signatures` is right by one of `secrets_`. Each is compared in constant time, and as text: base64 has
    several texts for the same bytes, of which one is meant."""
    content = _content(message_id, timestamp, body)
    mine = [_signature(secret, content).encode() for secret in secrets_]
    given = [one.encode() for one in signatures.split(" ")[:MOST_SIGNATURES]]
    return any(hmac.compare_digest(one, other) for one in mine for other in given)
