"""Requests that nobody should accept, for each surface of the model port, as (name, body, headers)."""

import json
from typing import Any

MIB = 2**20
DEEP = 3_000


def nested(depth: int = DEEP) -> bytes:
    """JSON that is nested deeper than anybody means."""
    return b'{"a":' * depth + b"1" + b"}" * depth


# What each surface takes when nothing is wrong with it.
GOOD: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "main", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 10},
    "/v1/messages": {"model": "main", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 10},
    "/v1/responses": {"model": "main", "input": "hello", "max_output_tokens": 16},
    "/v1/completions": {"model": "main", "prompt": "hello", "max_tokens": 10},
    "/v1/embeddings": {"model": "vectors", "input": "hello"},
    "/v1/rerank": {"model": "ranker", "query": "hello", "documents": ["a", "b"]},
}
CONVERSATIONS = ("/v1/chat/completions", "/v1/messages")


def raw_bodies(path: str) -> dict[str, bytes]:
    """Bodies that are wrong as bytes."""
    good = json.dumps(GOOD[path]).encode()
    return {
        "empty": b"",
        "no-json": b"{nope",
        "truncated": good[:-3],
        "list": b"[" + good + b"]",
        "text": b'"hello"',
        "null": b"null",
        "number": b"7",
        "no-utf8": good.replace(b"hello", b"\xff\xfe\xc0"),
        "lone-surrogate": good.replace(b"hello", b"\\ud800"),
        "nan": good[:-1] + b',"temperature":NaN}',
        "infinity": good[:-1] + b',"temperature":-Infinity}',
        "huge-exponent": good[:-1] + b',"temperature":1e999}',
        "nul": good.replace(b"hello", b"hel\x00lo"),
        "two-values": good + good,
        "trailing-comma": good[:-1] + b",}",
        "deep": good[:-1] + b',"metadata":' + nested(100_000) + b"}",
        # A parser takes so many levels, and no writer does. What only Anthropic's API takes is not written for others.
        **({} if path == "/v1/messages" else {"deep-for-writers": good[:-1] + b',"metadata":' + nested(500) + b"}"}),
        "ten-megabytes": good.replace(b"hello", b"x" * (10 * MIB)),
    }


def bodies(path: str) -> dict[str, Any]:
    """Bodies that are JSON objects and wrong in what they say."""
    good = GOOD[path]
    without_model = {key: value for key, value in good.items() if key != "model"}
    found: dict[str, Any] = {
        "no-model": without_model,
        "model-null": {**good, "model": None},
        "model-number": {**good, "model": 7},
        "model-empty": {**good, "model": ""},
        "model-list": {**good, "model": ["main"]},
        "model-unknown": {**good, "model": "nobody"},
        "model-injection": {**good, "model": "main\r\nx-evil: 1"},
        "model-path": {**good, "model": "../../admin"},
        "model-long": {**good, "model": "m" * 100_000},
        "empty-object": {},
    }
    if path in CONVERSATIONS:
        found |= _messages(good)
        found |= _tools(path, good)
    if path != "/v1/embeddings" and path != "/v1/rerank":
        found |= _sampling(path, good)
    return found | _own(path, good)


def _messages(good: dict[str, Any]) -> dict[str, Any]:
    def said(*messages: Any) -> dict[str, Any]:
        return {**good, "messages": list(messages)}

    return {
        "messages-missing": {key: value for key, value in good.items() if key != "messages"},
        "messages-null": {**good, "messages": None},
        "messages-empty": said(),
        "messages-text": {**good, "messages": "hello"},
        "messages-object": {**good, "messages": {"role": "user", "content": "hello"}},
        "message-null": said(None),
        "message-text": said("hello"),
        "message-list": said(["user", "hello"]),
        "role-missing": said({"content": "hello"}),
        "role-unknown": said({"role": "robot", "content": "hello"}),
        "role-null": said({"role": None, "content": "hello"}),
        "role-list": said({"role": ["user"], "content": "hello"}),
        "content-missing": said({"role": "user"}),
        "content-null": said({"role": "user", "content": None}),
        "content-number": said({"role": "user", "content": 7}),
        "content-object": said({"role": "user", "content": {"text": "hello"}}),
        "part-text": said({"role": "user", "content": ["hello"]}),
        "part-null": said({"role": "user", "content": [None]}),
        "part-no-type": said({"role": "user", "content": [{}]}),
        "part-type-number": said({"role": "user", "content": [{"type": 7}]}),
        "part-text-number": said({"role": "user", "content": [{"type": "text", "text": 7}]}),
        "part-text-missing": said({"role": "user", "content": [{"type": "text"}]}),
        "parts-empty": said({"role": "user", "content": []}),
    }


def _tools(path: str, good: dict[str, Any]) -> dict[str, Any]:
    anthropic = path == "/v1/messages"

    def tool(schema: Any, name: Any = "f") -> dict[str, Any]:
        if anthropic:
            return {"name": name, "input_schema": schema}
        return {"type": "function", "function": {"name": name, "parameters": schema}}

    fine = {"type": "object", "properties": {}}
    return {
        "tools-text": {**good, "tools": "f"},
        "tools-object": {**good, "tools": {"f": 1}},
        "tool-null": {**good, "tools": [None]},
        "tool-text": {**good, "tools": ["f"]},
        "tool-empty": {**good, "tools": [{}]},
        "tool-no-name": {**good, "tools": [tool(fine, None)]},
        "tool-empty-name": {**good, "tools": [tool(fine, "")]},
        "tool-bad-name": {**good, "tools": [tool(fine, "no spaces\n")]},
        "tool-long-name": {**good, "tools": [tool(fine, "n" * 1000)]},
        "tool-twice": {**good, "tools": [tool(fine), tool(fine)]},
        "tools-thousands": {**good, "tools": [tool(fine, f"f{number}") for number in range(5_000)]},
        "schema-text": {**good, "tools": [tool("object")]},
        "schema-list": {**good, "tools": [tool([1])]},
        "schema-number": {**good, "tools": [tool(7)]},
        "schema-bad-type": {**good, "tools": [tool({"type": "strange"})]},
        "schema-type-number": {**good, "tools": [tool({"type": 7})]},
        "schema-not-an-object": {**good, "tools": [tool({"type": "string"})]},
        "schema-bad-properties": {**good, "tools": [tool({"type": "object", "properties": [1]})]},
        "schema-bad-property": {**good, "tools": [tool({"type": "object", "properties": {"a": 7}})]},
        "schema-bad-required": {**good, "tools": [tool({"type": "object", "properties": {}, "required": "a"})]},
        "schema-bad-enum": {**good, "tools": [tool({"type": "object", "properties": {"a": {"enum": 7}}})]},
        "schema-deep": {**good, "tools": [tool(json.loads(nested(500)))]},
        "tool-choice-number": {**good, "tools": [tool(fine)], "tool_choice": 7},
        "tool-choice-unknown": {**good, "tools": [tool(fine)], "tool_choice": "perhaps" if not anthropic else {"type": "perhaps"}},
        "tool-choice-foreign": {
            **good, "tools": [tool(fine)],
            "tool_choice": {"type": "tool", "name": "g"} if anthropic else {"type": "function", "function": {"name": "g"}},
        },
        "tool-choice-alone": {**good, "tool_choice": {"type": "any"} if anthropic else "required"},
    }  # fmt: skip


def _sampling(path: str, good: dict[str, Any]) -> dict[str, Any]:
    count = "max_output_tokens" if path == "/v1/responses" else "max_tokens"
    found: dict[str, Any] = {
        f"max-tokens-{name}": {**good, count: value}
        for name, value in (
            ("negative", -1), ("zero", 0), ("text", "10"), ("float", 1.5), ("bool", True), ("huge", 10**12), ("list", [10]),
            ("int64", 2**63),
        )
    }  # fmt: skip
    for name, low, high in (("temperature", -0.1, 2.1), ("top_p", -0.1, 1.1)):
        for kind, value in (("low", low), ("high", high), ("text", "hot"), ("list", [1]), ("bool", True)):
            found[f"{name}-{kind}"] = {**good, name: value}
    if path == "/v1/messages":
        # An answer of no token fills a cache, in this API.
        del found["max-tokens-zero"]
    found["stream-text"] = {**good, "stream": "yes"}
    found["stream-number"] = {**good, "stream": 1}
    return found


def _own(path: str, good: dict[str, Any]) -> dict[str, Any]:
    match path:
        case "/v1/chat/completions":
            user = good["messages"]

            def called(**call: Any) -> dict[str, Any]:
                return {**good, "messages": [*user, {"role": "assistant", "tool_calls": [{"type": "function", **call}]}]}

            return {
                "n-zero": {**good, "n": 0},
                "n-text": {**good, "n": "2"},
                "n-thousand": {**good, "n": 1000},
                "stop-number": {**good, "stop": 7},
                "stop-numbers": {**good, "stop": [7]},
                "stop-many": {**good, "stop": ["a"] * 50},
                "presence-high": {**good, "presence_penalty": 3},
                "frequency-text": {**good, "frequency_penalty": "x"},
                "logprobs-text": {**good, "logprobs": "yes"},
                "top-logprobs-high": {**good, "logprobs": True, "top_logprobs": 50},
                "top-logprobs-text": {**good, "logprobs": True, "top_logprobs": "3"},
                "seed-text": {**good, "seed": "x"},
                "logit-bias-list": {**good, "logit_bias": [1]},
                "logit-bias-text": {**good, "logit_bias": {"50256": "x"}},
                "user-number": {**good, "user": 7},
                "response-format-text": {**good, "response_format": "json"},
                "response-format-unknown": {**good, "response_format": {"type": "yaml"}},
                "response-format-no-schema": {**good, "response_format": {"type": "json_schema"}},
                "response-format-bad-schema": {
                    **good, "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": 7}}},
                },
                "stream-options-text": {**good, "stream": True, "stream_options": "usage"},
                "stream-options-usage-text": {**good, "stream": True, "stream_options": {"include_usage": "yes"}},
                "stream-options-unasked": {**good, "stream_options": {"include_usage": True}},
                "metadata-text": {**good, "metadata": "x"},
                **{f"{name}-{type(value).__name__}": {**good, name: value} for name, value in WRONG_KINDS.items()},
                "function-no-name": {**good, "functions": [{"parameters": {}}]},
                "function-schema": {**good, "functions": [{"name": "f", "parameters": {"type": "strange"}}]},
                "functions-thousands": {**good, "functions": [{"name": f"f{number}"} for number in range(5_000)]},
                "parallel-text": {**good, "parallel_tool_calls": "yes"},
                "reasoning-effort-number": {**good, "reasoning_effort": 7},
                "max-completion-negative": {**good, "max_completion_tokens": -5},
                "tool-no-id": {**good, "messages": [*user, {"role": "tool", "content": "1"}]},
                "tool-calls-text": {**good, "messages": [*user, {"role": "assistant", "tool_calls": "f"}]},
                "tool-calls-no-function": called(id="a"),
                "tool-calls-args-object": called(id="a", function={"name": "f", "arguments": {}}),
                "tool-calls-no-id": called(function={"name": "f", "arguments": "{}"}),
                "tool-calls-no-name": called(id="a", function={"arguments": "{}"}),
                "image-no-url": {**good, "messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
                "image-url-number": {**good, "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": 7}}]}]},
                "assistant-nothing": {**good, "messages": [*user, {"role": "assistant"}]},
            }  # fmt: skip
        case "/v1/messages":
            return {
                "max-tokens-missing": {key: value for key, value in good.items() if key != "max_tokens"},
                "system-number": {**good, "system": 7},
                "system-parts-text": {**good, "system": ["a"]},
                "block-unknown": {**good, "messages": [{"role": "user", "content": [{"type": "hologram"}]}]},
                "image-no-source": {**good, "messages": [{"role": "user", "content": [{"type": "image"}]}]},
                "tool-result-no-id": {**good, "messages": [{"role": "user", "content": [{"type": "tool_result"}]}]},
                "stop-sequences-text": {**good, "stop_sequences": "a"},
                "thinking-text": {**good, "thinking": "yes"},
                "service-tier-number": {**good, "service_tier": 7},
                "cache-control-text": {**good, "cache_control": "ephemeral"},
                "container-number": {**good, "container": 7},
                "servers-text": {**good, "mcp_servers": "x"},
                "server-text": {**good, "mcp_servers": ["x"]},
                "top-k-negative": {**good, "top_k": -1},
                "top-k-text": {**good, "top_k": "a"},
            }
        case "/v1/responses":
            return {
                "input-missing": {"model": "main"},
                "input-null": {**good, "input": None},
                "input-number": {**good, "input": 7},
                "input-empty-list": {**good, "input": []},
                "input-item-number": {**good, "input": [7]},
                "input-item-unknown": {**good, "input": [{"type": "hologram"}]},
                "input-role-unknown": {**good, "input": [{"role": "robot", "content": "a"}]},
                "instructions-number": {**good, "instructions": 7},
                "tools-text": {**good, "tools": "a"},
                "tool-empty": {**good, "tools": [{}]},
                "tool-no-name": {**good, "tools": [{"type": "function", "parameters": {}}]},
                "schema-list": {**good, "tools": [{"type": "function", "name": "f", "parameters": [1]}]},
                "schema-bad-type": {**good, "tools": [{"type": "function", "name": "f", "parameters": {"type": "strange"}}]},
                "tool-choice-number": {**good, "tool_choice": 7},
                "store-text": {**good, "store": "x"},
                "service-tier-number": {**good, "service_tier": 7},
                "max-tool-calls-negative": {**good, "max_tool_calls": -1},
                "previous-response": {**good, "previous_response_id": "resp_1"},
                "background": {**good, "background": True},
                "text-number": {**good, "text": 7},
                "text-format-unknown": {**good, "text": {"format": {"type": "yaml"}}},
                "reasoning-text": {**good, "reasoning": "high"},
                "chat-field": {**good, "messages": []},
            }
        case "/v1/completions":
            return {
                "prompt-missing": {"model": "main"},
                "prompt-null": {**good, "prompt": None},
                "prompt-number": {**good, "prompt": 7},
                "prompt-empty-list": {**good, "prompt": []},
                "prompt-objects": {**good, "prompt": [{}]},
                "n-zero": {**good, "n": 0},
                "best-of-text": {**good, "best_of": "a"},
                "echo-text": {**good, "echo": "a"},
                "suffix-number": {**good, "suffix": 7},
                "stop-number": {**good, "stop": 7},
            }
        case "/v1/embeddings":
            return {
                "input-missing": {"model": "vectors"},
                "input-null": {**good, "input": None},
                "input-empty": {**good, "input": ""},
                "input-empty-list": {**good, "input": []},
                "input-number": {**good, "input": 7},
                "input-object": {**good, "input": {"a": 1}},
                "input-mixed": {**good, "input": ["a", 7]},
                "input-nested": {**good, "input": [["a"]]},
                "input-empty-item": {**good, "input": ["a", ""]},
                "input-negative": {**good, "input": [-1]},
                "input-negative-nested": {**good, "input": [[1], [2, -1]]},
                "input-bools": {**good, "input": [[True]]},
                "user-number": {**good, "user": 7},
                "input-thousands": {**good, "input": ["a"] * 5_000},
                "format-unknown": {**good, "encoding_format": "hex"},
                "dimensions-negative": {**good, "dimensions": -1},
                "dimensions-text": {**good, "dimensions": "a"},
                "chat-model": {**good, "model": "main"},
            }
    return {
        "query-missing": {"model": "ranker", "documents": ["a"]},
        "query-empty": {**good, "query": ""},
        "query-number": {**good, "query": 7},
        "documents-missing": {"model": "ranker", "query": "a"},
        "documents-empty": {**good, "documents": []},
        "documents-text": {**good, "documents": "a"},
        "documents-numbers": {**good, "documents": [7]},
        "documents-thousands": {**good, "documents": ["a"] * 20_000},
        "top-n-zero": {**good, "top_n": 0},
        "top-n-text": {**good, "top_n": "a"},
        "chat-model": {**good, "model": "vectors"},
    }


# Fields of a chat with values that none of them can have.
WRONG_KINDS: dict[str, Any] = {
    "audio": "x", "prediction": "x", "web_search_options": "x", "thinking": "x", "modalities": "text", "store": "x", "service_tier": 7,
    "verbosity": 7, "prompt_cache_key": 7, "safety_identifier": 7, "functions": "x", "function_call": 7,
}  # fmt: skip


HEADERS: dict[str, dict[str, str]] = {
    "text-plain": {"content-type": "text/plain"},
    "form": {"content-type": "application/x-www-form-urlencoded"},
    "multipart": {"content-type": "multipart/form-data; boundary=x"},
    "utf-16": {"content-type": "application/json; charset=utf-16"},
    "timeout-text": {"x-request-timeout-ms": "soon"},
    "timeout-negative": {"x-request-timeout-ms": "-5"},
    "timeout-zero": {"x-request-timeout-ms": "0"},
    "timeout-huge": {"x-request-timeout-ms": "99999999999999999999"},
    "cost-text": {"x-bulkhead-max-cost-microusd": "much"},
    "cost-negative": {"x-bulkhead-max-cost-microusd": "-1"},
    "cache-unknown": {"x-bulkhead-cache-control": "perhaps"},
    "idempotency-long": {"idempotency-key": "k" * 1000},
    "semantic-text": {"x-bulkhead-semantic-cache": "very"},
}
