"""An approval as it travels: a token of some minutes, bound to one call and to the digest of its final arguments."""

import hashlib
from dataclasses import dataclass
from typing import Any

import orjson

from services.common.errors import Unauthenticated
from services.common.identity import Minter, Verifier

# A token of a principal is none of an approval, and the other way round.
AUDIENCE = "bulkhead.approval"
ISSUER = "orchestrator"


def canonical(arguments: Any) -> bytes:
    """Arguments as JSON that is the same for the same arguments: sorted keys, no white space. Raises orjson.JSONEncodeError."""
    return orjson.dumps(arguments, option=orjson.OPT_SORT_KEYS)


def digest(arguments: bytes) -> str:
    """SHA-256 of canonical arguments, in hex."""
    return hashlib.sha256(arguments).hexdigest()


@dataclass(frozen=True, slots=True)
class Approval:
    """One call that may be made. `digest` is that of the arguments which the tool is given in the end.

    `approvers` are the users who approved it, empty where the agent's own rules waive the approval whatever the arguments are.
    `again` counts the times that a person had a call of unknown outcome made again: 0 is the first call.
    """

    tenant: str
    run_id: str
    key: str
    tool: str
    version: str
    digest: str
    approvers: tuple[str, ...] = ()
    again: int = 0

    def sign(self, minter: Minter) -> str:
        """The token, which lives for some minutes."""
        claims = {
            "tenant": self.tenant, "run": self.run_id, "call": self.key, "tool": f"{self.tool}@{self.version}", "digest": self.digest,
            "approvers": list(self.approvers), "again": self.again,
        }  # fmt: skip
        return minter.sign(AUDIENCE, claims)

    @classmethod
    def verified(cls, verifier: Verifier, token: str) -> "Approval":
        """What `token` states. Raises Unauthenticated where it is malformed, expired or not signed by an orchestrator."""
        claims = verifier.claims(token, AUDIENCE)
        try:
            if claims["iss"] != ISSUER:
                raise ValueError("signed by another service")
            tool, _, version = claims["tool"].partition("@")
            return cls(
                claims["tenant"], claims["run"], claims["call"], tool, version, claims["digest"], tuple(claims["approvers"]),
                int(claims.get("again", 0)),
            )  # fmt: skip
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise Unauthenticated("the approval is not valid", reason="TOKEN_INVALID") from error
