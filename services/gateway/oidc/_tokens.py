"""Bearer tokens of outside issuers, verified (RFC 7519, 8725, 9068) and read as principals."""

import base64
import json
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import jwt

from services.common.accounts import PREFIX, KeyRecord
from services.common.config import ConfigFile
from services.common.errors import InvalidInput, Unauthenticated
from services.common.identity import Principal
from services.gateway.oidc._config import Issuer, Issuers
from services.gateway.oidc._keys import IssuerKeys

MOST_CHARS = 16 * 1024
TYPES = frozenset({"jwt", "at+jwt", "application/at+jwt"})
REQUIRED = ["iss", "aud", "exp"]
# A verified token is remembered for as long, so that a key that its issuer took back does not serve much longer.
REMEMBERED_S = 30.0
CACHE_SIZE = 4096


def is_token(credential: str) -> bool:
    """Whether it can be a signed token, and is no API key."""
    return credential.count(".") == 2 and not credential.startswith(PREFIX)


class Tokens:
    """Verifies tokens of the issuers in the file, which may change."""

    def __init__(self, issuers: ConfigFile[Issuers]) -> None:
        self._issuers = issuers
        self._keys: dict[str, IssuerKeys] = {}
        self._cache: OrderedDict[str, tuple[Principal, float, float]] = OrderedDict()
        issuers.on_change(self._forget)

    @property
    def taken(self) -> bool:
        """Whether there is any issuer."""
        return bool(self._issuers.current.issuers)

    async def principal(self, token: str) -> Principal:
        """Whose token it is. Raises Unauthenticated (INVALID_TOKEN, EXPIRED_TOKEN) or Overloaded (ISSUER_UNREACHABLE)."""
        cached = self._cache.get(token)
        if cached is not None and cached[1] > time.monotonic() and cached[2] > time.time():
            return cached[0]
        header, claimed = _unverified(token)
        known = self._issuers.current
        issuer = known.of(claimed) if isinstance(claimed, str) else None
        if issuer is None:
            raise _invalid("the token is of an issuer that is not known here")
        algorithm = header.get("alg")
        if algorithm not in issuer.algorithms:
            raise _invalid("the token is signed in a way that is not taken of its issuer")
        if str(header.get("typ", "JWT")).lower() not in TYPES:
            raise _invalid("the token is of a kind that is not taken")
        kid = header.get("kid")
        if kid is not None and not isinstance(kid, str):
            raise _invalid()
        keys = self._keys.get(issuer.issuer)
        if keys is None:
            keys = self._keys[issuer.issuer] = IssuerKeys(issuer)
        claims = _verified(token, await keys.find(kid, algorithm), algorithm, issuer)
        found = _principal(claims, issuer)
        if self._issuers.current is not known:
            # The file changed meanwhile: it is good for this request, and no longer.
            return found
        self._cache[token] = (found, time.monotonic() + REMEMBERED_S, int(claims["exp"]) + issuer.clock_skew_s)
        if len(self._cache) > CACHE_SIZE:
            self._cache.popitem(last=False)
        return found

    def _forget(self, _: Issuers) -> None:
        self._keys.clear()
        self._cache.clear()


def _unverified(token: str) -> tuple[Mapping[str, Any], Any]:
    """Header and issuer as the token has them, of which nothing is verified yet. Raises Unauthenticated."""
    if len(token) > MOST_CHARS:
        raise _invalid("the token is too long")
    try:
        header, claims = (json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))) for part in token.split(".")[:2])
    except (ValueError, RecursionError) as error:
        raise _invalid() from error
    if not isinstance(header, dict) or not isinstance(claims, dict):
        raise _invalid()
    return header, claims.get("iss")


def _verified(token: str, key: Any, algorithm: str, issuer: Issuer) -> Mapping[str, Any]:
    try:
        return jwt.decode(
            token, key, algorithms=[algorithm], audience=list(issuer.audiences), issuer=issuer.issuer, leeway=issuer.clock_skew_s,
            options={"require": REQUIRED},
        )  # fmt: skip
    except jwt.ExpiredSignatureError as error:
        raise Unauthenticated("the token has expired", reason="EXPIRED_TOKEN") from error
    except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise _invalid() from error


def _principal(claims: Mapping[str, Any], issuer: Issuer) -> Principal:
    """Whom the claims name here. Raises Unauthenticated where that is nobody who can be."""
    names = issuer.claims
    tenant = issuer.tenants.get(_text(claims, names.tenant), "") if issuer.tenants else issuer.tenant
    user = _text(claims, names.user)
    if not tenant or not user:
        raise _invalid("the token names no tenant or no user of here")
    scopes = dict.fromkeys(issuer.granted)
    for theirs in _texts(claims, names.scopes):
        scopes |= dict.fromkeys(issuer.scopes.get(theirs, ()))
    tier = issuer.tiers.get(_text(claims, names.tier), issuer.tier) if names.tier else issuer.tier
    team = _text(claims, names.team) if names.team else ""
    found = KeyRecord("", tenant, f"{issuer.user_prefix}{user}", team, tier, tuple(scopes))
    try:
        found.check()
    except InvalidInput as error:
        raise _invalid("the token names a user that cannot be") from error
    return found.principal()


def _claim(claims: Mapping[str, Any], path: str) -> Any:
    if path in claims:
        return claims[path]
    at: Any = claims
    for part in path.split("."):
        at = at.get(part) if isinstance(at, dict) else None
    return at


def _text(claims: Mapping[str, Any], path: str) -> str:
    found = _claim(claims, path)
    return found if isinstance(found, str) else ""


def _texts(claims: Mapping[str, Any], path: str) -> list[str]:
    """Scopes are one text with spaces (RFC 8693), or a list."""
    found = _claim(claims, path)
    if isinstance(found, str):
        return found.split()
    return [one for one in found if isinstance(one, str)] if isinstance(found, list) else []


def _invalid(message: str = "the token is not valid") -> Unauthenticated:
    return Unauthenticated(message, reason="INVALID_TOKEN")
