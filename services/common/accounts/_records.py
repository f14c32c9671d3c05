"""Records of keys, users, teams and tenants. Each has a schema_version; what an older version wrote is read with defaults."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

import orjson

from services.common.accounts._limits import NO_LIMITS, LimitSet
from services.common.errors import FieldViolation, InvalidInput
from services.common.identity import Principal

SCHEMA_VERSION = 2
MOST_ID_CHARS = 128
MOST_NAME_CHARS = 256
MOST_SCOPES = 64
MOST_METADATA_BYTES = 16 * 1024
MOST_MEMBERS = 10_000
ROLES = ("user", "admin")
R = TypeVar("R", "KeyRecord", "UserRecord", "TeamRecord", "TenantRecord")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Record:
    """What all have. Times are in Unix seconds."""

    name: str = ""
    limits: LimitSet = NO_LIMITS
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)
    blocked: bool = False
    created_at: float = 0.0
    updated_at: float = 0.0
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True, slots=True)
class KeyRecord(_Record):
    """One API key. `expires_at` is in Unix seconds, 0 for never. `hint` is the end of the secret, to tell keys apart by.

    A `superseded` record stands under the secret that a rotation replaced; it names the key and when the old secret ends. `earlier` has
    the digests of such secrets, with the same times. `made_by` is the id of the key that asked for this one, empty where none did.
    """

    key_id: str
    tenant: str
    user: str
    team: str = ""
    tier: str = "free"
    scopes: tuple[str, ...] = ()
    expires_at: float = 0.0
    hint: str = ""
    superseded: bool = False
    made_by: str = ""
    earlier: Mapping[str, float] = field(default_factory=dict, hash=False)

    def principal(self) -> Principal:
        """Whom calls with this key are made for."""
        return Principal(self.tenant, self.user, self.key_id, self.team, self.scopes, self.tier)

    def check(self) -> None:
        """Raises InvalidInput that names every field that is wrong."""
        problems = [*_id_problems(tenant=self.tenant, user=self.user, tier=self.tier), *_common_problems(self)]
        if self.team:
            problems += _id_problems(team=self.team)
        if len(self.scopes) > MOST_SCOPES or not all(_is_scope(scope) for scope in self.scopes):
            problems.append(
                FieldViolation("scopes", f"must be at most {MOST_SCOPES} names of 1 to {MOST_ID_CHARS} characters without spaces")
            )
        _refuse(problems)


@dataclass(frozen=True, slots=True)
class IssuedKey:
    """A new key with its secret, which is shown once and stored nowhere."""

    secret: str
    record: KeyRecord


@dataclass(frozen=True, slots=True)
class UserRecord(_Record):
    """What is known of a user beside the keys. Users need no record; one exists where something was set for them."""

    tenant: str
    user: str
    email: str = ""

    def check(self) -> None:
        """Raises InvalidInput that names every field that is wrong."""
        problems = [*_id_problems(tenant=self.tenant, user=self.user), *_common_problems(self)]
        if len(self.email) > MOST_NAME_CHARS or not self.email.isprintable():
            problems.append(FieldViolation("email", f"must be at most {MOST_NAME_CHARS} printable characters"))
        _refuse(problems)


@dataclass(frozen=True, slots=True)
class TeamRecord(_Record):
    """A team. `members` maps each user to a role, `user` or `admin`; `limits.models` are the models of the team."""

    tenant: str
    team: str
    members: Mapping[str, str] = field(default_factory=dict, hash=False)

    def check(self) -> None:
        """Raises InvalidInput that names every field that is wrong."""
        problems = [*_id_problems(tenant=self.tenant, team=self.team), *_common_problems(self)]
        if len(self.members) > MOST_MEMBERS:
            problems.append(FieldViolation("members", f"must be at most {MOST_MEMBERS}"))
        for user, role in self.members.items():
            problems += _id_problems(members=user)
            if role not in ROLES:
                problems.append(FieldViolation("members", "a role is user or admin"))
        _refuse(problems[:32])


@dataclass(frozen=True, slots=True)
class TenantRecord(_Record):
    """What is set for a whole tenant."""

    tenant: str

    def check(self) -> None:
        """Raises InvalidInput that names every field that is wrong."""
        _refuse([*_id_problems(tenant=self.tenant), *_common_problems(self)])


def is_over(record: KeyRecord) -> bool:
    """Whether the time of a key has run out."""
    return 0 < record.expires_at <= time.time()


def encode(record: _Record) -> bytes:
    """The record as it is stored."""
    values = {f.name: getattr(record, f.name) for f in fields(record)}
    values["limits"] = record.limits.as_dict()
    values["schema_version"] = SCHEMA_VERSION
    return orjson.dumps(values)


def decode(kind: type[R], raw: bytes | str) -> R:
    """The inverse of `encode`; unknown fields are ignored, so that N reads what N+1 wrote."""
    data = orjson.loads(raw)
    known = {f.name: data[f.name] for f in fields(kind) if f.name in data}
    if "scopes" in known:
        known["scopes"] = tuple(known["scopes"])
    known["limits"] = LimitSet.from_dict(known.get("limits") or {})
    return kind(**known)


def _id_problems(**names: str) -> list[FieldViolation]:
    # Braces make hash tags of the store's keys, and these names stand within them.
    return [
        FieldViolation(where, f"must be 1 to {MOST_ID_CHARS} printable characters without braces")
        for where, name in names.items()
        if not (0 < len(name) <= MOST_ID_CHARS and name.isprintable() and not name.isspace() and "{" not in name and "}" not in name)
    ]


def _common_problems(record: _Record) -> list[FieldViolation]:
    found = [FieldViolation(where, reason) for where, reason in record.limits.problems()]
    if len(record.name) > MOST_NAME_CHARS or not record.name.isprintable():
        found.append(FieldViolation("name", f"must be at most {MOST_NAME_CHARS} printable characters"))
    try:
        size = len(orjson.dumps(record.metadata))
    except TypeError:
        found.append(FieldViolation("metadata", "must be an object of JSON values"))
    else:
        if size > MOST_METADATA_BYTES:
            found.append(FieldViolation("metadata", f"must be at most {MOST_METADATA_BYTES} bytes as JSON"))
    return found


def _is_scope(scope: object) -> bool:
    return isinstance(scope, str) and 0 < len(scope) <= MOST_ID_CHARS and scope.isprintable() and not any(c.isspace() for c in scope)


def _refuse(problems: Sequence[FieldViolation]) -> None:
    if problems:
        raise InvalidInput("; ".join(f"{p.field}: {p.description}" for p in problems[:4]), violations=problems)
