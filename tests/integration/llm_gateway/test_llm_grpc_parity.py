"""The same calls over HTTP and over gRPC: the provider gets the same request, and nothing that its answer holds is lost on either way.

Answers are compared whole: what gRPC delivers is turned back into the body, and the events, that HTTP delivers.
"""

import orjson
import pytest
import pytest_asyncio
from bulkhead.llm.v1 import llm_pb2

from services.common import testing
from services.common.errors import BulkheadError, InvalidInput, UpstreamFailed

pytestmark = pytest.mark.asyncio(loop_scope="function")


def token(text, logprob, *top):
    return {"token": text, "logprob": logprob, "bytes": list(text.encode()), "top_logprobs": list(top)}


CALL = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}, "extra_content": {"google": {"s": "x"}}}
CUSTOM = {"id": "call_2", "type": "custom", "custom": {"name": "shell", "input": "ls"}}
THOUGHT = {"type": "thinking", "thinking": "hm, ships", "signature": "c2ln"}
USAGE = {
    "prompt_tokens": 3, "completion_tokens": 9, "total_tokens": 12, "prompt_tokens_details": {"cached_tokens": 1, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 2, "accepted_prediction_tokens": 1},
}  # fmt: skip
FIRST = {
    "role": "assistant", "content": "A hull.", "reasoning_content": "hm, ships", "thinking_blocks": [THOUGHT],
    "annotations": [{"type": "url_citation", "url_citation": {"url": "https://x.example"}}], "tool_calls": [CALL, CUSTOM],
}  # fmt: skip
PROBABLE = {"content": [token("A", -0.25, token("A", -0.25), token("The", -1.5)), {**token(" hull", -0.5), "bytes": None}]}
CHOICES = [
    {"index": 0, "message": FIRST, "logprobs": PROBABLE, "stop_reason": "END", "finish_reason": "tool_calls"},
    {
        "index": 1, "message": {"role": "assistant", "refusal": "I will not."}, "logprobs": {"refusal": [token("I", -1)]},
        "finish_reason": "stop",
    },
    {
        "index": 2, "message": {"role": "assistant", "content": "x", "reasoning": "y"}, "logprobs": {"content": [{"odd": 1}]},
        "finish_reason": "length",
    },
]  # fmt: skip
BODY = {
    "id": "c-1", "object": "chat.completion", "created": 7, "model": "m-1", "system_fingerprint": "fp", "service_tier": "default",
    "choices": CHOICES, "usage": USAGE, "provider": {"any": [1, None]},
}  # fmt: skip


def chunks():
    """The same answer in events, its texts in pieces."""
    head = {key: value for key, value in BODY.items() if key not in ("choices", "usage")} | {"object": "chat.completion.chunk"}

    def event(index, delta, finish=None, **more):
        return {**head, "choices": [{"index": index, "delta": delta, **more, "finish_reason": finish}]}

    opening = {"name": "add", "arguments": '{"a"'}
    yield event(0, {"role": "assistant", "content": ""}, logprobs=None)
    yield event(0, {"reasoning_content": "hm, "})
    yield event(0, {"reasoning_content": "ships"})
    yield event(0, {"thinking_blocks": [THOUGHT]})
    yield event(0, {"content": "A"}, logprobs={"content": PROBABLE["content"][:1]})
    yield event(1, {"refusal": "I will "}, logprobs=CHOICES[1]["logprobs"])
    yield event(0, {"content": " hull."}, logprobs={"content": PROBABLE["content"][1:]})
    yield event(1, {"refusal": "not."})
    yield event(2, {"content": "x", "reasoning": "y"}, logprobs=CHOICES[2]["logprobs"])
    yield event(0, {"annotations": FIRST["annotations"]})
    yield event(0, {"tool_calls": [{"index": 0, **CALL, "function": opening}]})
    yield event(0, {"tool_calls": [{"index": 0, "function": {"arguments": ":1}"}}, {"index": 1, **CUSTOM}]})
    for choice in reversed(CHOICES):
        yield event(choice["index"], {}, choice["finish_reason"], **({"stop_reason": "END"} if "stop_reason" in choice else {}))
    yield {**head, "choices": [], "usage": USAGE}


def pruned(value):
    """Without null members, and without the empty text of an assistant who says nothing: gRPC has one word for both."""
    if isinstance(value, dict):
        kept = {key: pruned(entry) for key, entry in value.items() if entry is not None}
        return {key: entry for key, entry in kept.items() if key != "content" or entry != ""}
    return [pruned(entry) for entry in value] if isinstance(value, list) else value


def loaded(raw):
    return orjson.loads(raw) if raw else {}


def token_of(found):
    shown = {"token": found.token, "logprob": found.logprob, "top_logprobs": [token_of(top) for top in found.top]}
    return shown | ({"bytes": list(found.utf8)} if found.HasField("utf8") else {})


def logprobs_of(holder):
    if not holder.HasField("logprobs"):
        return {}
    told = {part: [token_of(entry) for entry in getattr(holder.logprobs, part)] for part in ("content", "refusal")}
    return {"logprobs": {part: entries for part, entries in told.items() if entries}}


def message_of(message):
    shown = {"role": message.role, "content": message.text, **loaded(message.extra_json)}
    if message.content_json:
        shown["content"] = orjson.loads(message.content_json)
    if message.reasoning and "reasoning" not in shown:
        shown["reasoning_content"] = message.reasoning
    if message.refusal:
        shown["refusal"] = message.refusal
    if message.tool_calls:
        shown["tool_calls"] = [call_of(call, call.arguments_json.decode()) for call in message.tool_calls]
    return shown


def call_of(call, arguments):
    extra = loaded(call.extra_json)
    plain = {} if "type" in extra else {"type": "function", "function": {"name": call.name, "arguments": arguments}}
    return {"id": call.tool_call_id, **plain, **extra}


def body_of(answer):
    """The HTTP body that a CompleteResponse, or the end of a stream, stands for."""
    outcome, details = answer.outcome, answer.details
    first = {"index": 0, "message": message_of(answer.message), "finish_reason": outcome.finish_reason}
    choices = [first | logprobs_of(details) | loaded(details.choice_json)]
    for choice in details.further_choices:
        shown = {"index": choice.index, "message": message_of(choice.message), "finish_reason": choice.finish_reason}
        choices.append(shown | logprobs_of(choice) | loaded(choice.extra_json))
    return {
        "id": outcome.response_id, "object": "chat.completion", "model": outcome.provider_model, "choices": choices,
        "usage": loaded(details.usage_json), **loaded(details.extra_json),
    }  # fmt: skip


def folded(pieces):
    """What (choice, delta, members of the choice) add up to."""
    sums = {}
    for index, delta, members in pieces:
        kept = sums.setdefault(index, {"message": {}, "calls": {}, "members": {}})
        for call in delta.pop("tool_calls", None) or ():
            known = kept["calls"].setdefault(call.pop("index"), {"arguments": ""})
            known["arguments"] += (call.pop("function", None) or {}).get("arguments", "")
            known |= {key: value for key, value in call.items() if value}
        for target, found in ((kept["message"], delta), (kept["members"], members)):
            for key, value in found.items():
                if key == "logprobs":
                    known = target.setdefault(key, {})
                    for part, entries in pruned(value or {}).items():
                        known[part] = known.get(part, []) + entries
                elif value is not None and key != "role":
                    target[key] = target[key] + value if key in target else value
    return sums


def pieces_of(event):
    """An event of a gRPC stream as (choice, delta, members of the choice)."""
    kind = event.WhichOneof("event")
    found = getattr(event, kind)
    match kind:
        case "text_delta":
            return found.choice, {"content": found.text}, {}
        case "refusal_delta":
            return found.choice, {"refusal": found.text}, {}
        case "reasoning_delta":
            return found.choice, {"reasoning" if found.choice == 2 else "reasoning_content": found.text}, {}
        case "tool_call_delta":
            call = {"index": found.index, "id": found.tool_call_id, "function": {"arguments": found.arguments_fragment}}
            return found.choice, {"tool_calls": [call | ({} if found.extra_json else {"type": "function"}) | loaded(found.extra_json)]}, {}
        case "detail_delta":
            delta = {key: value for key, value in loaded(found.delta_json).items() if key != "reasoning"}
            return found.choice, delta, logprobs_of(found) | loaded(found.choice_json)
    return None


@pytest_asyncio.fixture
async def rich(serve, provider, wire, deployment):
    """A gateway before a provider whose answer holds everything, and the provider."""

    def answer(number, request):
        if request.path.endswith("/embeddings"):
            data = [{"object": "embedding", "index": n, "embedding": [0.5, n]} for n, _ in enumerate(request.body["input"])]
            return wire.answer({"object": "list", "model": "e-1", "data": data, "usage": {"prompt_tokens": 4, "total_tokens": 4}})
        if request.path.endswith("/rerank"):
            results = [{"index": 1, "relevance_score": 0.75}, {"index": 0, "relevance_score": 0.25}]
            return wire.answer({"id": "r-1", "model": "r-1", "results": results, "meta": {"billed_units": {"search_units": 1}}})
        if request.body.get("stream"):
            return wire.answer(wire.events(*chunks(), b"data: [DONE]\n\n"), content_type="text/event-stream", x_request_id="req-9")
        return wire.answer(BODY, x_request_id="req-9")

    upstream = await provider(answer)
    models = [deployment("main", "sim-1", f"{upstream.url}/v1")]
    for name, mode, prefix in (("vectors", "embedding", "openai"), ("ranks", "rerank", "cohere")):
        models.append(deployment(name, "sim-1", f"{upstream.url}/v1"))
        models[-1]["model_info"] |= {"mode": mode}
        models[-1]["litellm_params"]["model"] = f"{prefix}/{name}"
    async with serve({"model_list": models}) as stack:
        yield stack, upstream


TOOL = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object"}, "strict": True}}
SEARCH = {"type": "web_search_20250305", "name": "web_search", "max_uses": 2}
EXTRA = {
    "n": 3, "seed": 7, "stop": ["END"], "logprobs": True, "top_logprobs": 2, "reasoning_effort": "low", "user": "u", "top_p": 0.5,
    "metadata": {"k": "v"}, "parallel_tool_calls": False, "unknown_to_all": {"deep": [1]}, "max_completion_tokens": 50,
}  # fmt: skip
HISTORY = [
    {"role": "system", "content": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]},
    {"role": "user", "content": "hello", "name": "ana"},
    {**FIRST, "provider_specific_fields": {"x": 1}},
    {"role": "tool", "tool_call_id": "call_1", "content": "2", "cache_control": {"type": "ephemeral"}},
    {"role": "assistant", "content": None, "refusal": "No."},
    {"role": "user", "content": "why?"},
]
REQUEST = {
    "messages": HISTORY, "tools": [TOOL, SEARCH], "tool_choice": "auto", "temperature": 0.5, "max_tokens": 60,
    "response_format": {"type": "json_object"}, **EXTRA,
}  # fmt: skip


def input_of(request):
    """The CompletionInput of an HTTP request."""
    messages = []
    for message in request["messages"]:
        content, rest = message.get("content"), {}
        made = llm_pb2.Message(role=message["role"], tool_call_id=message.get("tool_call_id", ""), name=message.get("name", ""))
        if isinstance(content, list):
            made.content_json = orjson.dumps(content)
        elif content:
            made.text = content
        for key, value in message.items():
            match key:
                case "reasoning_content":
                    made.reasoning = value
                case "refusal":
                    made.refusal = value
                case "tool_calls":
                    for call in value:
                        extra = {k: v for k, v in call.items() if k not in ("id", "function") and (k, v) != ("type", "function")}
                        function = call.get("function", {"name": "", "arguments": ""})
                        made.tool_calls.add(
                            tool_call_id=call["id"], name=function["name"], arguments_json=function["arguments"].encode(),
                            extra_json=orjson.dumps(extra),
                        )  # fmt: skip
                case "role" | "content" | "tool_call_id" | "name":
                    pass
                case _:
                    rest[key] = value
        made.extra_json = orjson.dumps(rest) if rest else b""
        messages.append(made)
    return llm_pb2.CompletionInput(
        model="main", messages=messages, tools=[llm_pb2.ToolDefinition(tool_json=orjson.dumps(tool)) for tool in request["tools"]],
        tool_choice_json=orjson.dumps(request["tool_choice"]), temperature=request["temperature"], max_tokens=request["max_tokens"],
        response_format_json=orjson.dumps(request["response_format"]), extra_json=orjson.dumps(EXTRA),
    )  # fmt: skip


async def test_a_whole_answer_is_the_same_and_so_is_what_the_provider_was_asked(rich):
    stack, upstream = rich
    status, body, headers = await stack.post("/v1/chat/completions", {"model": "main", **REQUEST})
    assert (status, body) == (200, BODY)
    with testing.calling(stack.identities):
        answer = await stack.llm.Complete(llm_pb2.CompleteRequest(input=input_of(REQUEST)))
    over_http, over_grpc = upstream.received
    assert over_grpc.body == over_http.body
    assert pruned(body_of(answer)) == pruned(BODY)
    assert answer.outcome.upstream_headers["x-request-id"] == headers["llm_provider-x-request-id"] == "req-9"
    # What was answered is what a client sends back with its next question.
    with testing.calling(stack.identities):
        again = llm_pb2.CompletionInput(
            model="main", messages=[input_of(REQUEST).messages[1], answer.message, input_of(REQUEST).messages[5]]
        )
        await stack.llm.Complete(llm_pb2.CompleteRequest(input=again))
    assert upstream.received[-1].body["messages"][1] == FIRST


async def test_a_stream_is_the_same_event_by_event_and_at_its_end(rich):
    stack, upstream = rich
    sent = {"model": "main", **REQUEST, "stream": True, "stream_options": {"include_usage": True}}
    async with stack.http.post(f"{stack.url}/v1/chat/completions", json=sent, headers={"authorization": f"Bearer {stack.key}"}) as answer:
        lines = [line[6:] for line in (await answer.read()).split(b"\n") if line.startswith(b"data: {")]
    over_http = [orjson.loads(line) for line in lines]
    assert over_http == list(chunks())
    request = llm_pb2.StreamCompleteRequest(input=input_of(REQUEST), tell_opening=True)
    with testing.calling(stack.identities):
        events = [event async for event in stack.llm.StreamComplete(request)]
    assert upstream.received[1].body == upstream.received[0].body
    expected = folded(
        (choice["index"], choice["delta"], {k: v for k, v in choice.items() if k not in ("index", "delta", "finish_reason")})
        for chunk in over_http
        for choice in chunk["choices"]
    )
    found = folded(piece for event in events if (piece := pieces_of(event)))
    assert pruned({n: found[n] for n in sorted(found)}) == pruned({n: expected[n] for n in sorted(expected)})
    told = [event for event in events if event.WhichOneof("event") != "warning"]
    opened, finished = told[0].opened.outcome, told[-1].finished
    assert (opened.model, opened.attempts, opened.upstream_headers["x-request-id"]) == ("main", 1, "req-9")
    assert pruned(body_of(finished)) == pruned(BODY)
    assert [event.WhichOneof("event") for event in events].count("opened") == 1


async def test_embeddings_and_rankings_are_the_same(rich):
    stack, upstream = rich
    _, body, _ = await stack.post("/v1/embeddings", {"model": "vectors", "input": ["a", "b"], "dimensions": 2, "user": "u"})
    _, tokens, _ = await stack.post("/v1/embeddings", {"model": "vectors", "input": [[1, 2], [3]]})
    asked = {"model": "ranks", "query": "q", "documents": ["x", "y"], "top_n": 1, "max_tokens_per_doc": 9}
    _, ranked, _ = await stack.post("/v1/rerank", asked)
    with testing.calling(stack.identities):
        request = llm_pb2.EmbedRequest(model="vectors", texts=["a", "b"], dimensions=2, extra_json=b'{"user":"u"}')
        made = await stack.embedder.Embed(request)
        lists = [llm_pb2.TokenList(tokens=[1, 2]), llm_pb2.TokenList(tokens=[3])]
        of_tokens = await stack.embedder.Embed(llm_pb2.EmbedRequest(model="vectors", token_lists=lists))
        ranking = await stack.embedder.Rerank(
            llm_pb2.RerankRequest(model="ranks", query="q", documents=["x", "y"], top_n=1, extra_json=b'{"max_tokens_per_doc":9}')
        )
    bodies = [request.body for request in upstream.received]
    assert bodies[:3] == bodies[3:]
    for http, grpc in ((body, made), (tokens, of_tokens)):
        assert [entry["embedding"] for entry in http["data"]] == [list(entry.values) for entry in grpc.embeddings]
        assert (http["model"], http["usage"]["prompt_tokens"]) == (grpc.outcome.provider_model, grpc.usage.input_tokens)
    assert ranked["results"] == [{"index": r.index, "relevance_score": r.score} for r in ranking.results]
    assert ranked["meta"]["billed_units"]["search_units"] == ranking.search_units
    assert (ranked["model"], ranking.outcome.deployment_id != "") == (ranking.outcome.provider_model, True)


async def test_the_same_names_are_offered(serve, models, sim):
    content = models(sim.url, model_group_alias={"fast": "backup"})
    async with serve(content) as stack:
        headers = {"authorization": f"Bearer {stack.key}"}
        async with stack.http.get(f"{stack.url}/v1/models", headers=headers) as answer:
            over_http = [entry["id"] for entry in orjson.loads(await answer.read())["data"]]
        with testing.calling(stack.identities):
            listed = await stack.reader.ListModels(llm_pb2.ListModelsRequest(offered=True))
            groups = await stack.reader.ListModels(llm_pb2.ListModelsRequest())
        assert [model.name for model in listed.models] == over_http
        assert [model.name for model in groups.models] == over_http[:-1]


async def test_errors_say_the_same(rich):
    stack, _ = rich
    refused = [
        ({"messages": [{"role": "user", "content": "x"}], "n": 0}, llm_pb2.CompletionInput(extra_json=b'{"n": 0}'), "n"),
        ({"messages": [{"role": "user", "content": "x"}], "temperature": 9}, llm_pb2.CompletionInput(temperature=9), "temperature"),
        ({"messages": [{"role": "user", "content": "x"}], "model": "nobody"}, llm_pb2.CompletionInput(model="nobody"), "model"),
    ]
    for body, asked, param in refused:
        status, error, _ = await stack.post("/v1/chat/completions", {"model": "main", **body})
        asked.messages.add(role="user", text="x")
        asked.model = asked.model or "main"
        with testing.calling(stack.identities), pytest.raises(BulkheadError) as caught:
            await stack.llm.Complete(llm_pb2.CompleteRequest(input=asked))
        assert (caught.value.http_status, error["error"]["param"]) == (status, param)
        if caught.value.violations:
            assert caught.value.violations[0].field == f"input.{param}"


async def test_what_no_message_can_hold_is_said_in_words_and_vectors_before_they_are_paid(serve, provider, wire, deployment):
    picture = "x" * (4 * 1024 * 1024)

    def answer(number, request):
        if request.body.get("stream"):
            events = (wire.delta(images=[picture]), wire.delta("there"), wire.delta(finish="stop"), b"data: [DONE]\n\n")
            return wire.answer(wire.events(*events), content_type="text/event-stream")
        return wire.answer(wire.completion(picture))

    upstream = await provider(answer)
    vectors = deployment("vectors", "sim-1", f"{upstream.url}/v1")
    vectors["model_info"] |= {"mode": "embedding", "output_vector_size": 4096}
    question = llm_pb2.CompletionInput(model="main", messages=[llm_pb2.Message(role="user", text="x")])
    async with serve({"model_list": [deployment("main", "sim-1", f"{upstream.url}/v1"), vectors]}) as stack:
        with testing.calling(stack.identities):
            with pytest.raises(UpstreamFailed) as caught:
                await stack.llm.Complete(llm_pb2.CompleteRequest(input=question))
            assert caught.value.reason == "ANSWER_TOO_LARGE"
            with pytest.raises(UpstreamFailed) as caught:
                [event async for event in stack.llm.StreamComplete(llm_pb2.StreamCompleteRequest(input=question))]
            assert caught.value.reason == "ANSWER_TOO_LARGE"
            asked = len(upstream.received)
            with pytest.raises(InvalidInput):
                await stack.embedder.Embed(llm_pb2.EmbedRequest(model="vectors", texts=["x"] * 512))
            with pytest.raises(InvalidInput):
                await stack.embedder.Embed(llm_pb2.EmbedRequest(texts=["x"] * 512))
        assert len(upstream.received) == asked
