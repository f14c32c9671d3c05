"""What has to be looked up before more than text is taken: whether calls wait in the thread, whether images are there."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

import orjson

from services.common.errors import FailedPrecondition, FieldViolation, InvalidInput, NotFound
from services.common.identity import Principal
from services.orchestrator.agents import AgentDefinition
from services.orchestrator.blobs.ports import BlobRecord
from services.orchestrator.client_asks import leading_results
from services.orchestrator.records import RunRef
from services.orchestrator.run_request import RunRequest
from services.orchestrator.run_store import RunStore
from services.orchestrator.threads.ports import ThreadState
from services.orchestrator.turn.client_tools import chosen, offers, own_names

UNSUPPORTED = "UNSUPPORTED"
UNKNOWN_CALL, UNANSWERED = "TOOL_CALL_UNKNOWN", "TOOL_CALL_UNANSWERED"
MOST_IMAGE_BYTES = 2 * 1024 * 1024
# In place of a number that no thread has: the run is written only if it is there already.
NEVER = -1


class Blobs(Protocol):
    """What keeps images."""

    async def get(self, principal: Principal, blob_id: str) -> BlobRecord:
        """What a blob of the caller's is. Raises NotFound, Overloaded."""
        ...


class SaidCheck:
    """Refuses what a run could not be given. `state` reads a thread, `blobs` has the images; without them there are none."""

    def __init__(
        self, store: RunStore, state: Callable[[RunRef], Awaitable[ThreadState | None]] | None = None, blobs: Blobs | None = None
    ) -> None:
        self._store, self._state, self._blobs = store, state, blobs

    async def check(self, principal: Principal, request: RunRequest, agent: AgentDefinition) -> int:
        """From which event of the thread on the calls wait that the input answers; 0 where it answers none.

        Raises InvalidInput (TOOL_CALL_UNKNOWN, TOOL_CALL_UNANSWERED), FailedPrecondition (UNSUPPORTED), NotFound (BLOB_NOT_FOUND),
        Overloaded.
        """
        self._check_agent(request, agent)
        if request.continues:
            # It was looked at when its run was made.
            return 0
        for place, message in enumerate(request.input):
            for number, image in enumerate(message.get("images", ())):
                await self._check_image(principal, image["blob_id"], f"input[{place}].images[{number}].blob_id")
        places = leading_results(request.input)
        return await self._waiting(principal, request, places) if places else 0

    def _check_agent(self, request: RunRequest, agent: AgentDefinition) -> None:
        calls = any(len(message) > len(("role", "text")) and "images" not in message for message in request.input)
        more = {
            "client_tools": request.client_tools, "tool_choice": request.tool_choice, "response_format": request.response_format,
            "input": calls,
        }  # fmt: skip
        if asked := [] if offers(agent) else [name for name, value in more.items() if value]:
            raise FailedPrecondition(
                f"agents of the strategy {agent.strategy} take no {' and no '.join(asked)}: use one that works by react or plan_execute",
                reason=UNSUPPORTED, metadata={"agent": agent.name, "fields": ", ".join(asked)},
            )  # fmt: skip
        if agent.strategy == "workflow" and any(message.get("images") for message in request.input):
            raise FailedPrecondition(
                "workflows take no images", reason=UNSUPPORTED, metadata={"agent": agent.name, "fields": "input"}
            )  # fmt: skip
        own = own_names(agent)
        found = [
            FieldViolation(f"client_tools[{number}].name", "is the name of a tool of the agent's")
            for number, tool in enumerate(request.client_tools)
            if tool["name"] in own
        ]
        there = own | {tool["name"] for tool in request.client_tools}
        if request.tool_choice and not chosen(orjson.loads(request.tool_choice)) <= there:
            found.append(FieldViolation("tool_choice_json", "names a tool that the run does not have"))
        if found:
            raise InvalidInput("the request is not valid", violations=found)

    async def _check_image(self, principal: Principal, blob_id: str, field: str) -> None:
        if self._blobs is None:
            raise FailedPrecondition("no images are taken here: nothing keeps blobs", reason=UNSUPPORTED, metadata={"fields": "input"})
        try:
            record = await self._blobs.get(principal, blob_id)
        except NotFound as error:
            raise InvalidInput(
                f"{field}: there is no such blob", reason=error.reason, violations=[FieldViolation(field, "there is no such blob")]
            ) from error
        if not record.mime_type.startswith("image/"):
            raise InvalidInput.field(field, f"must be an image, and not {record.mime_type}")
        if record.size > MOST_IMAGE_BYTES:
            raise InvalidInput.field(field, f"must be an image of at most {MOST_IMAGE_BYTES} bytes")

    async def _waiting(self, principal: Principal, request: RunRequest, places: Sequence[int]) -> int:
        ref = RunRef(principal.tenant, request.thread_id, "-")
        state = await self._state(ref) if self._state is not None and request.thread_id else None
        asked: Sequence[Mapping[str, Any]] = ()
        if state is not None and state.owner == principal.user and state.carry_open:
            asked = state.carry.get("asks", ())
        wrong = _mismatch(request.input, places, {call["tool_call_id"] for call in asked})
        if wrong is None:
            assert state is not None
            return state.carry_seq
        if request.idempotency_key and await self._store.made_with(principal.tenant, principal.user, request.idempotency_key):
            # Sent again: the run of before answers, which has answered the calls.
            return NEVER
        raise wrong


def _mismatch(said: Sequence[Mapping[str, Any]], places: Sequence[int], asked: set[str]) -> InvalidInput | None:
    unknown = [
        FieldViolation(f"input[{place}].tool_call_id", "answers no call of this input, and none that waits at the end of the thread")
        for place in places
        if said[place]["tool_call_id"] not in asked
    ]
    if unknown:
        return InvalidInput("the input answers calls that do not wait", reason=UNKNOWN_CALL, violations=unknown)
    missing = sorted(asked - {said[place]["tool_call_id"] for place in places})
    if missing:
        wrong = FieldViolation("input", f"must answer all calls that wait: {', '.join(missing)} is missing"[:512])
        return InvalidInput("the input does not answer all calls that wait", reason=UNANSWERED, violations=[wrong])
    return None
