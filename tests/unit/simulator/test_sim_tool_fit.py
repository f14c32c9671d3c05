"""Which property of a schema gets what."""

import pytest

from services.simulator.chat_request import Tool
from services.simulator.needs import find_needs
from services.simulator.tool_fit import Toolbox


def box(asked: str, **schemas):
    return Toolbox([Tool(name, "", schema) for name, schema in schemas.items()], asked)


def first_call(asked: str, **schemas):
    call = box(asked, **schemas).call_for(find_needs(asked)[0])
    return (call.tool, dict(call.arguments)) if call else None


def test_required_properties_beside_the_main_one_are_filled():
    schema = {
        "properties": {"url": {"type": "string"}, "method": {"enum": ["GET", "POST"]}, "timeout": {"type": "integer", "minimum": 5}},
        "required": ["url", "method", "timeout"],
    }
    assert first_call("Fetch https://example.com/ please", fetch=schema) == (
        "fetch",
        {"url": "https://example.com/", "method": "GET", "timeout": 5},
    )


def test_the_tool_that_the_user_names_comes_first():
    schema = {"properties": {"expression": {"type": "string"}}}
    assert first_call("Use the second_calc tool: what is 2*3?", first_calc=schema, second_calc=schema)[0] == "second_calc"


def test_python_is_used_for_arithmetic_when_asked_for_or_alone():
    calculator, python = {"properties": {"expression": {"type": "string"}}}, {"properties": {"code": {"type": "string"}}}
    assert first_call("What is 2*3?", python=python, calculator=calculator)[0] == "calculator"
    assert first_call("Use python to compute 2*3", calculator=calculator, python=python) == ("python", {"code": "2*3"})
    assert first_call("What is 2*3?", python=python) == ("python", {"code": "2*3"})


def test_a_time_tool_needs_nothing_that_the_question_cannot_give():
    setter = {"properties": {"time": {"type": "string"}, "label": {"type": "string"}}, "required": ["time", "label"]}
    assert first_call("What time is it?", set_time=setter) is None
    assert first_call("What time is it?", clock={"properties": {"tz": {"type": "string"}}, "required": ["tz"]}) == ("clock", {"tz": "UTC"})


@pytest.mark.parametrize("name", ["query", "q", "question", "search_query"])
def test_a_search_tool_is_known_by_its_property_and_its_words(name):
    schema = {"properties": {name: {"type": "string"}}}
    need = find_needs("How do leases work?")[0]
    assert box("", find_passages=schema).search_for(need, in_memory=False).arguments == {name: "How do leases work?"}
    assert box("", sql=schema).search_for(need, in_memory=False) is None
    assert box("", search_memories=schema).search_for(need, in_memory=False) is None
    assert box("", search_memories=schema).search_for(need, in_memory=True) is not None


def test_varied_calls_differ_as_far_as_the_schema_lets_them():
    free = {"properties": {"text": {"type": "string"}}, "required": ["text"]}
    toolbox = box("Use echo 3 times", echo=free)
    made = {tuple(toolbox.varied(Tool("echo", "", free), step).arguments.items()) for step in range(3)}
    assert len(made) == 3


def test_a_query_keeps_to_the_length_that_its_schema_allows():
    schema = {"properties": {"query": {"type": "string", "maxLength": 20}}}
    need = find_needs("How do leases work when " + "very " * 100 + "long?")[0]
    assert box("", search_documents=schema).search_for(need, in_memory=False).arguments == {"query": "How do leases work w"}
