"""What a deployment cannot take is adapted or refused, never sent as it is and never changed in the caller's hands."""

import copy
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.llm_gateway.capabilities import Verdict, fit_of, needs_of
from services.llm_gateway.registry import Capabilities, Deployment

FITS, ADAPTED, UNFIT = Verdict.FITS, Verdict.ADAPTED, Verdict.UNFIT
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}}
SHAPE = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


def deployment(*, max_input_tokens=0, max_output_tokens=0, **can) -> Deployment:
    return Deployment(
        "d", "g", "p", "openai", "m", "chat", capabilities=Capabilities(**can), max_input_tokens=max_input_tokens,
        max_output_tokens=max_output_tokens,
    )  # fmt: skip


def request(*messages, **more) -> dict:
    return {"model": "g", "messages": list(messages) or [user("hi")], **more}


def user(content) -> dict:
    return {"role": "user", "content": content}


def system(content) -> dict:
    return {"role": "system", "content": content}


def fitted(target: Deployment, body: dict, **more):
    before = copy.deepcopy(body)
    found = fit_of(target, needs_of(body), body, **more)
    assert body == before
    return found


RICH = request(
    system("Be kind."), user([IMAGE, {"type": "text", "text": "what is it?"}]), {"role": "assistant", "content": "A"},
    tools=[TOOL], tool_choice="required", parallel_tool_calls=False, response_format=SHAPE, reasoning_effort="low", max_tokens=10**6,
)  # fmt: skip


def test_what_the_configuration_does_not_say_counts_as_possible():
    found = fitted(deployment(), RICH)
    assert found.verdict is FITS
    assert found.body is RICH


@pytest.mark.parametrize(
    ("can", "body"),
    [
        ({"tools": False}, request(tools=[TOOL])),
        ({"tools": False}, request(user("a"), {"role": "assistant", "tool_calls": [{}]}, {"role": "tool", "content": "1"})),
        ({"tool_choice": False}, request(tools=[TOOL], tool_choice="required")),
        ({"tool_choice": False}, request(tools=[TOOL], tool_choice={"type": "function", "function": {"name": "f"}})),
        ({"vision": False}, request(user([IMAGE]))),
        ({"prefill": False}, request(user("a"), {"role": "assistant", "content": "Once upon"})),
        ({"max_input_tokens": 100}, request(user("word " * 400))),
    ],
)
def test_what_nothing_makes_up_for_is_refused(can, body):
    found = fitted(deployment(**can), body)
    assert found.verdict is UNFIT
    assert found.reasons == ({"max_input_tokens": "context_window"}.get(next(iter(can)), next(iter(can))),)


@pytest.mark.parametrize(
    ("can", "body", "gone"),
    [
        ({"dropped_params": frozenset({"logit_bias"})}, request(logit_bias={"1": 2}), {"logit_bias"}),
        ({"reasoning": False}, request(reasoning_effort="high"), {"reasoning_effort"}),
        ({"parallel_tools": False}, request(tools=[TOOL], parallel_tool_calls=True), {"parallel_tool_calls"}),
        ({"tool_choice": False}, request(tools=[TOOL], tool_choice="auto"), {"tool_choice"}),
        ({"tool_choice": False}, request(tools=[TOOL], tool_choice="none"), {"tool_choice", "tools"}),
    ],
)
def test_hints_and_refused_parameters_are_left_out(can, body, gone):
    found = fitted(deployment(**can), body)
    assert found.verdict is ADAPTED
    assert set(body) - set(found.body) == gone
    assert found.body["messages"] == body["messages"]


def test_a_demanded_tool_call_is_given_up_only_with_drop_params():
    body = request(tools=[TOOL], tool_choice="required")
    found = fitted(deployment(tool_choice=False), body, drop_params=True)
    assert (found.verdict, found.reasons) == (ADAPTED, ("tool_choice",))
    assert found.body["tools"] == [TOOL]


def test_a_schema_becomes_an_instruction():
    found = fitted(deployment(json_schema=False), request(system("Be kind."), user("hi"), response_format=SHAPE))
    assert found.body["response_format"] == {"type": "json_object"}
    assert found.body["messages"][0]["content"].startswith("Be kind.\n\nAnswer with one JSON object")
    assert '{"type":"object","properties":{"n":{"type":"integer"}}}' in found.body["messages"][0]["content"]
    alone = fitted(deployment(json_schema=False), request(response_format=SHAPE))
    assert [m["role"] for m in alone.body["messages"]] == ["system", "user"]
    neither = fitted(deployment(json_schema=False, system_messages=False), request(response_format=SHAPE))
    assert [m["role"] for m in neither.body["messages"]] == ["user"]
    assert neither.body["messages"][0]["content"].endswith("\n\nhi")


def test_system_messages_are_joined_to_the_users():
    body = request(system("A"), {"role": "developer", "content": "B"}, user("hi"), {"role": "assistant", "content": "x"}, system("C"))
    found = fitted(deployment(system_messages=False), body)
    assert found.body["messages"] == [user("A\n\nB\n\nhi"), {"role": "assistant", "content": "x"}, user("C")]
    image = fitted(deployment(system_messages=False), request(system("A"), user([IMAGE])))
    assert image.body["messages"] == [user([{"type": "text", "text": "A"}, IMAGE])]


def test_an_empty_prefill_is_left_out():
    found = fitted(deployment(prefill=False), request(user("a"), {"role": "assistant", "content": ""}))
    assert (found.verdict, found.body["messages"]) == (ADAPTED, [user("a")])


def test_more_output_than_the_model_can_give_is_bounded():
    found = fitted(deployment(max_output_tokens=4096), request(max_tokens=8000))
    assert (found.reasons, found.body["max_tokens"]) == (("max_tokens",), 4096)
    assert "max_completion_tokens" not in found.body
    assert fitted(deployment(max_output_tokens=4096), request(max_completion_tokens=4096)).verdict is FITS


def test_pictures_do_not_count_as_text():
    body = request(user([{"type": "image_url", "image_url": {"url": "data:," + "A" * 10**6}}, {"type": "text", "text": "x"}]))
    assert needs_of(body).characters == 1
    assert fitted(deployment(max_input_tokens=100), body).verdict is FITS


flags = st.sampled_from([None, True, False])


KINDS = ("tools", "tool_choice", "parallel_tools", "vision", "json_schema", "reasoning", "prefill", "system_messages")


@given(
    can=st.fixed_dictionaries(dict.fromkeys(KINDS, flags)),
    drop=st.sets(st.sampled_from(sorted(RICH))),
    drop_params=st.booleans(),
)
def test_what_is_adapted_fits(can, drop, drop_params):
    body = {name: value for name, value in RICH.items() if name not in drop or name == "messages"}
    target = deployment(max_output_tokens=4096, **can)
    found = fitted(target, body, drop_params=drop_params)
    if found.verdict is not UNFIT:
        again = fitted(target, dict(found.body), drop_params=drop_params)
        assert again.verdict is FITS
        assert again.body == found.body


def test_looking_costs_little():
    """A loose bound: both looks at a plain request of twenty messages are to take some microseconds."""
    body, target = request(system("s"), *[user("a" * 100)] * 20), deployment(max_input_tokens=10**5, max_output_tokens=10**4)
    best = float("inf")
    for _ in range(20):
        started = time.perf_counter()
        for _ in range(200):
            fit_of(target, needs_of(body), body)
        best = min(best, (time.perf_counter() - started) / 200)
    print(best * 1e6)
    assert best < 60e-6
