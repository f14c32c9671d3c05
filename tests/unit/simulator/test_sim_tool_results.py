"""Reading what tools brought back."""

import orjson
import pytest

from services.simulator.chat_request import Message, PastCall
from services.simulator.tool_results import results_of_turn


def read(content):
    text = content if isinstance(content, str) else orjson.dumps(content).decode()
    messages = [Message("assistant", "", tool_calls=(PastCall("c", "t", {}, "{}"),)), Message("tool", text, tool_call_id="c")]
    return results_of_turn(messages, 0)[0]


@pytest.mark.parametrize(
    ("content", "value"),
    [
        ("42", "42"),
        ("-1.5", "-1.5"),
        ("plain words", "plain words"),
        ({"result": 391}, "391"),
        ({"output": {"value": 1.5}}, "1.5"),
        ({"only": "one"}, "one"),
        ([{"type": "text", "text": "from MCP"}], "from MCP"),
        ({"content": [{"type": "text", "text": "from MCP"}], "isError": False}, "from MCP"),
        ({"temperature": 20, "sky": "clear"}, '{"temperature":20,"sky":"clear"}'),
        ("<html><script>var x;</script><p>Hello</p></html>", "Hello"),
        ('{"broken": ', '{"broken":'),
        ("", ""),
        ({"error": None, "result": 5}, "5"),
    ],
)
def test_the_value(content, value):
    assert read(content).value == value
    assert read(content).error == ""


@pytest.mark.parametrize(
    "content",
    [
        {"passages": [{"citation": "d1", "title": "a.md", "heading": "H", "text": "Body."}]},
        {"output": {"results": [{"id": "d1", "content": "Body."}]}},
    ],
)
def test_passages(content):
    (passage,) = read(content).passages
    assert (passage.text, passage.citation) == ("Body.", "d1")


@pytest.mark.parametrize("depth", [10, 200, 1000])
def test_deep_nesting_is_survived(depth):
    assert read('{"result":' * depth + "1" + "}" * depth).name == "t"


def test_ids_that_repeat_in_each_message_are_told_apart():
    messages = [
        Message("assistant", "", tool_calls=(PastCall("c0", "a", {}, "{}"),)),
        Message("tool", "first", tool_call_id="c0"),
        Message("assistant", "", tool_calls=(PastCall("c0", "b", {}, "{}"),)),
        Message("tool", "second", tool_call_id="c0"),
    ]
    assert [(result.name, result.value) for result in results_of_turn(messages, 0)] == [("a", "first"), ("b", "second")]
