"""What hooks keep and what comes for them, free of any store or transport."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from services.common.identity import Principal
from services.orchestrator.records import RunRef
from services.orchestrator.webhooks.rotation import Secret, valid

HOOK_SCHEMA = 1
HOOK_ID = re.compile(r"hk_[0-9a-f]{32}")
# Labels of every run of a hook: the hook, the message's id as its sender gave it, and the digest of its body.
LABEL, LABEL_MESSAGE, LABEL_DIGEST = "hook_id", "webhook_id", "webhook_sha256"
# It stands for no hook. What comes for an id that cannot be one is looked up under it, so that a refusal costs the same.
NOBODY = "hk_" + "0" * 32


@dataclass(frozen=True, slots=True)
class Hook:
    """Who answers messages, and on whose behalf. `principal` is its maker as its request came; `secrets`: the newest first."""

    hook_id: str
    agent: str
    principal: Mapping[str, Any]
    secrets: Sequence[Secret] = field(repr=False)
    created_ms: int
    thread_id: str = ""
    instructions: str = field(default="", repr=False)
    description: str = field(default="", repr=False)
    # Stands for the idempotency key that it was made under.
    by: str = ""
    # Known to nobody: without it no one could tell the id of a run that is to come, and take it first.
    seed: str = field(default="", repr=False)
    # As it was stored, maybe by a later version with more fields: what a change is compared with.
    raw: bytes = field(default=b"", compare=False, repr=False)

    @property
    def owner(self) -> Principal:
        """Whose runs its messages make."""
        return Principal.from_dict(dict(self.principal))

    def taken(self, now_ms: int) -> list[str]:
        """The secrets that messages may be signed with at this time, the newest first."""
        return valid(self.secrets, now_ms)

    def encode(self) -> bytes:
        """JSON."""
        return orjson.dumps(
            {
                "schema_version": HOOK_SCHEMA, "id": self.hook_id, "agent": self.agent, "principal": dict(self.principal),
                "secrets": [list(s) for s in self.secrets], "created_ms": self.created_ms, "thread_id": self.thread_id,
                "instructions": self.instructions, "description": self.description, "by": self.by, "seed": self.seed,
            }
        )  # fmt: skip

    @classmethod
    def decode(cls, raw: bytes) -> "Hook":
        """The inverse of `encode`; unknown fields are ignored, so that N reads what N+1 wrote."""
        data = orjson.loads(raw)
        return cls(
            data["id"], data["agent"], data["principal"], tuple(Secret(*s[:3]) for s in data["secrets"]), data["created_ms"],
            data["thread_id"], data["instructions"], data["description"], data["by"], data["seed"],
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Message:
    """What came for a hook, as it came: the hook's id and agent of the URL, the three headers, and the body byte for byte."""

    hook_id: str
    agent: str
    webhook_id: str
    timestamp: str
    signature: str
    body: bytes = field(repr=False)

    @property
    def digest(self) -> str:
        """SHA-256 of the body in hex."""
        return hashlib.sha256(self.body).hexdigest()


def run_of(hook: Hook, webhook_id: str) -> RunRef:
    """The run of a message: the same whoever makes it, and however often the message comes."""
    tenant = hook.owner.tenant
    name = hashlib.sha256(f"{tenant}\n{hook.hook_id}\n{hook.seed}\n{webhook_id}".encode()).hexdigest()[:32]
    return RunRef(tenant, hook.thread_id or f"th_{name}", f"run_{name}")
