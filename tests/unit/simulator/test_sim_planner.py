"""Which tools the rules call, and what they answer with."""

from collections.abc import Callable
from typing import Any

import orjson
import pytest

from services.simulator.chat_request import parse_chat
from services.simulator.planner import reply_to

CONTEXT = {
    "role": "system",
    "content": """You are the assistant.
<context>
<memory id="m1">The user&apos;s favourite colour is teal.</memory>
<document citation="c1" title="README.md" heading="Leases &gt; Times">Deliveries are &quot;at least once&quot;.
The lease of a run lasts 3 s &amp; is renewed each second.</document>
<document citation="c2" title="style.md" heading="House rules">Comments say why, never what.</document>
</context>
Cite documents as [c1].""",
}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def ids() -> Callable[[int], list[str]]:
    made = iter(range(1_000_000))
    return lambda wanted: [f"call_{next(made)}" for _ in range(wanted)]


def ask(*messages: dict[str, Any], tools=(), make_ids=None, **more):
    body = {"model": "sim-1", "messages": list(messages), **more}
    if tools:
        body["tools"] = list(tools)
    return reply_to(parse_chat(body), make_ids or ids())


def calls_of(reply) -> list[tuple[str, dict[str, Any]]]:
    return [(call["function"]["name"], orjson.loads(call["function"]["arguments"])) for call in reply.tool_calls()]


def converse(*messages: dict[str, Any], tools, results: dict[str, Any], **more):
    """Run the tool loop as an agent would: the final text and all calls, step by step."""
    transcript, steps, make_ids = list(messages), [], ids()
    for _ in range(20):
        reply = ask(*transcript, tools=tools, make_ids=make_ids, **more)
        if not reply.tool_calls():
            return reply.text(), steps
        steps.append(calls_of(reply))
        transcript.append({"role": "assistant", "content": None, "tool_calls": reply.tool_calls()})
        for call in reply.tool_calls():
            result = results[call["function"]["name"]]
            content = result(orjson.loads(call["function"]["arguments"])) if callable(result) else result
            content = content if isinstance(content, str) else orjson.dumps(content).decode()
            transcript.append({"role": "tool", "tool_call_id": call["id"], "content": content})
    raise AssertionError(f"no end after 20 steps: {steps}")


def test_a_calculation_goes_to_the_tool_with_an_expression_whatever_its_name(tools):
    renamed = {"type": "function", "function": {"name": "abacus", "parameters": {"properties": {"formula": {"type": "string"}}}}}
    assert calls_of(ask(user("what is 17*23"), tools=[renamed])) == [("abacus", {"formula": "17*23"})]


def test_a_tool_with_two_numbers_and_an_operation_gets_its_operands(tools):
    schema = {
        "type": "object",
        "properties": {"op": {"enum": ["add", "multiply"]}, "a": {"type": "number"}, "b": {"type": "number"}},
        "required": ["op", "a", "b"],
    }
    arithmetic = {"type": "function", "function": {"name": "arithmetic", "parameters": schema}}
    assert calls_of(ask(user("What is 17 times 23?"), tools=[arithmetic])) == [("arithmetic", {"op": "multiply", "a": 17, "b": 23})]
    assert calls_of(ask(user("What is 17 divided by 23?"), tools=[arithmetic])) == [], "division is not among its operations"


def test_the_result_is_quoted(tools):
    text, steps = converse(user("what is 17*23?"), tools=tools.every, results={"calculator": {"result": 391}})
    assert steps == [[("calculator", {"expression": "17*23"})]]
    assert text == "17*23 = 391"


def test_an_answer_follows_the_result_even_a_wrong_one():
    # The simulator must not calculate by itself, or a tool that never ran would go unnoticed.
    calculator = {"type": "function", "function": {"name": "calculator", "parameters": {"properties": {"expression": {}}}}}
    text, _ = converse(user("what is 17*23?"), tools=[calculator], results={"calculator": "four"})
    assert "four" in text
    assert "391" not in text


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("What time is it?", ("current_time", {})),
        ("What time is it in Tokyo?", ("current_time", {"timezone": "Asia/Tokyo"})),
        ("Tell me the current date in Europe/Madrid.", ("current_time", {"timezone": "Europe/Madrid"})),
        ("Please fetch https://example.com/a?b=1.", ("http_fetch", {"url": "https://example.com/a?b=1"})),
        ("What is the weather in Paris in celsius?", ("get_weather", {"city": "Paris", "unit": "celsius"})),
        ("What do the documents say about leases?", ("search_documents", {"query": "What do the documents say about leases?"})),
        ("Run this:\n```python\nprint(1)\n```", ("python", {"code": "print(1)"})),
        ("Use the calculator: what is 15% of 240?", ("calculator", {"expression": "15/100*240"})),
    ],
)
def test_the_tool_that_fits_is_picked(tools, question, expected):
    assert calls_of(ask(user(question), tools=tools.every)) == [expected]


def test_several_needs_are_called_for_at_once_or_one_by_one(tools):
    question = user("What is 6*7, and what time is it in London?")
    results = {"calculator": {"result": 42}, "current_time": {"iso": "2030-01-02T03:04:05+00:00"}}
    together, steps = converse(question, tools=tools.every, results=results)
    assert [len(step) for step in steps] == [2]
    one_by_one, steps = converse(question, tools=tools.every, results=results, parallel_tool_calls=False)
    assert [len(step) for step in steps] == [1, 1]
    assert together == one_by_one
    assert "6*7 = 42" in together
    assert "2030-01-02T03:04:05+00:00" in together


def test_a_calculation_goes_on_with_the_result_before_it(tools):
    text, steps = converse(
        user("What is 3*4? Then multiply the result by 5."),
        tools=tools.every,
        results={"calculator": lambda arguments: {"result": {"3*4": 12, "12*5": 60}[arguments["expression"]]}},
    )
    assert steps == [[("calculator", {"expression": "3*4"})], [("calculator", {"expression": "12*5"})]]
    assert "12*5 = 60" in text


def test_the_main_turn_has_a_citation_a_calculation_and_something_said_earlier(tools):
    text, steps = converse(
        CONTEXT,
        user("My project's code name is Heron."),
        assistant('Noted: "My project\'s code name is Heron."'),
        user("According to the README, how long does the lease of a run last? Also what is 17*23, and what is my project's code name?"),
        tools=tools.every,
        results={"calculator": {"result": 391}},
    )
    assert steps == [[("calculator", {"expression": "17*23"})]], "documents were given, so nothing needs to be searched"
    assert 'README.md says: "The lease of a run lasts 3 s & is renewed each second." [c1]' in text
    assert "17*23 = 391" in text
    assert 'You said earlier: "My project\'s code name is Heron."' in text
    assert "found nothing" not in text


def test_a_memory_is_quoted():
    assert ask(CONTEXT, user("What is my favourite colour?")).text() == 'From memory: "The user\'s favourite colour is teal."'


def test_recalled_turns_inside_the_context_count_as_said():
    context = {"role": "system", "content": '<context><turn role="user">My cat is called Miso.</turn></context>'}
    assert ask(context, user("What is my cat called?")).text() == 'You said earlier: "My cat is called Miso."'


def test_what_was_said_last_wins():
    text = ask(
        user("My code name is Heron."),
        assistant("Noted."),
        user("My code name is Osprey."),
        assistant("Noted."),
        user("What is my code name?"),
    ).text()
    assert "Osprey" in text
    assert "Heron" not in text


def test_an_earlier_question_is_no_answer():
    text = ask(user("What is my code name?"), assistant("I found nothing."), user("What is my code name?")).text()
    assert "You said earlier" not in text
    assert "found nothing" in text


def test_documents_found_by_a_search_are_cited(tools):
    passages = {
        "passages": [{"citation": "d7", "title": "guide.md", "heading": "Ports", "text": "Ports are fixed. The gateway listens on 8080."}]
    }
    text, steps = converse(
        user("According to the guide, on which port does the gateway listen?"), tools=tools.every, results={"search_documents": passages}
    )
    assert [name for name, _ in steps[0]] == ["search_documents"]
    assert text == 'guide.md says: "The gateway listens on 8080." [d7]'


def test_a_search_without_a_hit_is_told_and_not_repeated(tools):
    text, steps = converse(
        user("What do the documents say about whales?"), tools=tools.every, results={"search_documents": {"passages": []}}
    )
    assert len(steps) == 1
    assert "found nothing" in text


@pytest.mark.parametrize(
    "failure",
    [
        {"error": {"code": "TOOL_FAILED", "message": "division by zero"}},
        {"error": "division by zero"},
        {"isError": True, "message": "division by zero"},
        {"status": "error", "message": "division by zero"},
        {"output": {"error": {"message": "division by zero"}}},
        "Error: division by zero",
    ],
)
def test_a_failed_tool_is_told_honestly_and_not_tried_again(tools, failure):
    text, steps = converse(user("What is 1/0?"), tools=tools.every, results={"calculator": failure})
    assert len(steps) == 1
    assert text == "The calculator tool failed: division by zero"


def test_the_question_asked_again_in_a_later_turn_calls_the_tool_again(tools):
    first = ask(user("What is 2*3?"), tools=tools.every)
    transcript = [
        user("What is 2*3?"),
        {"role": "assistant", "content": None, "tool_calls": first.tool_calls()},
        {"role": "tool", "tool_call_id": first.tool_calls()[0]["id"], "content": "6"},
        assistant("2*3 = 6"),
    ]
    assert calls_of(ask(*transcript, user("What is 2*3?"), tools=tools.every)) == [("calculator", {"expression": "2*3"})]


def test_without_a_tool_it_says_so():
    assert ask(user("What is 2*3?")).text() == "I have no tool to calculate 2*3."


def test_a_statement_is_acknowledged():
    assert ask(user("My project's code name is Heron.")).text() == 'Noted: "My project\'s code name is Heron."'


def test_a_greeting_says_that_this_is_a_simulator():
    assert "simulator" in ask(user("Hello!")).text()


def test_a_tool_is_used_as_often_as_asked_never_twice_with_the_same_arguments(tools):
    text, steps = converse(
        user("Use the calculator tool 5 times."), tools=tools.every, results={"calculator": lambda given: given["expression"]}
    )
    assert len(steps) == 5
    assert len({orjson.dumps(step) for step in steps}) == 5
    assert text.count("=") == 5


def test_tool_choice_none_never_calls(tools):
    assert ask(user("What is 2*3?"), tools=tools.every, tool_choice="none").tool_calls() == []


def test_tool_choice_required_always_calls(tools):
    assert len(calls_of(ask(user("Hello!"), tools=[tools.weather], tool_choice="required"))) == 1


def test_a_named_tool_is_called_and_no_other(tools):
    named = {"type": "function", "function": {"name": "get_weather"}}
    assert [name for name, _ in calls_of(ask(user("What is 2*3?"), tools=tools.every, tool_choice=named))] == ["get_weather"]


def test_allowed_tools_are_the_only_ones(tools):
    choice = {
        "type": "allowed_tools",
        "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "http_fetch"}}]},
    }
    assert calls_of(ask(user("What is 2*3?"), tools=tools.every, tool_choice=choice)) == []


def test_the_same_request_has_the_same_reply_and_a_seed_varies_the_words():
    texts = {seed: ask(CONTEXT, user("What is my favourite colour?"), seed=seed).text() for seed in range(8)}
    again = {seed: ask(CONTEXT, user("What is my favourite colour?"), seed=seed).text() for seed in range(8)}
    assert texts == again
    assert len(set(texts.values())) > 1
    assert all("teal" in text for text in texts.values())


def test_max_tokens_ends_the_answer_with_length():
    reply = ask(user("Write 50 words about ships."), max_tokens=7)
    assert reply.finish_reason == "length"
    assert reply.completion_tokens == 7
    assert len(reply.text().split()) == 7


def test_max_tokens_cuts_tool_arguments_too(tools):
    reply = ask(user("What is 17*23?"), tools=tools.every, max_tokens=1)
    assert reply.finish_reason == "length"
    assert reply.tool_calls()[0]["function"]["arguments"] == ""


def test_an_answer_of_the_asked_length():
    assert len(ask(user("Write 300 words.")).text().split()) == 300


def test_stop_sequences_end_the_text():
    assert ask(user("Say exactly: one two three"), stop=["two"]).text() == "one "


def test_an_answer_goes_on_from_a_prefix():
    whole = ask(user("Say exactly: one two three")).text()
    assert ask(user("Say exactly: one two three"), assistant("one two")).text() == whole.removeprefix("one two")


def test_a_json_object_is_json():
    text = ask(user("What is my name?"), response_format={"type": "json_object"}).text()
    assert "answer" in orjson.loads(text)


def test_text_in_another_script_is_matched():
    context = {
        "role": "system",
        "content": '<context><document citation="c1" title="说明">系统有五个服务。每个服务都有端口。</document></context>',
    }
    assert ask(context, user("系统有几个服务？")).text() == '说明 says: "系统有五个服务。" [c1]'


def test_a_page_that_shows_the_question_does_not_answer_it():
    page = """
<document citation="c1" title="README.md">chat "How long does the lease of a run last?"</document>
<document citation="c2" title="leases.md">The lease of a run lasts 3 s.</document>"""
    context = {"role": "system", "content": f"<context>{page}</context>"}
    assert ask(context, user("How long does the lease of a run last?")).text() == 'leases.md says: "The lease of a run lasts 3 s." [c2]'
