"""Answers of a form: checked before anybody sees them, asked for once more, and within bounds whatever a schema is made of."""

import time

import orjson
import pytest

from services.orchestrator.records import Limits
from services.orchestrator.testing.turn_world import Journal, World, agent
from services.orchestrator.turn.schemas import AnswerSchema, BadSchema

SCHEMA = {
    "type": "object", "properties": {"n": {"type": "integer"}, "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
    "required": ["n"], "additionalProperties": False,
}  # fmt: skip
WANTED = orjson.dumps({"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}).decode()
CLIENTS = ({"name": "pick", "description": "", "parameters": "{}"},)


def answering(*answers, **fields):
    """A world whose model gives these answers one after the other."""
    left = list(answers)
    fields = {"asked_for": {"response_format": WANTED, **fields.pop("more", {})}, **fields}

    def reply(call):
        # Under the same key the gateway gives the same answer.
        keys = list(dict.fromkeys(each.key for each in world.asked))
        return left[min(keys.index(call.key), len(left) - 1)]

    world = World(reply, agent(), **fields)
    return world


def shown(world):
    return [data["text"] for data in world.journal.of("message_delta")]


def test_an_answer_that_fits_is_shown_and_the_form_goes_with_each_call_that_may_be_the_last():
    world = answering([("look", {})], '{"n":1}')
    assert world.run()["output_text"] == '{"n":1}'
    assert shown(world) == ['{"n":1}']
    assert [call.response_format for call in world.asked] == [WANTED.encode()] * 2
    forced = answering([("pick", {})], more={"client_tools": CLIENTS, "tool_choice": '"required"'})
    forced.run()
    assert [(call.tool_choice, call.response_format) for call in forced.asked] == [(b'"required"', b"")]


@pytest.mark.parametrize("append_only", [True, False])
@pytest.mark.parametrize("lost", [{}, *({n: survives} for n in range(1, 7) for survives in (True, False))])
def test_one_that_does_not_is_told_what_is_wrong_and_shown_to_nobody(append_only, lost):
    world = answering('{"n":"one"}', '{"n":1}', more={"append_only": append_only}, journal=Journal(lost))
    result = world.run()
    assert (result["output_text"], shown(world)) == ('{"n":1}', ['{"n":1}'])
    assert [(m.role, m.text) for m in world.asked[-1].messages][-2] == ("assistant", '{"n":"one"}')
    assert "integer" in world.asked[-1].messages[-1].text
    # Both calls are paid for, and asked under keys of their own.
    assert (result["usage"]["model_calls"], result["usage"]["input_tokens"]) == (2, 20)
    assert len({call.key for call in world.asked}) == 2
    assert [data["code"] for data in world.journal.of("warning")] == ["answer_asked_again"]


@pytest.mark.parametrize("answers", [["no", "no"], ['{"n":"one"}', '{"m":1}'], ["", "[]"], ["NaN", '{"n":1,"x":2}'], ["[" * 2000] * 2])
def test_the_second_that_does_not_fit_ends_the_run(answers):
    world = answering(*answers)
    result = world.run()
    assert (result["error"]["reason"], shown(world), len(world.asked)) == ("OUTPUT_SCHEMA", [], 2)
    assert not world.journal.of("message_completed")


def test_nothing_is_left_to_ask_again_with():
    world = answering("no", limits=Limits(max_steps=1))
    assert (world.run()["error"]["reason"], len(world.asked)) == ("OUTPUT_SCHEMA", 1)


def test_a_json_object_is_an_object_and_text_is_anything():
    world = answering("[1]", '{"a":1}', more={"response_format": '{"type":"json_object"}'})
    assert (world.run()["output_text"], shown(world)) == ('{"a":1}', ['{"a":1}'])
    text = answering("[1]", more={"response_format": '{"type":"text"}'})
    assert (text.run()["output_text"], text.asked[0].response_format) == ("[1]", b"")


def test_a_schema_may_refer_to_itself_and_say_all_that_is_usual():
    schema = AnswerSchema(SCHEMA)
    deep = None
    for _ in range(10):
        deep = {"n": 1, "next": deep}
    assert schema.problems(deep) == []
    deep["next"]["next"]["n"] = "x"
    assert schema.problems(deep)
    usual = AnswerSchema({
        "$schema": "http://json-schema.org/draft-07/schema#", "$defs": {"k": {"const": "a"}}, "type": "object",
        "properties": {"k": {"$ref": "#/$defs/k"}, "p": {"type": "string", "pattern": "^a+$"}, "l": {"items": {"enum": [1, 2]}}},
    })  # fmt: skip
    assert usual.problems({"k": "a", "p": "aa", "l": [1, 2]}) == []
    assert len(usual.problems({"k": "b", "p": "b", "l": [3]})) == 3


def doubling(levels, word):
    """A small schema that leads to its last part in 2^levels ways."""
    defs = {f"d{i}": {word: [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(levels)}
    return {"$ref": "#/$defs/d0", "$defs": {**defs, f"d{levels}": {"type": "string"}}}


TOWER = {"type": "object"}
for _ in range(100):
    TOWER = {"properties": {"a": TOWER}}


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        (doubling(40, "anyOf"), "complex"), (doubling(40, "allOf"), "complex"), ({"$ref": "#"}, "without an end"),
        ({"anyOf": [{"$ref": "#"}, {}]}, "without an end"), ({"$ref": "https://example.com/s"}, "into the schema itself"),
        ({"$ref": "#/$defs/none"}, "nothing"), ({"$dynamicRef": "#a"}, "not supported"),
        ({"unevaluatedProperties": False}, "not supported"),
        ({"type": "strange"}, ""), ({"pattern": "("}, ""), ([], "object"), (None, "object"), (True, "object"),
    ],
)  # fmt: skip
def test_a_schema_that_cannot_be_checked_by_is_refused_at_once(schema, why):
    began = time.monotonic()
    with pytest.raises(BadSchema) as caught:
        AnswerSchema(schema)
    assert why in str(caught.value)
    assert time.monotonic() - began < 5


def test_an_answer_that_would_keep_the_process_at_work_for_hours_is_not_checked():
    schema = AnswerSchema({"properties": {"a": {"anyOf": [{"$ref": "#"}, {"$ref": "#"}]}}, "required": ["x"]})
    answer = {}
    for _ in range(40):
        answer = {"a": answer}
    began = time.monotonic()
    assert "too large" in schema.problems(answer)[0]
    for _ in range(60):
        answer = {"a": answer}
    assert "deeper" in schema.problems(answer)[0]
    # Branches below one another that nothing leads back from: many, and no work for it.
    wide = AnswerSchema({"$ref": "#/$defs/d0", "$defs": {
        **{f"d{i}": {"properties": {name: {"$ref": f"#/$defs/d{i + 1}"} for name in "ab"}} for i in range(40)}, "d40": {},
    }})  # fmt: skip
    assert wide.problems({"a": {"b": {"a": 1}}}) == []
    AnswerSchema(TOWER)
    patterned = AnswerSchema({"type": "string", "pattern": "^(a+)+$"})
    assert patterned.problems("a" * 50_000 + "b")
    assert time.monotonic() - began < 5
