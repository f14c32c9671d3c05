"""Answers of Anthropic's API that OpenAI's shape has no like for, given again: by a cache, under an idempotency key, to a second caller,
and in the other form than they came in. The anthropic SDK reads all of them as the same message.
"""

import asyncio

import anthropic
import orjson
import pytest
import pytest_asyncio

pytestmark = pytest.mark.asyncio(loop_scope="function")
FOUND = {"type": "web_search_result", "title": "Ships", "url": "https://ships.example", "encrypted_content": "ZQ==", "page_age": None}
CITED = {
    "type": "web_search_result_location", "url": "https://ships.example", "title": "Ships", "encrypted_index": "aQ==",
    "cited_text": "A hull has bulkheads.",
}  # fmt: skip
BLOCKS = [
    {"type": "thinking", "thinking": "I should look this up.", "signature": "c2lnLTE="},
    {"type": "thinking", "thinking": "On the web.", "signature": "c2lnLTI="},
    {"type": "redacted_thinking", "data": "c2VjcmV0"},
    {"type": "text", "text": "Let me search."},
    {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "bulkheads", "max": 3}},
    {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": [FOUND]},
    {"type": "text", "text": "A hull has bulkheads", "citations": [CITED, {**CITED, "encrypted_index": "ag=="}]},
    {"type": "text", "text": ", as everybody knows."},
]
USAGE = {
    "input_tokens": 40, "output_tokens": 30, "cache_read_input_tokens": 7, "cache_creation_input_tokens": 5, "service_tier": "standard",
    "cache_creation": {"ephemeral_5m_input_tokens": 5, "ephemeral_1h_input_tokens": 0},
    "server_tool_use": {"web_search_requests": 1, "web_fetch_requests": 0}, "output_tokens_details": {"thinking_tokens": 12},
}  # fmt: skip
WITH_CALL = [
    {"type": "thinking", "thinking": "A sum.", "signature": "c2lnLTM="},
    {"type": "text", "text": "First:"},
    {"type": "tool_use", "id": "toolu_1", "name": "add", "input": {"a": 1}},
    {"type": "text", "text": "then:"},
    {"type": "tool_use", "id": "toolu_2", "name": "add", "input": {"a": 2}},
]
BOX = {"id": "box", "expires_at": "2027-01-01T00:00:00Z"}
MESSAGES = {
    "searched": {"content": BLOCKS, "stop_reason": "end_turn", "stop_sequence": None, "container": BOX},
    "called": {"content": WITH_CALL, "stop_reason": "tool_use", "stop_sequence": None},
    "thought": {"content": [*BLOCKS[:4]], "stop_reason": "stop_sequence", "stop_sequence": "END"},
}  # fmt: skip


def message_of(kind):
    return {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-1", "usage": USAGE, **MESSAGES[kind]}


def streamed_of(message):
    """The events of the message, as the API sends them."""
    ends = ("stop_reason", "stop_sequence", "container")
    start = {**message, "content": [], "stop_reason": None, "stop_sequence": None, "container": None}
    events = [{"type": "message_start", "message": {**start, "usage": {**USAGE, "output_tokens": 1}}}]
    for index, block in enumerate(message["content"]):
        empty, deltas = dict(block), []
        match block["type"]:
            case "text":
                empty = {"type": "text", "text": "", **({"citations": []} if "citations" in block else {})}
                deltas = [{"type": "text_delta", "text": piece} for piece in (block["text"][:5], block["text"][5:])]
                deltas += [{"type": "citations_delta", "citation": cited} for cited in block.get("citations", ())]
            case "thinking":
                empty = {"type": "thinking", "thinking": "", "signature": ""}
                deltas = [{"type": "thinking_delta", "thinking": piece} for piece in (block["thinking"][:4], block["thinking"][4:])]
                deltas.append({"type": "signature_delta", "signature": block["signature"]})
            case "server_tool_use" | "tool_use":
                empty, raw = {**block, "input": {}}, orjson.dumps(block["input"]).decode()
                deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in (raw[:6], raw[6:])]
        events.append({"type": "content_block_start", "index": index, "content_block": empty})
        events += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
        events.append({"type": "content_block_stop", "index": index})
    events.append({"type": "message_delta", "delta": {key: message.get(key) for key in ends}, "usage": USAGE})
    events.append({"type": "message_stop"})
    return b"".join(f"event: {event['type']}\ndata: ".encode() + orjson.dumps(event) + b"\n\n" for event in events)


@pytest_asyncio.fixture
async def claude(serve, provider, wire, deployment):
    """A gateway with `claude`, what the provider was asked, and a client."""

    def answer(number, request):
        message = message_of(request.body["messages"][0]["content"])
        streamed = request.body.get("stream")
        return wire.answer(streamed_of(message), content_type="text/event-stream") if streamed else wire.answer(message)

    upstream = await provider(answer)
    entry = deployment("claude", "sim-1", upstream.url, api_key="sk-ant-sim")
    entry["litellm_params"]["model"] = "anthropic/claude-1"
    async with (
        serve({"model_list": [entry]}) as stack,
        anthropic.AsyncAnthropic(api_key=stack.key, base_url=stack.url, max_retries=0) as one,
    ):
        yield upstream, one


async def asked(client, kind, streamed, **headers):
    request = {
        "model": "claude", "max_tokens": 500, "messages": [{"role": "user", "content": kind}], "extra_headers": headers,
        "stop_sequences": ["END"],
    }  # fmt: skip
    if not streamed:
        return (await client.messages.create(**request)).to_dict(mode="json")
    async with client.messages.stream(**request) as stream:
        return (await stream.get_final_message()).to_dict(mode="json")


def told(message):
    """What a message says."""
    return {key: value for key, value in message.items() if value is not None}


def expected(kind):
    return {key: value for key, value in message_of(kind).items() if value is not None}


@pytest.mark.parametrize("first", [False, True], ids=["whole first", "stream first"])
@pytest.mark.parametrize("kept", ["cached", "replayed"])
async def test_a_message_given_again_is_the_same_in_either_form(claude, kept, first):
    upstream, client = claude
    for kind in MESSAGES:
        headers = {"x-bulkhead-cache-control": "ttl=60"} if kept == "cached" else {"idempotency-key": kind}
        for streamed in (first, not first, first):
            assert told(await asked(client, kind, streamed, **headers)) == expected(kind)
    assert len(upstream.received) == len(MESSAGES)


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
async def test_callers_who_share_a_call_get_the_same_message(claude, streamed):
    upstream, client = claude
    headers = {"x-bulkhead-cache-control": "ttl=60, no-store"}
    both = await asyncio.gather(*(asked(client, "searched", streamed, **headers) for _ in range(3)))
    assert [told(message) for message in both] == [expected("searched")] * 3
    assert len(upstream.received) < 3
