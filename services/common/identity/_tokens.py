"""Internal tokens: EdDSA JWTs of at most five minutes, verified against a mounted key set with overlap for rotation."""

import base64
import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from services.common.errors import Unauthenticated
from services.common.identity._principal import Principal

AUDIENCE = "bulkhead"
# Member of a key in the key set, of ours: the issuers whose tokens it may sign. One without it may sign anybody's.
ISSUERS = "issuers"
LIFETIME = timedelta(minutes=5)
# A token is minted anew when less than this is left, so that no call starts with one about to end.
RENEW_BEFORE = timedelta(minutes=2)
# Verifying a signature costs some 100 us; a token is used for many calls, so verified ones are remembered.
CACHE_SIZE = 4096
RELOAD_EVERY_S = 1.0
# Tokens are dated back by this much: a verifier whose clock is behind must not take them for ones of the future.
CLOCK_SKEW_S = 5


def _thumbprint(key: Ed25519PublicKey) -> str:
    raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    x = base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
    digest = hashlib.sha256(json.dumps({"crv": "Ed25519", "kty": "OKP", "x": x}, separators=(",", ":")).encode()).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def _public_jwk(key: Ed25519PublicKey) -> dict:
    raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    x = base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
    return {"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "x": x, "kid": _thumbprint(key)}


def generate_keys(folder: Path, issuers: list[str]) -> None:
    """Writes `<issuer>.pem` for each issuer and `jwks.json` with all public keys, each for the tokens of its issuer alone; an existing
    private key is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    public = []
    for issuer in issuers:
        path = folder / f"{issuer}.pem"
        if path.exists():
            key = _load_private(path)
        else:
            key = Ed25519PrivateKey.generate()
            pem = key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )  # fmt: skip
            path.touch(mode=0o600)
            path.write_bytes(pem)
        public.append({**_public_jwk(key.public_key()), ISSUERS: [issuer]})
    (folder / "jwks.json").write_text(json.dumps({"keys": public}, indent=2))


def _load_private(path: Path) -> Ed25519PrivateKey:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ValueError(f"{path.name} is not a private key in PEM form") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError(f"{path.name} is not an Ed25519 key")
    return key


class Minter:
    """Mints tokens as one issuer. Tokens of the same principal are reused until they are close to their end."""

    def __init__(self, key: Ed25519PrivateKey, issuer: str) -> None:
        self._key = key
        self._kid = _thumbprint(key.public_key())
        self._issuer = issuer
        self._cache: OrderedDict[Principal, tuple[str, float]] = OrderedDict()

    @classmethod
    def from_file(cls, path: Path, issuer: str) -> "Minter":
        """Reads a PKCS8 PEM private key. Raises ValueError or OSError with the file's name."""
        return cls(_load_private(path), issuer)

    def mint(self, principal: Principal, *, run_id: str = "") -> str:
        """A token for `principal`, optionally bound to a run; valid for at least two and at most five minutes."""
        if run_id and principal.run_id != run_id:
            principal = replace(principal, run_id=run_id)
        now = time.time()
        cached = self._cache.get(principal)
        if cached and cached[1] > now:
            return cached[0]
        issued = int(now) - CLOCK_SKEW_S
        claims = {
            "iss": self._issuer, "aud": AUDIENCE, "iat": issued, "exp": issued + int(LIFETIME.total_seconds()),
            "tenant": principal.tenant, "sub": principal.user, "team": principal.team, "key": principal.key_id,
            "scopes": list(principal.scopes), "tier": principal.tier, "run": principal.run_id,
        }  # fmt: skip
        token = self._encode(claims)
        self._cache[principal] = (token, claims["exp"] - RENEW_BEFORE.total_seconds())
        self._cache.move_to_end(principal)
        if len(self._cache) > CACHE_SIZE:
            self._cache.popitem(last=False)
        return token

    def sign(self, audience: str, claims: Mapping[str, Any]) -> str:
        """`claims` as a token of this issuer for `audience`, which is no principal's; it lives as long as one of those."""
        issued = int(time.time()) - CLOCK_SKEW_S
        return self._encode(
            {**claims, "iss": self._issuer, "aud": audience, "iat": issued, "exp": issued + int(LIFETIME.total_seconds())}
        )  # fmt: skip

    def _encode(self, claims: Mapping[str, Any]) -> str:
        return jwt.encode(dict(claims), self._key, algorithm="EdDSA", headers={"kid": self._kid})


class Verifier:
    """Verifies tokens against a JWKS file, which is read again when it changes: keys overlap during a rotation.

    A key that names its `issuers` signs for them alone: a service that has one cannot pass for another.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._keys: dict[str, Ed25519PublicKey] = {}
        self._issuers: dict[str, frozenset[str]] = {}
        self._stamp: tuple[int, int] | None = None
        self._looked_at = 0.0
        self._cache: OrderedDict[str, tuple[Principal, float]] = OrderedDict()
        self._reload()

    @classmethod
    def from_file(cls, path: Path) -> "Verifier":
        """Raises ValueError or OSError when the key set cannot be read or is empty."""
        return cls(path)

    def _reload(self) -> None:
        self._looked_at = time.monotonic()
        stat = self._path.stat()
        stamp = (stat.st_mtime_ns, stat.st_size)
        if stamp == self._stamp:
            return
        text = self._path.read_text()
        try:
            entries = json.loads(text)["keys"]
            keys = {entry["kid"]: jwt.PyJWK.from_dict(entry).key for entry in entries}
            issuers = {entry["kid"]: _issuers(entry[ISSUERS]) for entry in entries if ISSUERS in entry}
        except (ValueError, KeyError, TypeError, AttributeError, jwt.PyJWTError) as error:
            raise ValueError(f"{self._path.name} is not a JWKS of Ed25519 keys with their ids") from error
        if not keys:
            raise ValueError(f"{self._path.name} holds no key")
        self._keys, self._issuers, self._stamp = keys, issuers, stamp
        self._cache.clear()

    def verify(self, token: str) -> Principal:
        """The principal of `token`. Raises Unauthenticated when it is malformed, expired or of an unknown key."""
        now = time.time()
        self._look()
        cached = self._cache.get(token)
        if cached is not None:
            if cached[1] > now:
                return cached[0]
            raise Unauthenticated("the internal token has expired", reason="TOKEN_EXPIRED")
        claims = self._decoded(token, AUDIENCE)
        try:
            principal = Principal(
                tenant=claims["tenant"], user=claims["sub"], key_id=claims.get("key", ""), team=claims.get("team", ""),
                scopes=tuple(claims.get("scopes", ())), tier=claims.get("tier", "free"), run_id=claims.get("run", ""),
            )  # fmt: skip
        except (KeyError, TypeError) as error:
            raise _invalid() from error
        if not principal.tenant:
            raise _invalid()
        self._cache[token] = (principal, claims["exp"])
        if len(self._cache) > CACHE_SIZE:
            self._cache.popitem(last=False)
        return principal

    def claims(self, token: str, audience: str) -> dict[str, Any]:
        """What `Minter.sign` signed for `audience`. Raises Unauthenticated (TOKEN_INVALID, TOKEN_EXPIRED)."""
        self._look()
        return self._decoded(token, audience)

    def _look(self) -> None:
        if time.monotonic() - self._looked_at > RELOAD_EVERY_S:
            try:
                self._reload()
            except (OSError, ValueError):
                # A key set caught half-written: the last good one stays, and the file is read again in a second.
                self._looked_at = time.monotonic()

    def _decoded(self, token: str, audience: str) -> dict[str, Any]:
        try:
            kid = _kid(token)
            key = self._keys.get(kid)
            if key is None:
                raise Unauthenticated("the internal token is signed by an unknown key", reason="TOKEN_INVALID")
            claims = jwt.decode(token, key, algorithms=["EdDSA"], audience=audience, options={"require": ["exp", "iat", "iss"]})
        except jwt.ExpiredSignatureError as error:
            raise Unauthenticated("the internal token has expired", reason="TOKEN_EXPIRED") from error
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError) as error:
            raise _invalid() from error
        if claims["exp"] - claims["iat"] > LIFETIME.total_seconds():
            raise _invalid()
        if (bound := self._issuers.get(kid)) is not None and claims["iss"] not in bound:
            raise Unauthenticated("the internal token is signed by another service than it says", reason="TOKEN_INVALID")
        return claims


def _kid(token: str) -> str:
    """The key that a token names in its header, of which nothing is verified yet. Raises ValueError.

    `jwt.get_unverified_header` decodes all of the token, which `jwt.decode` does once more."""
    header = token.partition(".")[0]
    found = json.loads(base64.urlsafe_b64decode(header + "=" * (-len(header) % 4)))
    kid = found.get("kid", "") if isinstance(found, dict) else ""
    if not isinstance(kid, str):
        raise ValueError("the id of a key is text")
    return kid


def _issuers(named: Any) -> frozenset[str]:
    """Raises ValueError: a binding that cannot be read must not be taken for none."""
    if not isinstance(named, list) or not all(isinstance(issuer, str) for issuer in named):
        raise ValueError("issuers must be a list of names")
    return frozenset(named)


def _invalid() -> Unauthenticated:
    return Unauthenticated("the internal token is not valid", reason="TOKEN_INVALID")
