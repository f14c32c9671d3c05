"""Personal data in the ledger: a user stands there under a pseudonym, and what callers add is sealed with a key of the user's.

Who forgets the pseudonym and the key has made every line of the user anonymous, those in archives included, without touching one.
"""

import base64
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_NONCE_BYTES = 12


@dataclass(frozen=True)
class Subject:
    """A user of a tenant as the ledger knows them. `key` (16 bytes) seals what may be personal."""

    user: str
    pseudonym: str
    key: bytes = field(repr=False)

    @classmethod
    def new(cls, user: str) -> "Subject":
        """A subject with a pseudonym and a key that nothing else can be derived from."""
        return cls(user, "u_" + secrets.token_hex(8), secrets.token_bytes(16))

    @cached_property
    def _cipher(self) -> AESGCM:
        return AESGCM(self.key)

    def seal(self, data: Mapping[str, Any]) -> str:
        """`data` as text that only the key opens."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        sealed = self._cipher.encrypt(nonce, orjson.dumps(data, default=str, option=orjson.OPT_NON_STR_KEYS), self.pseudonym.encode())
        return base64.b64encode(nonce + sealed).decode()

    def open(self, sealed: str) -> dict[str, Any]:
        """What was sealed; nothing where it was sealed with another key."""
        try:
            raw = base64.b64decode(sealed)
            return orjson.loads(self._cipher.decrypt(raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], self.pseudonym.encode()))
        except (InvalidTag, ValueError):
            return {}

    def packed(self) -> bytes:
        """Its stored form."""
        return orjson.dumps({"user": self.user, "pseudonym": self.pseudonym, "key": self.key.hex(), "schema_version": 1})

    @classmethod
    def unpacked(cls, raw: bytes | str) -> "Subject":
        """The inverse of `packed`."""
        data = orjson.loads(raw)
        return cls(data["user"], data["pseudonym"], bytes.fromhex(data["key"]))
