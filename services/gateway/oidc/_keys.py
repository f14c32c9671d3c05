"""The keys of one issuer: got when they are needed, kept while it is away, and looked for anew when it has rotated them."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import jwt
import structlog
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from services.common.errors import Overloaded, Unauthenticated
from services.gateway.oidc._config import Algorithm, Issuer
from services.gateway.oidc._fetching import NotToBeHad, key_set

# At most one look in this time, however many tokens name keys that nobody knows.
LOOK_EVERY_S = 5.0
# What is known is gone by for this long after it should have been looked at again.
STALE_S = 24 * 3600.0
MOST_KEYS = 100
LEAST_RSA_BITS = 2048
_CURVES = {"ES256": "P-256", "ES384": "P-384", "ES512": "P-521", "EdDSA": "Ed25519"}
log = structlog.get_logger("bulkhead.oidc")


@dataclass(frozen=True, slots=True)
class _Key:
    kid: str
    kty: str
    curve: str
    algorithm: str
    key: Any

    def signs(self, algorithm: str) -> bool:
        """Whether a token of this algorithm may be this key's: one never stands in for a key of another kind."""
        if self.algorithm and self.algorithm != algorithm:
            return False
        if algorithm in _CURVES:
            return self.curve == _CURVES[algorithm]
        return self.kty == "RSA"


class IssuerKeys:
    """Finds the key of a token. Looks for the set are single and bounded; a look that fails leaves what is known."""

    def __init__(self, issuer: Issuer) -> None:
        self._issuer = issuer
        self._keys: Sequence[_Key] | None = None
        self._got_at = self._looked_at = float("-inf")
        self._failed = False
        self._look: asyncio.Task[None] | None = None

    async def find(self, kid: str | None, algorithm: str) -> Any:
        """The public key that a token names. Raises Unauthenticated where the issuer has none, Overloaded where that cannot be known."""
        age_s = time.monotonic() - self._got_at - self._issuer.keys_max_age_s
        if self._keys is None or age_s > STALE_S:
            await self._looked()
            if self._failed:
                raise self._away()
        elif age_s > 0:
            # Nobody waits for it while the known ones serve.
            self._begin()
        found = self._chosen(kid, algorithm)
        if found is None:
            await self._looked()
            found = self._chosen(kid, algorithm)
        if found is None:
            if self._failed:
                raise self._away()
            raise Unauthenticated("the token is signed by a key that its issuer does not have", reason="INVALID_TOKEN")
        return found

    def _chosen(self, kid: str | None, algorithm: str) -> Any | None:
        fitting = [key for key in self._keys or () if (kid is None or key.kid == kid) and key.signs(algorithm)]
        # A token that names no key may have been signed by any: it is taken where that is no question.
        return fitting[0].key if len(fitting) == 1 or (fitting and kid is not None) else None

    async def _looked(self) -> None:
        task = self._begin()
        if task is not None:
            await asyncio.shield(task)

    def _begin(self) -> asyncio.Task[None] | None:
        if self._look is None and time.monotonic() - self._looked_at >= LOOK_EVERY_S:
            self._look = asyncio.create_task(self._get(), name="oidc-keys")
        return self._look

    async def _get(self) -> None:
        try:
            keys = _usable(await key_set(self._issuer))
        except NotToBeHad as error:
            self._failed = True
            log.warning("issuer_keys_not_to_be_had", issuer=self._issuer.issuer, error=str(error))
        else:
            self._keys, self._got_at, self._failed = keys, time.monotonic(), False
            log.info("issuer_keys_read", issuer=self._issuer.issuer, keys=len(keys))
        finally:
            self._looked_at, self._look = time.monotonic(), None

    def _away(self) -> Overloaded:
        return Overloaded("the keys of the token's issuer cannot be had", reason="ISSUER_UNREACHABLE", retry_after_s=LOOK_EVERY_S)


def _usable(found: Mapping[str, Any]) -> list[_Key]:
    """The keys that may verify tokens; others of the set, and what nobody knows, are passed over. Raises NotToBeHad for no key set."""
    entries = found.get("keys")
    if not isinstance(entries, list) or len(entries) > MOST_KEYS:
        raise NotToBeHad("the answer is no key set")
    return [key for key in map(_key, entries) if key is not None]


def _key(entry: Any) -> _Key | None:
    if not isinstance(entry, dict) or entry.get("kty") not in ("RSA", "EC", "OKP") or entry.get("use", "sig") != "sig":
        return None
    algorithm = entry.get("alg") or ""
    if algorithm and algorithm not in get_args(Algorithm):
        return None
    operations = entry.get("key_ops")
    if operations is not None and not (isinstance(operations, list) and "verify" in operations):
        return None
    try:
        # A private key in the set, which has `d`, would be one that others know as well.
        key = None if "d" in entry else jwt.PyJWK.from_dict(entry).key
    except (jwt.PyJWTError, ValueError, TypeError, KeyError):
        return None
    if key is None or (isinstance(key, RSAPublicKey) and key.key_size < LEAST_RSA_BITS):
        return None
    return _Key(str(entry.get("kid", "")), entry["kty"], str(entry.get("crv", "")), algorithm, key)
