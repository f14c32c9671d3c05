"""Root keys from a mounted file: the first wraps, all of them unwrap, so that keys overlap during a rotation."""

import base64
import binascii
import os
import time
from pathlib import Path

import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES = 32
NONCE_BYTES = 12
MOST_KEYS = 16
RELOAD_EVERY_S = 1.0


class RootKeys:
    """The key set of a file `{"keys": [{"id": "2026-11", "key": "<base64 of 32 bytes>"}, …]}`, read again when it changes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._keys: dict[str, AESGCM] = {}
        self._stamp: tuple[int, int] | None = None
        self._looked_at = 0.0
        self._reload()

    @classmethod
    def from_file(cls, path: Path) -> "RootKeys":
        """Raises ValueError or OSError, with the file's name and no key."""
        return cls(path)

    def _reload(self) -> None:
        self._looked_at = time.monotonic()
        stat = self._path.stat()
        stamp = (stat.st_mtime_ns, stat.st_size)
        if stamp != self._stamp:
            self._keys, self._stamp = _parsed(self._path), stamp

    def _current(self) -> dict[str, AESGCM]:
        if time.monotonic() - self._looked_at > RELOAD_EVERY_S:
            try:
                self._reload()
            except (OSError, ValueError):
                # A file caught half-written: the last good set stays, and the file is read again in a second.
                self._looked_at = time.monotonic()
        return self._keys

    @property
    def newest(self) -> str:
        """Id of the key that wraps."""
        return next(iter(self._current()))

    def wrap(self, plain: bytes, about: bytes) -> tuple[str, bytes]:
        """(id of the key, nonce and wrapped bytes)."""
        keys = self._current()
        root = next(iter(keys))
        nonce = os.urandom(NONCE_BYTES)
        return root, nonce + keys[root].encrypt(nonce, plain, about)

    def unwrap(self, root: str, wrapped: bytes, about: bytes) -> bytes:
        """The inverse. Raises KeyError for a key that is not in the file, ValueError for bytes that were changed."""
        try:
            return self._current()[root].decrypt(wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:], about)
        except InvalidTag as error:
            raise ValueError("a wrapped key was changed, or wrapped by another root key of the same id") from error


def _parsed(path: Path) -> dict[str, AESGCM]:
    try:
        entries = orjson.loads(path.read_bytes())["keys"]
        found = {entry["id"]: base64.b64decode(entry["key"], validate=True) for entry in entries}
    except (ValueError, KeyError, TypeError, binascii.Error) as error:
        raise ValueError(f'{path.name} is not of the form {{"keys": [{{"id": …, "key": base64}}]}}') from error
    if not 0 < len(found) <= MOST_KEYS or len(found) != len(entries):
        raise ValueError(f"{path.name} must hold 1 to {MOST_KEYS} keys of different ids")
    if any(not isinstance(name, str) or not name or len(key) != KEY_BYTES for name, key in found.items()):
        raise ValueError(f"{path.name}: each key needs an id and {KEY_BYTES} bytes in base64")
    return {name: AESGCM(key) for name, key in found.items()}
