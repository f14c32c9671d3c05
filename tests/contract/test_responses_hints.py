"""Hints that clients of /v1/responses send as a matter of course: taken without effect, and named. Items sent back or referred to."""

import openai
import pytest
from openai.types import responses as types

from services.common import testing
from tests.contract.responses_sdk import all_of

pytestmark = pytest.mark.asyncio(loop_scope="module")
HINTS = [
    ({"reasoning": {"effort": "high", "summary": "auto"}}, "reasoning"),
    ({"include": ["reasoning.encrypted_content", "web_search_call.action.sources"]}, "include"),
    ({"top_p": 0.5}, "top_p"),
    ({"truncation": "auto"}, "truncation"),
    ({"parallel_tool_calls": False}, "parallel_tool_calls"),
    ({"text": {"verbosity": "low"}}, "text.verbosity"),
    ({"extra_body": {"surprise": {"of": 1}, "seed": 7}}, "seed, surprise"),
    ({"extra_body": {"presence_penalty": 0, "logit_bias": {}, "frequency_penalty": 1}}, "frequency_penalty"),
]
NOT_NAMED = {"prompt_cache_key": "k", "prompt_cache_retention": "24h", "safety_identifier": "s", "user": "me", "top_logprobs": 0}
ALL = {
    "reasoning": {"effort": "low"}, "include": ["reasoning.encrypted_content"], "top_p": 0.5, "truncation": "auto",
    "parallel_tool_calls": False, "text": {"verbosity": "high", "format": {"type": "text"}}, "temperature": 0, **NOT_NAMED,
}  # fmt: skip
NAMED = "top_p, parallel_tool_calls, include, truncation, reasoning, text.verbosity"
QUESTION = "mcpr_run.1.0"


def ignored(response):
    """What a response says to be without effect."""
    warnings = response["bulkhead"]["warnings"] if isinstance(response, dict) else response.bulkhead["warnings"]
    found = [one for one in warnings if one["code"] == "parameters_ignored"]
    assert [one["user_message"] for one in found] == [f"Without effect here: {one['capability_lost']}." for one in found]
    return [one["capability_lost"] for one in found]


@pytest.mark.parametrize(("hint", "name"), HINTS, ids=[name for _, name in HINTS])
async def test_a_hint_is_named_and_changes_nothing(sdk, hint, name):
    answer = await sdk.responses.create(model="assistant", input="x", **hint)
    assert (answer.status, answer.output_text, ignored(answer)) == ("completed", "You said: x", [name])
    types.Response.model_validate(answer.to_dict())
    assert await sdk.responses.retrieve(answer.id) == answer


@pytest.mark.parametrize(
    ("hint", "name"), [*HINTS, ({"stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation")]
)
async def test_a_stream_names_it_in_each_of_its_responses_also_where_it_was_cut(sdk, hint, name):
    events = await all_of(await sdk.responses.create(model="assistant", input="x", stream=True, **hint))
    told = [event["response"] for event in events if "response" in event]
    assert (events[0]["type"], events[-1]["type"]) == ("response.created", "response.completed")
    assert [ignored(one) for one in told] == [[name]] * len(told)
    tail = await all_of(await sdk.responses.retrieve(told[0]["id"], stream=True, starting_after=events[1]["sequence_number"]))
    assert tail == events[2:]


@pytest.mark.parametrize(("hint", "name"), HINTS, ids=[name for _, name in HINTS])
async def test_in_the_background_it_is_named_at_once_and_when_it_is_done(sdk, hint, name):
    begun = await sdk.responses.create(model="assistant", input="x", background=True, **hint)
    assert ignored(begun) == [name]

    async def done():
        return (await sdk.responses.retrieve(begun.id)).status == "completed"

    await testing.eventually_async(done, "it is completed")
    known = await sdk.responses.retrieve(begun.id)
    assert (ignored(known), known.output_text) == ([name], "You said: x")


async def test_all_of_them_at_once_and_the_helpers_of_the_sdk(sdk):
    answer = await sdk.responses.create(model="tools", input="x", **ALL)
    assert [one["code"] for one in answer.bulkhead["warnings"]] == ["memory_unavailable", "parameters_ignored"]
    assert (ignored(answer), answer.temperature) == ([NAMED], 0)
    # What holds is told where OpenAI's API tells it.
    assert (answer.parallel_tool_calls, answer.truncation, answer.top_p, answer.reasoning) == (True, "disabled", None, None)
    assert await sdk.responses.retrieve(answer.id) == answer
    async with sdk.responses.stream(model="assistant", input="x", **ALL) as stream:
        assert ignored(await stream.get_final_response()) == [NAMED]


async def test_what_asks_for_nothing_else_is_not_named(sdk):
    unused = {"reasoning": {}, "include": [], "top_p": 1, "truncation": "disabled", "parallel_tool_calls": True, "text": {}, **NOT_NAMED}
    assert ignored(await sdk.responses.create(model="assistant", input="x", **unused)) == []
    stream = await sdk.responses.create(
        model="assistant", input="x", stream=True, stream_options={"include_obfuscation": False}, **dict.fromkeys(unused)
    )
    assert ignored((await all_of(stream))[-1]["response"]) == []


async def test_more_names_than_there_is_room_for_are_counted(sdk, served):
    many = {f'field_{number:03}_\u00e9"': number for number in range(1000)}
    answer = await sdk.responses.create(
        model="assistant", input="x", max_output_tokens=2**62, temperature=1.2345678901234567, metadata={"team": "x"}, extra_body=many
    )
    (told,) = ignored(answer)
    names = told.split(", ")
    assert names[:-1] == list(many)[: len(names) - 1]
    assert (len(names) > 10, names[-1]) == (True, f"{1000 - len(names) + 1} more")
    # A label of a run has 512 bytes, its name included.
    label = served.log.newest().request.metadata["bulkhead.response"]
    assert 400 < len("bulkhead.response") + len(label.encode()) <= 512
    assert await sdk.responses.retrieve(answer.id) == answer


async def test_chat_names_the_same_hints(sdk):
    hints = {"top_p": 0.5, "parallel_tool_calls": False, "stream_options": {"include_obfuscation": True}, "extra_body": {"surprise": 1}}
    stream = await sdk.chat.completions.create(model="assistant", messages=[{"role": "user", "content": "x"}], stream=True, **hints)
    told = [chunk.bulkhead async for chunk in stream if hasattr(chunk, "bulkhead")]
    names = "top_p, parallel_tool_calls, surprise, stream_options.include_obfuscation"
    assert [one["warnings"][0]["capability_lost"] for one in told] == [names]


async def test_what_others_thought_and_the_platform_did_is_passed_over(sdk, served):
    said = [
        {"role": "user", "content": "x"},
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "Hm."}], "encrypted_content": "?"},
        {"type": "mcp_approval_request", "id": QUESTION, "server_label": "bulkhead", "name": "send_mail", "arguments": "{}"},
        {"type": "mcp_call", "id": "mcp_run.1", "server_label": "bulkhead", "name": "send_mail", "arguments": "{}"},
        {"role": "assistant", "content": "Sent."},
        {"role": "user", "content": "y"},
    ]
    answer = await sdk.responses.create(model="assistant", input=said)
    assert answer.output_text == "You said: y"
    sent = [(message.role, message.text) for message in served.log.newest().request.input]
    assert sent == [("user", "x"), ("assistant", "Sent."), ("user", "y")]


async def test_a_reference_to_what_was_said_adds_nothing(sdk, served):
    first = await sdk.responses.create(model="tools", input="x")
    second = await sdk.responses.create(model="assistant", input="y", previous_response_id=first.id)
    asked = [item async for item in sdk.responses.input_items.list(first.id)]
    known = [item.id for item in (*asked, *first.output, *second.output)]
    references = [{"type": "item_reference", "id": known[0]}, *({"id": item_id} for item_id in known[1:])]
    for where in ({"previous_response_id": second.id}, {"conversation": first.conversation.id}):
        answer = await sdk.responses.create(model="assistant", input=[*references, {"role": "user", "content": "z"}], **where)
        assert (answer.output_text, answer.conversation) == ("You said: z", first.conversation)
        assert [message.text for message in served.log.newest().request.input] == ["z"]


async def test_a_reference_to_anything_else_is_named(sdk, served):
    first = await sdk.responses.create(model="assistant", input="x")
    second = await sdk.responses.create(model="assistant", input="y", previous_response_id=first.id)
    alone = await sdk.responses.create(model="assistant", input="x")
    theirs = await sdk.with_options(api_key=await served.issue("other")).responses.create(model="assistant", input="x")
    behind, within = {"previous_response_id": first.id}, {"conversation": first.conversation.id}
    before = len(served.log.runs)
    for item_id, where in [
        (first.output[0].id, {}), (second.output[0].id, behind), (f"{first.output[0].id}9", behind), ("rs_1", behind), ("", within),
        (alone.output[0].id, behind), (alone.output[0].id, within), (theirs.output[0].id, behind), (theirs.output[0].id, within),
        ("msg_no such run.0", within), ("msg_", within), (first.id, within),
    ]:  # fmt: skip
        said = [{"role": "user", "content": "z"}, {"type": "item_reference", "id": item_id}]
        with pytest.raises(openai.BadRequestError) as caught:
            await sdk.responses.create(model="assistant", input=said, **where)
        assert (caught.value.code, caught.value.param) == ("item_not_found", "input[1].id"), (item_id, where)
    assert len(served.log.runs) == before


async def test_a_reference_needs_what_it_goes_on_from_and_the_right_to_read_it(sdk, served):
    first = await sdk.responses.create(model="assistant", input="x")
    said = [{"type": "item_reference", "id": first.output[0].id}, {"role": "user", "content": "z"}]
    with pytest.raises(openai.BadRequestError) as nothing:
        await sdk.responses.create(model="assistant", input=said, previous_response_id="resp_none")
    assert nothing.value.code == "previous_response_not_found"
    with pytest.raises(openai.NotFoundError) as nowhere:
        await sdk.responses.create(model="assistant", input=said, conversation="conv_none")
    assert nowhere.value.code == "conversation_not_found"
    writer = sdk.with_options(api_key=await served.issue(scopes=("runs:write",)))
    with pytest.raises(openai.PermissionDeniedError):
        await writer.responses.create(model="assistant", input=said, previous_response_id=first.id, background=True)
