"""Bodies, answers and shapes of /v1/hooks."""

from typing import Annotated, Any
from urllib.parse import quote

from bulkhead.orchestrator.v1 import hooks_pb2 as pb
from pydantic import Field

from services.gateway.surfaces.native.models import Body, Id, Name
from services.gateway.surfaces.native.outputs import Out
from services.gateway.surfaces.native.shapes import moment

MOST_OVERLAP_MS = 7 * 86_400_000
MOST_INSTRUCTIONS = 8192
MOST_DESCRIPTION = 256
# whsec_ and 64 bytes in base64.
MOST_SECRET = 94


class HookCreate(Body):
    """A new hook."""

    agent: Annotated[Name, Field(description="The agent that answers.")]
    thread_id: Id | None = Field(None, description="The thread that all its runs are of. Absent: each has one of its own.")
    instructions: Annotated[str, Field(max_length=MOST_INSTRUCTIONS, description="What the agent is told before each message.")] = ""
    description: Annotated[str, Field(max_length=MOST_DESCRIPTION)] = ""
    secret: Annotated[str, Field(min_length=1, max_length=MOST_SECRET, pattern=r"^whsec_[A-Za-z0-9+/]+={0,2}$")] | None = Field(
        None, description="One that the sender has already: whsec_ and 24 to 64 bytes in base64. Absent: a new one is made."
    )


class HookRotate(Body):
    """How a secret is replaced."""

    overlap_ms: (
        Annotated[int, Field(ge=0, le=MOST_OVERLAP_MS, description="How long what the secrets until now have signed is taken as well.")]
        | None
    ) = Field(None, description="Absent: 24 hours.")


class HookOut(Out):
    """A hook; `url` is where its messages go, without scheme and host."""

    hook_id: str
    agent: str
    url: str
    thread_id: str | None
    instructions: str
    description: str
    created_at: str | None
    earlier_secret_until: str | None


class HookSecretOut(HookOut):
    """A hook with its secret, which no other answer has."""

    secret: str


class HookPage(Out):
    """All hooks of the tenant, oldest first."""

    data: list[HookOut]
    next_after: str | None


class HookTaken(Out):
    """The run of a message; `created` is false where the message came before."""

    run_id: str
    thread_id: str
    created: bool


def hook(message: pb.Hook) -> dict[str, Any]:
    """A hook."""
    return {
        "hook_id": message.hook_id,
        "agent": message.agent,
        "url": f"/v1/hooks/{quote(message.agent, safe='')}?hook_id={message.hook_id}",
        "thread_id": message.thread_id or None,
        "instructions": message.instructions,
        "description": message.description,
        "created_at": moment(message, "created_at"),
        "earlier_secret_until": moment(message, "earlier_secret_until"),
    }
