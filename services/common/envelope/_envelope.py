"""Sealing and opening with keys of subjects. One table in the state store holds all keys, wrapped."""

import hashlib
import os
import secrets
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

import orjson
import redis.asyncio as redis
import structlog
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from services.common.envelope._roots import KEY_BYTES, NONCE_BYTES, RootKeys
from services.common.errors import Internal, Overloaded
from services.common.valkey import UNAVAILABLE, Library, store_unavailable
from services.common.valkey_replicas import Lasting

# A key that was destroyed is used for no longer than this by whoever has it at hand.
MAX_AGE_S = 5.0
MOST_CACHED = 20_000
# No JSON begins so, and all that was stored before there was encryption is JSON.
MARK = b"\x01"
ID_BYTES = 16
_HEAD = len(MARK) + ID_BYTES
TABLE = "envelope"
# What SCAN finds the tables of all tenants with; while there is none, nothing is sealed.
KEY_TABLES = f"{TABLE}:{{*}}"
KEY_MISSING, KEY_DAMAGED = "ENVELOPE_KEY_MISSING", "ENVELOPE_KEY_DAMAGED"
log = structlog.get_logger("bulkhead.envelope")


def is_sealed(stored: bytes | None) -> bool:
    """Whether these bytes are sealed; what was stored before is plain and stays readable."""
    return stored is not None and stored[:1] == MARK


def subject_digest(tenant: str, subject: str) -> str:
    """How a subject stands in the table, which must not name it."""
    return hashlib.sha256(_lengths(tenant.encode("utf-8", "surrogatepass"), subject.encode("utf-8", "surrogatepass"))).hexdigest()


def _lengths(*parts: bytes) -> bytes:
    return b"".join(len(part).to_bytes(8, "big") + part for part in parts)


@dataclass(frozen=True, slots=True)
class _Key:
    """A data key. `about` is bound into all that it seals: tenant and subject."""

    id: bytes
    cipher: AESGCM
    about: bytes


class _Kept(NamedTuple):
    """A cached answer of the table; None: there is no such key."""

    key: _Key | None
    until: float


class Envelope:
    """Every method raises Overloaded: STORE_UNAVAILABLE without a store, ENVELOPE_KEY_MISSING where the root key is not in the file."""

    def __init__(self, client: redis.Redis, roots: RootKeys, *, replicas: int = 0, max_age_s: float = MAX_AGE_S) -> None:
        """`replicas` must have a key on disk before anything is sealed with it, and know of its end before that is told."""
        self._client, self._roots, self._max_age_s = client, roots, max_age_s
        self._lasting = Lasting(Library(client, Path(__file__).with_name("envelope.lua")), replicas)
        self._cache: OrderedDict[tuple[str, str | bytes], _Kept] = OrderedDict()

    async def seal(self, tenant: str, subject: str, kind: str, plain: bytes) -> bytes:
        """`plain` as it may be stored. `kind` says what it is; it opens as nothing else."""
        return (await self.seal_all(tenant, subject, [(kind, plain)]))[0]

    async def seal_all(self, tenant: str, subject: str, items: Sequence[tuple[str, bytes]]) -> list[bytes]:
        """As `seal` for (kind, plain) each. The subject '' stands for the tenant itself."""
        key = await self._of_subject(tenant, subject)
        sealed = []
        for kind, plain in items:
            # Random nonces of 96 bits: NIST SP 800-38D allows 2^32 of them under one key.
            nonce = os.urandom(NONCE_BYTES)
            sealed.append(b"".join((MARK, key.id, nonce, key.cipher.encrypt(nonce, plain, key.about + kind.encode()))))
        return sealed

    async def open(self, tenant: str, kind: str, stored: bytes) -> bytes | None:
        """The plain bytes; None where their key was destroyed. What was stored in plain text is answered as it is.

        Raises Internal (SEALED_DATA_DAMAGED) for bytes that were changed or moved to another tenant or kind.
        """
        return (await self.open_all(tenant, kind, [stored]))[0]

    async def open_all(self, tenant: str, kind: str, stored: Sequence[bytes]) -> list[bytes | None]:
        """As `open` for each of them. The log of a run is of one key: it is looked up once for all that follow one another."""
        found: list[bytes | None] = []
        key_id, key, about = b"", None, b""
        for each in stored:
            if not is_sealed(each):
                found.append(each)
                continue
            if each[len(MARK) : _HEAD] != key_id:
                key_id = each[len(MARK) : _HEAD]
                key = await self._of_id(tenant, key_id)
                about = b"" if key is None else key.about + kind.encode()
            if key is None:
                found.append(None)
                continue
            try:
                found.append(key.cipher.decrypt(each[_HEAD : _HEAD + NONCE_BYTES], each[_HEAD + NONCE_BYTES :], about))
            except (InvalidTag, ValueError) as error:
                raise Internal("stored data is not what was written", reason="SEALED_DATA_DAMAGED", metadata={"kind": kind}) from error
        return found

    async def erase(self, tenant: str, subject: str) -> int:
        """Destroys the subject's key; answers how many there were. Here at once, elsewhere within `max_age_s`, nothing opens any more."""
        # What it opened is told apart from others by what is bound into it.
        about = _lengths(tenant.encode("utf-8", "surrogatepass"), subject_digest(tenant, subject).encode())
        count = int(await self._call("envelope_erase_v1", tenant, [subject_digest(tenant, subject)]))
        for name in [name for name, kept in self._cache.items() if kept.key is not None and kept.key.about == about]:
            del self._cache[name]
        return count

    async def at_hand_s(self, tenant: str, subject: str) -> float | None:
        """How long others may still seal with the subject's destroyed key, which nobody would open; None where none was destroyed.

        Whoever lets the subject begin anew waits for it; once it was answered with 0, it is forgotten.
        """
        args = [subject_digest(tenant, subject), int(self._max_age_s * 1000)]
        left = int(await self._lasting.passing("envelope_left_v1", [_table(tenant)], args))
        return left / 1000 if left >= 0 else None

    # --- keys ---

    async def _of_subject(self, tenant: str, subject: str) -> _Key:
        name = (tenant, subject)
        kept = self._kept(name)
        if kept is not None and kept.key is not None:
            return kept.key
        began = time.monotonic()
        digest = subject_digest(tenant, subject)
        key = self._unwrapped(tenant, await self._call("envelope_find_v1", tenant, [digest, ""]))
        if key is None:
            key = await self._make(tenant, digest)
        self._keep(name, key, began)
        return key

    async def _of_id(self, tenant: str, key_id: bytes) -> _Key | None:
        name = (tenant, key_id)
        kept = self._kept(name)
        if kept is None:
            began = time.monotonic()
            # What was sealed with it is there, and was written after it.
            found = self._unwrapped(tenant, await self._lasting.passing("envelope_find_v1", [_table(tenant)], ["", key_id.hex()]))
            kept = self._keep(name, found, began)
        return kept.key

    async def _make(self, tenant: str, digest: str) -> _Key:
        tenant_key = await self._tenant_key(tenant)
        key_id, plain, nonce = secrets.token_bytes(ID_BYTES), secrets.token_bytes(KEY_BYTES), os.urandom(NONCE_BYTES)
        wrapped = nonce + AESGCM(tenant_key).encrypt(nonce, plain, _about_key(tenant, digest, key_id))
        record = orjson.dumps({"v": 1, "subject": digest, "key": wrapped.hex()})
        key = self._unwrapped(tenant, await self._call("envelope_make_v1", tenant, [digest, key_id.hex(), record]))
        if key is None:
            raise Overloaded("the key was destroyed while it was made", reason="SUBJECT_BEING_ERASED", retry_after_s=1.0)
        return key

    @property
    def newest_root(self) -> str:
        """Id of the root key that wraps now."""
        return self._roots.newest

    async def rewrap(self) -> int:
        """Wraps the keys of all tenants with the newest root key; answers how many were wrapped with an older one.

        A tenant whose key cannot be unwrapped here is told in the log and passed over.
        """
        count = 0
        try:
            async for name in self._client.scan_iter(match=KEY_TABLES, count=1000):
                tenant = unquote(name.decode().removeprefix(f"{TABLE}:{{").removesuffix("}"))
                count += await self._rewrapped(tenant)
        except UNAVAILABLE as error:
            raise store_unavailable() from error
        return count

    async def _rewrapped(self, tenant: str) -> bool:
        known = (await self._call("envelope_find_v1", tenant, ["-", ""]))[0]
        if not known or orjson.loads(known)["root"] == self._roots.newest:
            return False
        try:
            await self._tenant_key(tenant)
        except (Overloaded, Internal) as error:
            if error.reason not in (KEY_MISSING, KEY_DAMAGED):
                raise
            log.error("tenant_key_not_rewrapped", tenant=tenant, reason=error.reason, root=orjson.loads(known)["root"])
            return False
        return True

    async def _tenant_key(self, tenant: str) -> bytes:
        """The tenant's key, made where there is none, and wrapped anew where a newer root key is mounted."""
        known = (await self._call("envelope_find_v1", tenant, ["-", ""]))[0]
        while True:
            plain = self._unwrapped_tenant(tenant, known) if known else secrets.token_bytes(KEY_BYTES)
            if known and orjson.loads(known)["root"] == self._roots.newest:
                return plain
            known = await self._call("envelope_tenant_v1", tenant, [self._wrapped_tenant(tenant, plain), known])

    def _wrapped_tenant(self, tenant: str, plain: bytes) -> bytes:
        root, wrapped = self._roots.wrap(plain, b"tenant" + tenant.encode("utf-8", "surrogatepass"))
        return orjson.dumps({"v": 1, "root": root, "key": wrapped.hex()})

    def _unwrapped_tenant(self, tenant: str, raw: bytes) -> bytes:
        record = orjson.loads(raw)
        try:
            return self._roots.unwrap(record["root"], bytes.fromhex(record["key"]), b"tenant" + tenant.encode("utf-8", "surrogatepass"))
        except KeyError as error:
            # Another replica may have the file already, or have it still.
            raise Overloaded(
                "the root key of this tenant's data is not among the mounted ones", reason=KEY_MISSING, retry_after_s=5.0,
                metadata={"root": record["root"]},
            ) from error  # fmt: skip
        except ValueError as error:
            raise Internal("the tenant's key is not what was written", reason=KEY_DAMAGED) from error

    def _unwrapped(self, tenant: str, answer: Sequence[bytes]) -> _Key | None:
        tenant_record, key_id, raw = answer
        if not raw or not tenant_record:
            return None
        record, key_id = orjson.loads(raw), bytes.fromhex(key_id.decode())
        digest, wrapped = record["subject"], bytes.fromhex(record["key"])
        try:
            plain = AESGCM(self._unwrapped_tenant(tenant, tenant_record)).decrypt(
                wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:], _about_key(tenant, digest, key_id)
            )
        except InvalidTag as error:
            raise Internal("a subject's key is not what was written", reason=KEY_DAMAGED) from error
        return _Key(key_id, AESGCM(plain), _lengths(tenant.encode("utf-8", "surrogatepass"), digest.encode()))

    def _kept(self, name: tuple[str, str | bytes]) -> _Kept | None:
        kept = self._cache.get(name)
        return kept if kept is not None and kept.until > time.monotonic() else None

    def _keep(self, name: tuple[str, str | bytes], key: _Key | None, asked: float) -> _Kept:
        """From when it was asked for: what was destroyed while the answer was under way is not kept for longer."""
        kept = self._cache[name] = _Kept(key, asked + self._max_age_s)
        self._cache.move_to_end(name)
        if len(self._cache) > MOST_CACHED:
            self._cache.popitem(last=False)
        return kept

    async def _call(self, name: str, tenant: str, args: list) -> Any:
        """A key that was only found counts once replicas have it as well: whoever made it may still be waiting for them."""
        return await self._lasting.call(name, [_table(tenant)], args)


def _table(tenant: str) -> str:
    return f"{TABLE}:{{{quote(tenant, safe='')}}}"


def _about_key(tenant: str, digest: str, key_id: bytes) -> bytes:
    return _lengths(b"data key", tenant.encode("utf-8", "surrogatepass"), digest.encode(), key_id)
