"""The principal of a request or a run."""

from collections.abc import Iterable
from dataclasses import dataclass

from services.common.errors import PermissionDenied

ALL_SCOPES = "*"


@dataclass(frozen=True, slots=True)
class Principal:
    """Whom a call is made for. Tenant and user come from here only, never from a message field."""

    tenant: str
    user: str
    key_id: str = ""
    team: str = ""
    scopes: tuple[str, ...] = ()
    tier: str = "free"
    run_id: str = ""

    def missing(self, scopes: Iterable[str]) -> list[str]:
        """Those of `scopes` that the principal does not hold."""
        return [] if ALL_SCOPES in self.scopes else [s for s in scopes if s not in self.scopes]

    def require(self, *scopes: str) -> None:
        """Raises PermissionDenied naming the scopes that are missing."""
        if missing := self.missing(scopes):
            raise PermissionDenied.scopes(missing)

    def as_dict(self) -> dict:
        """JSON-ready form, as it is stored with a run."""
        return {
            "tenant": self.tenant, "user": self.user, "key_id": self.key_id, "team": self.team,
            "scopes": list(self.scopes), "tier": self.tier, "run_id": self.run_id,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, data: dict) -> "Principal":
        """The inverse of `as_dict`; unknown keys are ignored, so that N reads what N+1 wrote."""
        return cls(
            tenant=data["tenant"], user=data["user"], key_id=data.get("key_id", ""), team=data.get("team", ""),
            scopes=tuple(data.get("scopes", ())), tier=data.get("tier", "free"), run_id=data.get("run_id", ""),
        )  # fmt: skip
