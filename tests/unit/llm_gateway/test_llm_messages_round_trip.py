"""A request of the Messages API that passes through the canonical shape to a model of that API arrives as it was sent."""

import copy

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import completion_create_params
from opentelemetry.context import Context
from pydantic import TypeAdapter

from services.common.errors import InvalidInput
from services.llm_gateway.adapters.anthropic import AnthropicDialect
from services.llm_gateway.chat import Answer
from services.llm_gateway.failures import UpstreamFault
from services.llm_gateway.messages_plain import needs_of, plain
from services.llm_gateway.model_port.messages_answer import message_body
from services.llm_gateway.model_port.messages_request import canonical
from services.llm_gateway.money import NOTHING
from services.llm_gateway.ports import Attempt, Limits
from services.llm_gateway.registry import Capabilities, Deployment
from services.llm_gateway.request_rules import check_request

CACHED = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
TARGET = Deployment("d", "g", "anthropic", "anthropic", "sim", "chat", api_base="https://x")
OPENAI = Deployment("o", "g", "openai", "openai", "gpt", "chat", api_base="https://x", capabilities=Capabilities(reasoning=True))


def through(body, betas=""):
    chat = {**canonical(copy.deepcopy(body), betas), "model": "sim"}
    attempt = Attempt(TARGET, chat, Limits(1, 1, 1, 1, 1), 1, Context())
    return orjson.loads(AnthropicDialect().chat(attempt, stream=bool(body.get("stream"))).body)


def normal(body):
    """By the API's own rules: a text is a list of one block, turns of one role that follow each other are one."""
    made = {key: value for key, value in body.items() if key != "model" and not (key == "stream" and not value)}
    if isinstance(made.get("system"), str):
        made["system"] = [{"type": "text", "text": made["system"]}]
    turns = []
    for message in made["messages"]:
        content = message["content"]
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if turns and turns[-1]["role"] == message["role"]:
            turns[-1]["content"] = turns[-1]["content"] + blocks
        else:
            turns.append({"role": message["role"], "content": blocks})
    made["messages"] = turns
    made["tools"] = [{key: value for key, value in tool.items() if (key, value) != ("type", "custom")} for tool in made.get("tools", [])]
    return made


WHOLE = {
    "model": "m",
    "max_tokens": 4096,
    "stream": True,
    "system": [{"type": "text", "text": "Be kind.", **CACHED}, {"type": "text", "text": "Be brief."}],
    "temperature": 0.5,
    "top_k": 5,
    "stop_sequences": ["END", "STOP"],
    "metadata": {"user_id": "u-1"},
    "service_tier": "standard_only",
    "container": {"id": "c", "skills": []},
    "mcp_servers": [{"type": "url", "url": "https://x", "name": "n"}],
    "context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]},
    "cache_control": {"type": "ephemeral"},
    "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": {"type": "object", "title": "kept", "properties": {}}}},
    "tools": [
        {"name": "a", "description": "d", "input_schema": {"type": "object", "properties": {}}, "strict": False, **CACHED},
        {"type": "custom", "name": "b", "input_schema": {"type": "object"}, "defer_loading": True, "input_examples": [{"x": 1}]},
        {"type": "web_search_20250305", "name": "web_search", "max_uses": 3},
        {"type": "bash_20250124", "name": "bash"},
    ],
    "tool_choice": {"type": "tool", "name": "a", "disable_parallel_tool_use": True},
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "hi", **CACHED},
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}, **CACHED},
                {"type": "image", "source": {"type": "url", "url": "https://x/y"}},
                {"type": "image", "source": {"type": "file", "file_id": "f"}},
                {"type": "document", "source": {"type": "url", "url": "https://x/z.pdf"}, "citations": {"enabled": True}, "title": "t"},
                {"type": "search_result", "source": "s", "title": "t", "content": [{"type": "text", "text": "r"}]},
                {"type": "container_upload", "file_id": "f"},
            ],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "sig"},
                {"type": "redacted_thinking", "data": "xx"},
                {"type": "text", "text": "I look.", **CACHED},
                {"type": "text", "text": "Twice."},
                {"type": "tool_use", "id": "toolu_1", "name": "a", "input": {"x": [1, {"y": None}]}, **CACHED},
                {"type": "tool_use", "id": "toolu_2", "name": "b", "input": {}, "caller": {"type": "direct"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "toolu_1", "content": "plain", **CACHED},
                {
                    "type": "tool_result",
                    "tool_use_id": "toolu_2",
                    "is_error": True,
                    "content": [
                        {"type": "text", "text": "t"},
                        {"type": "image", "source": {"type": "base64", "media_type": "image/gif", "data": "BBBB"}},
                    ],
                },
                {"type": "text", "text": "so?"},
            ],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "Searching."},
                {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "q"}},
                {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": []},
                {"type": "thinking", "thinking": "more", "signature": "sig2"},
                {"type": "text", "text": "Found.", "citations": [{"type": "char_location", "cited_text": "x"}]},
            ],
        },
        {"role": "user", "content": "thanks"},
    ],
}


def test_nothing_of_a_whole_request_is_lost():
    assert normal(through(WHOLE)) == normal(WHOLE)


def test_the_canonical_request_is_one_of_the_chat_api():
    chat = canonical(WHOLE, "beta-1,beta-2")
    check_request({**chat, "model": "m"})
    assert chat["anthropic"]["betas"] == ["beta-1", "beta-2"]
    assert "metadata" not in chat


texts = st.text(min_size=1, max_size=8).filter(str.strip)
cached = st.sampled_from([{}, CACHED])
text_blocks = st.builds(lambda text, more: {"type": "text", "text": text, **more}, texts, cached)
images = st.builds(
    lambda source, more: {"type": "image", "source": source, **more},
    st.sampled_from([{"type": "base64", "media_type": "image/png", "data": "QUJD"}, {"type": "url", "url": "https://x/y.png"}]),
    cached,
)
inputs = st.dictionaries(
    st.text(max_size=4), st.one_of(st.integers(-(2**53), 2**53), st.booleans(), st.none(), st.text(max_size=4)), max_size=3
)
identifiers = st.text("abcXYZ019_-", min_size=1, max_size=6)
uses = st.builds(
    lambda i, name, given, more: {"type": "tool_use", "id": i, "name": name, "input": given, **more},
    identifiers,
    identifiers,
    inputs,
    cached,
)
thoughts = st.builds(lambda text: {"type": "thinking", "thinking": text, "signature": "s"}, texts)
foreign = st.just({"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "q"}})
results = st.builds(
    lambda i, content, more: {"type": "tool_result", "tool_use_id": i, **content, **more},
    identifiers,
    st.one_of(
        st.just({}),
        texts.map(lambda text: {"content": text}),
        st.lists(st.one_of(text_blocks, images), min_size=1, max_size=2).map(lambda c: {"content": c}),
    ),
    st.sampled_from([{}, {"is_error": True}, CACHED]),
)
user_turns = st.one_of(texts, st.lists(st.one_of(text_blocks, images, results), min_size=1, max_size=4))
assistant_turns = st.one_of(texts, st.lists(st.one_of(text_blocks, uses, thoughts, foreign), min_size=1, max_size=4))


@st.composite
def conversations(draw):
    made = [{"role": "user", "content": draw(user_turns)}]
    for _ in range(draw(st.integers(0, 3))):
        made.append({"role": "assistant", "content": draw(assistant_turns)})
        made.append({"role": "user", "content": draw(user_turns)})
    return made


@settings(max_examples=150, deadline=None)
@given(conversations())
def test_no_conversation_loses_anything(messages):
    body = {"model": "m", "max_tokens": 10, "messages": messages}
    assert normal(through(body)) == normal(body)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(st.builds(lambda text: {"type": "text", "text": text}, texts), uses, thoughts, foreign), min_size=1, max_size=5))
def test_no_answer_loses_anything(blocks):
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": blocks, "stop_reason": "end_turn",
               "stop_sequence": None, "usage": {"input_tokens": 3, "output_tokens": 4, "cache_read_input_tokens": 2}}  # fmt: skip
    found = AnthropicDialect().read_answer(orjson.dumps(message))
    back = orjson.loads(message_body(Answer(found.raw, found.data), (), NOTHING))
    strip = [{key: value for key, value in block.items() if key != "cache_control"} for block in blocks]
    assert [{key: value for key, value in block.items() if key != "cache_control"} for block in back["content"]] == strip
    assert (back["usage"]["input_tokens"], back["usage"]["cache_read_input_tokens"], back["usage"]["output_tokens"]) == (3, 2, 4)


def test_for_models_of_openais_api_what_they_lack_is_left_out_or_named():
    body = {key: value for key, value in WHOLE.items() if key not in ("container", "mcp_servers")}
    body["tools"] = WHOLE["tools"][:2]
    body["messages"] = [
        {
            "role": "user",
            "content": [*WHOLE["messages"][0]["content"][:3], {"type": "document", "source": {"type": "text", "data": "doc"}}],
        },
        *WHOLE["messages"][1:3],
    ]
    made = plain({**canonical(body), "model": "gpt"}, OPENAI)
    TypeAdapter(completion_create_params.CompletionCreateParams).validate_python(made)
    assert b"cache_control" not in orjson.dumps(made)
    assert "anthropic" not in made
    assert made["reasoning_effort"] == "low"
    roles = [message["role"] for message in made["messages"]]
    # The picture that a tool showed follows its results.
    assert roles == ["system", "user", "assistant", "tool", "tool", "user", "user"]
    assert made["messages"][4]["content"] == "Error: t"
    assert made["messages"][5]["content"][0]["type"] == "image_url"
    named = dict(needs_of(canonical(WHOLE)))
    assert {"tools.2", "tools.3", "container", "mcp_servers", "messages.1.content"} <= named.keys()
    with pytest.raises(UpstreamFault, match="tools"):
        plain(canonical(WHOLE), OPENAI)


def test_a_request_that_came_as_a_chat_passes_untouched():
    body = {"messages": [{"role": "user", "content": "x"}], "anything": 1}
    assert plain(body, OPENAI) is body


def test_edited_answers_win_over_the_blocks_that_came_with_them():
    blocks = [{"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}}, {"type": "text", "text": "old"}]
    message = {"role": "assistant", "content": "edited", "provider_specific_fields": {"content_blocks": blocks}}
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}, message, {"role": "user", "content": "y"}]}
    attempt = Attempt(TARGET, body, Limits(1, 1, 1, 1, 1), 1, Context())
    made = orjson.loads(AnthropicDialect().chat(attempt, stream=False).body)
    assert made["messages"][1]["content"] == "edited"


def test_a_cache_can_be_filled_without_an_answer():
    body = {"model": "m", "max_tokens": 0, "messages": [{"role": "user", "content": "x"}]}
    assert through(body)["max_tokens"] == 0


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"messages": None}, "messages"),
        ({"messages": [3]}, "messages.0"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_use", "id": "x", "name": "y"}]}]}, "messages.0.content.0.input"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "x", "content": [3]}]}]}, "content.0.content.0"),
        ({"messages": [{"role": "user", "content": ""}, {"role": "user", "content": "x"}]}, "non-empty"),
        ({"system": [{"type": "image"}]}, "system.0"),
        ({"system": 5}, "system"),
        ({"tools": [{"name": "x", "input_schema": 3}]}, "tools.0.input_schema"),
        ({"tools": [{"type": 4}]}, "tools.0.type"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format"),
        ({"metadata": {"user_id": 4}}, "metadata.user_id"),
        ({"stream": "yes"}, "stream"),
        ({"thinking": {"type": "enabled", "budget_tokens": 2000}}, "budget_tokens"),
    ],
)
def test_wrong_requests_name_the_field(wrong, named):
    with pytest.raises(InvalidInput, match=named):
        canonical({"model": "m", "max_tokens": 10, "messages": [{"role": "user", "content": "x"}], **wrong})


def test_what_is_nested_too_deeply_is_the_callers_fault_and_no_defect():
    deep = orjson.loads(b'{"a":' * 500 + b"1" + b"}" * 500)
    call = {"type": "tool_use", "id": "a", "name": "b", "input": deep}
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": [call]}]
    with pytest.raises(InvalidInput, match="nested"):
        canonical({"model": "m", "max_tokens": 5, "messages": messages})
