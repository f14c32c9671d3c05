"""The chat endpoint over HTTP: both stream modes, usage, labels, models."""

import orjson

QUESTION = "Write 40 words about ships."


def joined(events: list[str]) -> str:
    chunks = [orjson.loads(event) for event in events if event != "[DONE]"]
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


async def test_a_stream_says_the_same_as_a_whole_answer(sim):
    _, _, whole = await sim.chat(QUESTION)
    events = await sim.stream(QUESTION)
    assert joined(events) == whole["choices"][0]["message"]["content"]
    assert events[-1] == "[DONE]"
    assert orjson.loads(events[-2])["choices"][0]["finish_reason"] == "stop"
    assert len(events) == 1 + 40 + 1 + 1, "role, a word an event, finish, [DONE]"


async def test_usage_is_streamed_only_when_asked_for(sim):
    with_usage = await sim.stream(QUESTION, stream_options={"include_usage": True})
    _, _, whole = await sim.chat(QUESTION)
    last = orjson.loads(with_usage[-2])
    assert last["choices"] == []
    assert last["usage"] == whole["usage"]
    assert all(orjson.loads(event)["usage"] is None for event in with_usage[:-2])
    assert not any("usage" in event for event in await sim.stream(QUESTION))


async def test_tool_calls_stream_in_pieces_that_join_to_the_whole(sim, tools):
    question = "What is 17*23 and what time is it in Tokyo?"
    _, _, whole = await sim.chat(question, tools=list(tools.every))
    events = await sim.stream(question, tools=list(tools.every))
    calls: dict[int, dict] = {}
    for event in events[:-1]:
        for choice in orjson.loads(event)["choices"]:
            for delta in choice["delta"].get("tool_calls", []):
                call = calls.setdefault(delta["index"], {"name": "", "arguments": ""})
                call["name"] += delta["function"].get("name", "")
                call["arguments"] += delta["function"]["arguments"]
    message = whole["choices"][0]["message"]
    assert whole["choices"][0]["finish_reason"] == "tool_calls"
    assert message["content"] is None
    assert [calls[index] for index in sorted(calls)] == [call["function"] for call in message["tool_calls"]]


async def test_tool_call_ids_are_new_each_time_and_fixed_by_a_seed(sim, tools):
    async def call_id(**more):
        _, _, answer = await sim.chat("What is 2*3?", tools=[tools.calculator], **more)
        return answer["choices"][0]["message"]["tool_calls"][0]["id"]

    assert await call_id() != await call_id()
    assert await call_id(seed=7) == await call_id(seed=7)


async def test_every_answer_is_labelled_a_simulator(sim):
    _, headers, answer = await sim.chat()
    assert headers["x-simulator"] == "true"
    assert headers["x-request-id"] == answer["id"]
    assert answer["system_fingerprint"] == "bulkhead-simulator"
    assert all(orjson.loads(event)["system_fingerprint"] == "bulkhead-simulator" for event in (await sim.stream())[:-1])
    async with sim.http.get(sim.url + "/") as page:
        assert "simulator" in await page.text()
    _, models = await sim.call("GET", "/v1/models")
    assert {model["owned_by"] for model in models["data"]} == {"simulator"}
    assert {"sim-1", "sim-2", "sim-embed"} <= {model["id"] for model in models["data"]}


async def test_any_model_name_is_served(sim):
    _, _, answer = await sim.chat(model="org/some-model:latest")
    assert answer["model"] == "org/some-model:latest"


async def test_probes(sim):
    assert (await sim.call("GET", "/health"))[0] == 200
    assert (await sim.call("GET", "/ready"))[0] == 200


async def test_a_prompt_beyond_the_context_is_refused(sim):
    status, _, answer = await sim.chat("word " * 110_000)
    assert status == 400
    assert answer["error"]["code"] == "context_length_exceeded"
    assert (await sim.last_line())["billed_nanousd"] == 0


async def test_structured_output_fits_its_schema(sim):
    schema = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}, "required": ["city", "days"]}
    _, _, answer = await sim.chat(
        "Plan 3 days in Lisbon.", response_format={"type": "json_schema", "json_schema": {"name": "plan", "strict": True, "schema": schema}}
    )
    assert orjson.loads(answer["choices"][0]["message"]["content"]) == {"city": "Lisbon", "days": 3}
