"""What several tests ask of /v1/responses and /v1/conversations through the openai SDK."""

import openai
import pytest
from openai.types import responses as types
from pydantic import TypeAdapter

_EVENTS = TypeAdapter(types.ResponseStreamEvent)


async def all_of(stream):
    """Events of a stream, each checked against the SDK's own types, not only read by them."""
    found = []
    async for event in stream:
        told = event.to_dict()
        _EVENTS.validate_python(told)
        if "response" in told:
            types.Response.model_validate(told["response"])
        found.append(told)
    return found


async def finds_nothing(other, mine):
    """Nothing of the response `mine` and of its conversation is there for the SDK of somebody else, on any route."""
    conversation = mine.conversation.id
    for call in (
        other.responses.retrieve(mine.id),
        other.responses.retrieve(mine.id, stream=True),
        other.responses.cancel(mine.id),
        other.responses.delete(mine.id),
        other.responses.input_items.list(mine.id),
        other.responses.create(model=mine.model, input="say y", conversation=conversation),
        other.conversations.retrieve(conversation),
        other.conversations.update(conversation, metadata={}),
        other.conversations.delete(conversation),
        other.conversations.items.list(conversation),
        other.conversations.items.retrieve(mine.output[0].id, conversation_id=conversation),
    ):
        with pytest.raises(openai.NotFoundError):
            await call
    with pytest.raises(openai.BadRequestError) as caught:
        await other.responses.create(model=mine.model, input="say y", previous_response_id=mine.id)
    assert (caught.value.code, caught.value.param) == ("previous_response_not_found", "previous_response_id")
