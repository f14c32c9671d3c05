"""Streams over gRPC whose end does not say all that they said: too long, or of parts that nobody can put together."""

import orjson
import pytest
from bulkhead.llm.v1 import llm_pb2

from services.common import testing
from services.common.errors import UpstreamFailed

pytestmark = pytest.mark.asyncio(loop_scope="function")
QUESTION = llm_pb2.CompletionInput(model="main", messages=[llm_pb2.Message(role="user", text="x")])
DONE = b"data: [DONE]\n\n"


@pytest.fixture
def streaming(serve, provider, wire, deployment):
    """Serves a stack whose provider answers these events."""

    async def start(*events):
        upstream = await provider(lambda *_: wire.answer(wire.events(*events, DONE), content_type="text/event-stream"))
        return serve({"model_list": [deployment("main", "sim-1", f"{upstream.url}/v1")]})

    return start


async def test_a_text_that_no_message_can_hold_ends_in_words_of_ours(streaming, wire):
    said, got = ["y" * (1024 * 1024)] * 5, []
    async with await streaming(*map(wire.delta, said), wire.delta(finish="stop")) as stack:
        with testing.calling(stack.identities), pytest.raises(UpstreamFailed) as caught:
            async for event in stack.llm.StreamComplete(llm_pb2.StreamCompleteRequest(input=QUESTION)):
                got.append(event.text_delta.text)
    assert caught.value.reason == "ANSWER_TOO_LARGE"
    assert "".join(got) == "".join(said)


@pytest.mark.parametrize("said", [{"audio": {"id": "a", "data": "AAAA"}}, {"content": "z" * (2 * 1024 * 1024)}])
async def test_what_stands_around_the_choices_is_told_all_the_same(streaming, wire, said):
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "completion_tokens_details": {"audio_tokens": 1}}

    def of(index, finish=None, **delta):
        return {
            "id": "c-1",
            "created": 7,
            "system_fingerprint": "fp",
            "choices": [{"index": index, "delta": delta, "finish_reason": finish}],
        }

    events = [of(0, **said), of(1, **said), of(0, "stop"), of(1, "length"), {"id": "c-1", "choices": [], "usage": usage}]
    async with await streaming(*events) as stack:
        with testing.calling(stack.identities):
            asked = llm_pb2.CompletionInput()
            asked.CopyFrom(QUESTION)
            asked.extra_json = b'{"n":2}'
            last = [event async for event in stack.llm.StreamComplete(llm_pb2.StreamCompleteRequest(input=asked))][-1].finished
    details = last.details
    assert orjson.loads(details.usage_json) == usage
    assert orjson.loads(details.extra_json) == {"created": 7, "system_fingerprint": "fp"}
    assert [(choice.index, choice.finish_reason) for choice in details.further_choices] == [(1, "length")]
    assert (last.outcome.finish_reason, last.message.text) == ("stop", said.get("content", ""))
