"""Ids of this surface. Each is made of those of the log, so that nothing has to be kept to find a thing again."""

import hashlib
import re
import uuid

from services.common.errors import FieldViolation, InvalidInput, NotFound
from services.common.rpc import context as call_context
from services.gateway.surfaces.native.models import ID_PATTERN

RESPONSE, CONVERSATION = "resp_", "conv_"
MESSAGE, CALL, QUESTION = "msg_", "mcp_", "mcpr_"
# Calls of the client's own tools, and what they gave.
FUNCTION, RESULT = "fc_", "fco_"
# Threads that a response made for itself; only these go with it.
OWN_THREAD = "th_resp_"


def response_id(run_id: str) -> str:
    """The response that a run is."""
    return RESPONSE + run_id


def conversation_id(thread_id: str) -> str:
    """The conversation that a thread is."""
    return CONVERSATION + thread_id


def run_id_of(response: str) -> str:
    """The run that a response is. Raises NotFound for what cannot be the id of one."""
    return _inner(response, RESPONSE, "response")


def thread_id_of(conversation: str) -> str:
    """The thread that a conversation is. Raises NotFound for what cannot be the id of one."""
    return _inner(conversation, CONVERSATION, "conversation")


def no_previous() -> InvalidInput:
    """The refusal of a response to go on behind that is not there: of the body, so not the 404 of a path, as in OpenAI's API."""
    told = "there is no such response"
    return InvalidInput(told, reason="PREVIOUS_RESPONSE_NOT_FOUND", violations=[FieldViolation("previous_response_id", told)])


def no_item(where: str) -> InvalidInput:
    """The refusal of a reference to an item that what a response goes on from does not have; of the body as well."""
    told = "there is no such item in what the response goes on from"
    return InvalidInput(f"{where}: {told}", reason="ITEM_NOT_FOUND", violations=[FieldViolation(where, told)])


def not_found(kind: str) -> NotFound:
    """The refusal of what is not there, or not the caller's."""
    return NotFound(f"there is no such {kind}", reason=f"{kind.upper()}_NOT_FOUND")


def _inner(given: str, prefix: str, kind: str) -> str:
    inner = given.removeprefix(prefix)
    if inner == given or not re.fullmatch(ID_PATTERN, inner):
        raise not_found(kind)
    return inner


def input_id(run_id: str, position: int, prefix: str = MESSAGE, of: str = "") -> str:
    """The item of a run's input at this position, from 0; `of` tells those that one message is apart."""
    return f"{prefix}{run_id}.i{position}{of}"


def output_id(prefix: str, run_id: str, index: int) -> str:
    """The item of a run's output at this index, from 0."""
    return f"{prefix}{run_id}.{index}"


def question_id(approval_id: str) -> str:
    """The item that an approval `<run>/<step>/<call>` is; without slashes, which paths of clients would not keep."""
    return QUESTION + approval_id.replace("/", ".")


def approval_id_of(question: str) -> str:
    """The inverse of `question_id`. Raises InvalidInput."""
    parts = question.removeprefix(QUESTION).rsplit(".", 2)
    if not question.startswith(QUESTION) or len(parts) != 3 or not all(re.fullmatch(ID_PATTERN, part) for part in parts):
        raise InvalidInput.field("input", "approval_request_id is not the id of a mcp_approval_request")
    return "/".join(parts)


def run_of_item(item_id: str) -> str:
    """The run that an item is of; '' for what cannot be the id of one."""
    for prefix, numbers in ((QUESTION, 2), (MESSAGE, 1), (CALL, 1), (FUNCTION, 1), (RESULT, 1)):
        if item_id.startswith(prefix):
            return item_id.removeprefix(prefix).rsplit(".", numbers)[0]
    return ""


def new_id(key: str, what: str) -> str:
    """32 hex digits; the same for the same idempotency key of the same user, so that a request that is repeated asks for the same."""
    if not key:
        return uuid.uuid4().hex
    principal = call_context.principal()
    return _digest(principal.tenant, principal.user, what, key)


def next_run_id(run_id: str) -> str:
    """The run that goes on behind a run in its thread. There is one of this id: who comes second branches off."""
    return f"run_{_digest('next', run_id)}"


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
