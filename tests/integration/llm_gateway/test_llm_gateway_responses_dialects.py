"""The Responses API in front of providers of other dialects: what they need back of a turn survives the way through a client."""

import openai

THINKING = {"type": "thinking", "thinking": "I should add.", "signature": "c2lnbmVk"}
CALL = {"type": "tool_use", "id": "toolu_1", "name": "add", "input": {"a": 1}}
ADD = {"type": "function", "name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}, "strict": False}
SEALED = ["reasoning.encrypted_content"]


def answer(*content: dict, stop: str) -> dict:
    usage = {"input_tokens": 5, "output_tokens": 9, "cache_read_input_tokens": 3}
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": list(content),
        "stop_reason": stop,
        "usage": usage,
    }


def events(wire) -> bytes:
    def event(kind: str, **more) -> bytes:
        return f"event: {kind}\n".encode() + wire.events({"type": kind, **more})

    start = {**answer(stop="x"), "stop_reason": None}
    return b"".join(
        [
            event("message_start", message=start),
            event("content_block_start", index=0, content_block={"type": "thinking", "thinking": "", "signature": ""}),
            event("content_block_delta", index=0, delta={"type": "thinking_delta", "thinking": THINKING["thinking"]}),
            event("content_block_delta", index=0, delta={"type": "signature_delta", "signature": THINKING["signature"]}),
            event("content_block_stop", index=0),
            event("content_block_start", index=1, content_block={**CALL, "input": {}}),
            event("content_block_delta", index=1, delta={"type": "input_json_delta", "partial_json": '{"a": 1}'}),
            event("content_block_stop", index=1),
            event("message_delta", delta={"stop_reason": "tool_use"}, usage={"output_tokens": 9}),
            event("message_stop"),
        ]
    )


async def test_signed_thinking_of_anthropic_goes_back_as_it_came(serve, provider, wire):
    def script(number, request):
        if request.body["messages"][-1]["role"] == "user" and isinstance(request.body["messages"][-1]["content"], list):
            results = [part for part in request.body["messages"][-1]["content"] if part["type"] == "tool_result"]
            if results:
                return wire.answer(answer({"type": "text", "text": "2"}, stop="end_turn"))
        if request.body.get("stream"):
            return wire.answer(events(wire), content_type="text/event-stream")
        return wire.answer(answer(THINKING, CALL, stop="tool_use"))

    made = await provider(script)
    params = {"model": "anthropic/claude-x", "api_base": made.url, "api_key": "k", "max_tokens": 4000}
    content = {"model_list": [{"model_name": "main", "litellm_params": params, "model_info": {"mode": "chat"}}]}
    async with serve(content) as stack, openai.AsyncOpenAI(base_url=f"{stack.url}/v1", api_key=stack.key, max_retries=0) as client:
        for stream in (False, True):
            items: list = [{"role": "user", "content": "1 + 1?"}]
            asked = {"model": "main", "tools": [ADD], "include": SEALED, "reasoning": {"effort": "low"}}
            first = await client.responses.create(input=items, stream=stream, **asked)
            if stream:
                first = [event async for event in first][-1].response
            assert [item.type for item in first.output] == ["reasoning", "function_call"]
            assert first.output[0].summary[0].text == "I should add."
            assert first.usage.input_tokens_details.cached_tokens == 3
            items += [item.model_dump(exclude_none=True) for item in first.output]
            items.append({"type": "function_call_output", "call_id": first.output[1].call_id, "output": "2"})
            second = await client.responses.create(input=items, **asked)
            assert second.output_text == "2"
            turn = made.received[-1].body["messages"][1]
            assert turn["role"] == "assistant"
            assert turn["content"] == [THINKING, CALL]
