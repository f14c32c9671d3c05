"""oidc.yaml: whose tokens are taken, and who their holders are here. Without the file API keys alone are.

issuers:
  - issuer: https://login.example.com/realms/acme   # exactly as its tokens have it in `iss`
    jwks_url: https://login.example.com/keys        # absent: as its discovery document says
    audiences: [bulkhead]                           # one of them must be in `aud`
    tenant: acme                                    # of all its users; or claims.tenant with `tenants`, theirs to ours
    scopes: {chat: [runs:read, runs:write]}         # what each of its scopes gives here; what is not named gives nothing
    claims: {tier: plan}                            # names of claims; dots lead into objects
    tiers: {gold: enterprise}                       # any other value is `tier`, which is free
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from services.common.config import ConfigProblem

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
MOST_SKEW_S = 60
Name = Annotated[str, Field(min_length=1, max_length=128)]
# Neither `none` nor HMAC: whoever may verify with a shared secret may sign with it, and a public key is a secret to nobody.
Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]


def trusted_url(url: str) -> str:
    """Keys are taken over TLS, or from this machine. Raises ValueError."""
    if not (url.isascii() and url.isprintable()) or " " in url:
        raise ValueError("must be a URL of ASCII characters without spaces")
    parts = urlsplit(url)
    if not parts.hostname or parts.fragment or parts.username or parts.password:
        raise ValueError("must be a URL with a host, and without fragment and login")
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in LOOPBACK):
        raise ValueError("must begin with https://")
    if parts.port == 0:  # one that is no number raises by itself
        raise ValueError("must have a port that can be reached")
    return url


Url = Annotated[str, AfterValidator(trusted_url)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Claims(_Strict):
    """Where a token has what; a claim of the exact name wins over a path with dots."""

    tenant: str = ""
    user: Name = "sub"
    team: str = ""
    scopes: Name = "scope"
    tier: str = ""


class Issuer(_Strict):
    """One issuer. `user_prefix` stands before its users' names, so that they are not those of keys or of another issuer: of two that
    name users of one tenant, neither prefix begins with the other."""

    issuer: Url
    jwks_url: Url | None = None
    audiences: Annotated[tuple[Name, ...], Field(min_length=1)]
    algorithms: Annotated[tuple[Algorithm, ...], Field(min_length=1)] = ("RS256", "ES256", "EdDSA")
    clock_skew_s: Annotated[int, Field(ge=0, le=MOST_SKEW_S)] = 30
    keys_max_age_s: Annotated[float, Field(ge=60, le=86_400)] = 3600.0
    tenant: str = ""
    tenants: Mapping[str, Name] = Field(default_factory=dict)
    user_prefix: Annotated[str, Field(max_length=64)] = ""
    scopes: Mapping[str, tuple[Name, ...]] = Field(default_factory=dict)
    granted: tuple[Name, ...] = ()
    tier: Name = "free"
    tiers: Mapping[str, Name] = Field(default_factory=dict)
    claims: Claims = Field(default_factory=Claims)

    @model_validator(mode="after")
    def _whose(self) -> "Issuer":
        if bool(self.tenant) == bool(self.tenants):
            raise ValueError("takes either `tenant` or `tenants`")
        if bool(self.tenants) != bool(self.claims.tenant):
            raise ValueError("`tenants` and `claims.tenant` go together")
        if bool(self.tiers) != bool(self.claims.tier):
            raise ValueError("`tiers` and `claims.tier` go together")
        return self

    def serves(self) -> frozenset[str]:
        """The tenants whose users it may name."""
        return frozenset(self.tenants.values()) if self.tenants else frozenset({self.tenant})


class Issuers(_Strict):
    """The file."""

    issuers: tuple[Issuer, ...] = ()

    def of(self, name: str) -> Issuer | None:
        """The issuer of this exact name."""
        return next((issuer for issuer in self.issuers if issuer.issuer == name), None)


def parse_issuers(data: object) -> Issuers:
    """Validates the content of oidc.yaml. Raises pydantic.ValidationError or ConfigProblem."""
    found = Issuers.model_validate(data)
    if problems := list(_problems(found)):
        raise ConfigProblem(problems)
    return found


def _problems(found: Issuers) -> Iterator[str]:
    seen: list[Issuer] = []
    for issuer in found.issuers:
        for other in seen:
            if other.issuer == issuer.issuer:
                yield f"oidc.yaml: {issuer.issuer} is there twice"
            elif _may_name_the_same(other, issuer) and (both := other.serves() & issuer.serves()):
                # `sub` is unique at one issuer: the same name at another is another person.
                yield (
                    f"oidc.yaml: {other.issuer} and {issuer.issuer} both name users of {', '.join(sorted(both))}: "
                    "each needs a user_prefix with which the other's does not begin"
                )
        seen.append(issuer)


def _may_name_the_same(one: Issuer, other: Issuer) -> bool:
    # What is left of the longer prefix may be the beginning of a `sub`.
    return one.user_prefix.startswith(other.user_prefix) or other.user_prefix.startswith(one.user_prefix)
