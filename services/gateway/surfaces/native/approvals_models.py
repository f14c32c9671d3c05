"""Bodies and parameters of the routes of approvals."""

from typing import Annotated, Any, Literal

from fastapi import Path, Query
from pydantic import Field, model_validator

from services.gateway.refusals import InvalidBody
from services.gateway.surfaces.native.models import ID_PATTERN, Body

MOST_REASON_CHARS = 1_000
# "<run>/<step>/<call>", and "/unknown/<n>" behind it.
APPROVAL_ID_PATTERN = r"^[A-Za-z0-9._:-]{1,128}(/[A-Za-z0-9._:-]{1,64}){2,4}$"

ApprovalIdPath = Annotated[str, Path(pattern=APPROVAL_ID_PATTERN, max_length=200, description="With its slashes, as the list names it.")]
OfRun = Annotated[str | None, Query(pattern=ID_PATTERN, description="Of this run alone.")]
OfThread = Annotated[str | None, Query(pattern=ID_PATTERN, description="Of this thread alone.")]
State = Annotated[
    Literal["open", "approved", "rejected", "expired", "cancelled", "answered"] | None, Query(description="In this state alone.")
]
Decidable = Annotated[bool, Query(description="Those alone that the caller may decide now.")]
PersonOrScope = Annotated[str, Field(min_length=1, max_length=128)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class DelegateTo(Body):
    """Who decides instead: a user of the tenant, or whoever holds a scope."""

    user: PersonOrScope | None = None
    scope: PersonOrScope | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> "DelegateTo":
        if (self.user is None) == (self.scope is None):
            raise ValueError("must name a user or a scope")
        return self


class ApprovalDecide(Body):
    """A decision.

    On a tool call: `approve`, `edit` with `arguments`, `reject`. On a call of unknown outcome: `done` with `result`, `failed`, `retry`,
    `cancel_run`. On both: `delegate` with `to`.
    """

    verb: Literal["approve", "edit", "reject", "delegate", "done", "failed", "retry", "cancel_run"]
    arguments: Annotated[dict[str, Any], Field(description="With `edit`: what the tool is given instead.")] | None = None
    result: Annotated[Any, Field(description="With `done`: what the call resulted in.")] = None
    to: DelegateTo | None = None
    reason: Annotated[str, Field(max_length=MOST_REASON_CHARS, description="Why; the model is told where a call is rejected.")] = ""
    arguments_digest: Annotated[
        Digest | None, Field(description="Of the approval as the caller saw it: with other arguments it is refused.")
    ] = None

    @model_validator(mode="after")
    def _what_the_verb_takes(self) -> "ApprovalDecide":
        for name, verb in (("arguments", "edit"), ("result", "done"), ("to", "delegate")):
            given = name in self.model_fields_set and (name == "result" or getattr(self, name) is not None)
            if given != (self.verb == verb):
                raise InvalidBody.field(name, f"goes with `{verb}`, and only with it")
        return self
