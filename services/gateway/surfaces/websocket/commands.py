"""The commands, each with the HTTP route that it is a request to."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal
from urllib.parse import urlencode

import orjson
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from services.common.errors import InvalidInput
from services.gateway.edge.body import parse_json
from services.gateway.edge.failures import invalid
from services.gateway.refusals import InvalidBody
from services.gateway.surfaces.native.approvals_models import APPROVAL_ID_PATTERN
from services.gateway.surfaces.native.models import INT64_MAX, Id
from services.gateway.surfaces.schemas.events import DATA

_ID = re.compile(r"[!-~]{1,64}\Z")


def _one_segment(value: str) -> str:
    if "/" in value or value in (".", ".."):
        raise ValueError("must be one segment of a path")
    return value


class Members(BaseModel):
    """What every command has. What a model does not name is the body of the route."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    id: Annotated[str, StringConstraints(pattern=r"^[!-~]{1,64}$")]
    type: str
    idempotency_key: Annotated[str, StringConstraints(pattern=r"^[!-~]{1,255}$")] | None = None

    def body(self) -> dict[str, Any]:
        """What goes to the route."""
        return dict(self.model_extra or {})


class OfRun(Members):
    """A command to a run."""

    run_id: Id


class Start(Members):
    """A run; with `watch` it is watched under the id of the command."""

    thread_id: Id
    watch: bool = False

    @model_validator(mode="after")
    def _what_goes_with_a_watch(self) -> "Start":
        given = self.model_extra or {}
        if "stream" in given:
            raise InvalidBody.field("stream", "is not taken here: `watch` brings the events")
        if given.get("on_disconnect") == "cancel" and not self.watch:
            raise InvalidBody.field("on_disconnect", "goes with `watch`: the client that leaves is the one that watches")
        return self

    def body(self) -> dict[str, Any]:
        return super().body() | ({"stream": True} if self.watch else {})


class OfCall(OfRun):
    """A command to a tool call of a run."""

    call_id: Annotated[str, Field(min_length=1, max_length=256), AfterValidator(_one_segment)]


class Decide(Members):
    """A decision."""

    approval_id: Annotated[str, StringConstraints(pattern=APPROVAL_ID_PATTERN, max_length=200)]


class Approve(Decide):
    """The decision that most are."""

    def body(self) -> dict[str, Any]:
        if "verb" in (self.model_extra or {}):
            raise InvalidBody.field("verb", "goes with `decide`: this one approves")
        return super().body() | {"verb": "approve"}


class Watch(Members):
    """A run up to its end, or a thread."""

    model_config = ConfigDict(extra="forbid")

    run_id: Id | None = None
    thread_id: Id | None = None
    after: Annotated[int, Field(ge=0, le=INT64_MAX)] = 0
    types: Annotated[list[str], Field(max_length=len(DATA))] = Field(default_factory=list)
    on_disconnect: Literal["continue", "cancel"] | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> "Watch":
        if (self.run_id is None) == (self.thread_id is None):
            raise InvalidBody.field("run_id", "name a run or a thread")
        if self.on_disconnect is not None and self.run_id is None:
            raise InvalidBody.field("on_disconnect", "goes with a run")
        if self.idempotency_key is not None:
            raise InvalidBody.field("idempotency_key", "goes with commands that change something")
        return self

    def query(self) -> bytes:
        """The query of the route."""
        given = {"after": self.after, "types": self.types} | ({"on_disconnect": self.on_disconnect} if self.on_disconnect else {})
        return urlencode(given, doseq=True).encode("ascii")


class Unwatch(Members):
    """The end of a watch."""

    model_config = ConfigDict(extra="forbid")

    watch: Annotated[str, StringConstraints(pattern=r"^[!-~]{1,64}$")]


@dataclass(frozen=True, slots=True)
class Verb:
    """What a command may have, and its route. One without a method is answered by the connection itself."""

    members: type[Members]
    method: str = ""
    path: Callable[[Any], str] = field(default=lambda _: "")


VERBS: Mapping[str, Verb] = {
    "start": Verb(Start, "POST", lambda c: f"/v1/threads/{c.thread_id}/runs"),
    "steer": Verb(OfRun, "POST", lambda c: f"/v1/runs/{c.run_id}/steer"),
    "cancel": Verb(OfRun, "POST", lambda c: f"/v1/runs/{c.run_id}/cancel"),
    "stop": Verb(OfRun, "POST", lambda c: f"/v1/runs/{c.run_id}/stop"),
    "update_plan": Verb(OfRun, "PUT", lambda c: f"/v1/runs/{c.run_id}/plan"),
    "cancel_tool_call": Verb(OfCall, "POST", lambda c: f"/v1/runs/{c.run_id}/tool-calls/{c.call_id}/cancel"),
    "cancel_runs": Verb(Members, "POST", lambda c: "/v1/runs/cancel"),
    "decide": Verb(Decide, "POST", lambda c: f"/v1/approvals/{c.approval_id}/decision"),
    "approve": Verb(Approve, "POST", lambda c: f"/v1/approvals/{c.approval_id}/decision"),
    "watch": Verb(Watch, "GET", lambda c: f"/v1/runs/{c.run_id}/events" if c.run_id else f"/v1/threads/{c.thread_id}/events"),
    "unwatch": Verb(Unwatch),
}


def parsed(text: str, depth_limit: int) -> dict[str, Any]:
    """The object of a message. Raises InvalidInput, as for a body."""
    value = parse_json(text.encode(), depth_limit)
    if not isinstance(value, dict):
        raise InvalidInput("a command is a JSON object", reason="INVALID_JSON")
    return value


def id_of(value: Mapping[str, Any]) -> str | None:
    """The id of a command, where it has one that can be answered to."""
    given = value.get("id")
    return given if isinstance(given, str) and _ID.match(given) else None


def command(value: Mapping[str, Any]) -> tuple[Verb, Members]:
    """A command. Raises InvalidInput for a type that is none, and for members that are wrong."""
    kind = value.get("type")
    verb = VERBS.get(kind) if isinstance(kind, str) else None
    if verb is None:
        raise InvalidBody.field("type", f"must be one of {', '.join(VERBS)}")
    try:
        return verb, verb.members.model_validate(value)
    except ValidationError as error:
        found = [{**one, "loc": ("body", *one["loc"])} for one in error.errors(include_url=False, include_input=False)]
        raise invalid(found) from None


def encoded(body: Mapping[str, Any]) -> bytes:
    """The body of a route."""
    return orjson.dumps(body)
