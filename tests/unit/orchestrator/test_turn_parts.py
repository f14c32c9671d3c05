"""The pure parts of a turn: citations, explicit memories, checkpoints, stored forms."""

from dataclasses import replace

import orjson
import pytest

from services.orchestrator.ports import Message, ToolRequest
from services.orchestrator.records import Limits, RunRef, RunSpec
from services.orchestrator.turn.citations import issue, resolve
from services.orchestrator.turn.finish import to_remember
from services.orchestrator.turn.state import PendingCall, TurnState


def citation(name, document="doc", start=0):
    return {"citation_id": name, "document_id": document, "char_start": start}


def test_only_issued_citations_resolve_once_and_in_order():
    issued = {"c1": citation("c1"), "d2": citation("d2")}
    cited, unknown = resolve("see [d2], [c1] and [d2], not [c9] or [x1] or c1", issued)
    assert [c["citation_id"] for c in cited] == ["d2", "c1"]
    assert unknown == ["c9"]


def test_a_second_search_does_not_take_the_ids_of_the_first():
    issued = {}
    output = orjson.dumps({"passages": [{"citation": "d1", "text": "a"}, {"citation": "d2", "text": "b"}]})
    assert issue(issued, [citation("d1"), citation("d2", start=5)], output) == output
    other = orjson.loads(issue(issued, [citation("d1", "other"), citation("d2", start=5)], output))
    assert [p["citation"] for p in other["passages"]] == ["d3", "d2"]
    assert issued["d1"]["document_id"] == "doc"
    assert issued["d3"] == citation("d3", "other")


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Remember that I live in Lyon.", "I live in Lyon."),
        ("please remember: my code is blue", "my code is blue"),
        ("Hello. Please remember that it rains", "it rains"),
        ("记住我喜欢茶", "我喜欢茶"),
        ("Do you remember that day?", ""),
        ("what did I ask you to remember?", ""),
        ("I remembered something", ""),
        ("Can you remember my name?", ""),
    ],
)
def test_what_the_user_asks_to_remember(text, kept):
    assert to_remember(text) == kept


def test_checkpoints_come_back_as_they_were():
    state = TurnState(phase="tools", step=3, started_step=3, active_ms=17, citations={"c1": citation("c1")}, tool_log=[{"name": "x"}])
    state.usage["tool_calls"] = 2
    state.pending = [PendingCall(0, "id", "calculator", "1.0.0", "{}", True, 30.0)]
    assert TurnState.decode(orjson.loads(state.encode())) == state
    assert TurnState.decode({}) == TurnState()
    message = Message("assistant", "text", (ToolRequest("1", "x", b"{bad"),))
    assert Message.decode(message.encode()) == message
    thought = Message("assistant", "", (ToolRequest("1", "x", b"{}"), ToolRequest("2", "y", b"{}", b'{"s":1}')), extra=b'{"t":"\xc3\xa9"}')
    assert Message.decode(thought.encode()) == thought
    answer = Message("tool", "{}", tool_call_id="1")
    assert Message.decode(answer.encode()) == answer


def test_specifications_and_references_come_back_as_they_were():
    spec = RunSpec("t", "a", "1", "d", [{"role": "user", "text": "x"}], Limits(1.5, 2, 3, 4), {"tenant": "x"}, trace={"traceparent": "y"})
    stored = {**spec.as_dict(), "from_a_later_version": 1}
    assert RunSpec.from_dict(orjson.loads(orjson.dumps(stored))) == spec
    bounded = replace(spec, limits=Limits(1.5, 2, 3, 4, 5))
    # The version before takes the list as all there is.
    assert bounded.as_dict()["limits"] == [1.5, 2, 3, 4]
    assert RunSpec.from_dict(orjson.loads(orjson.dumps(bounded.as_dict()))) == bounded
    exposed = replace(spec, experiment="tone", arm="warm")
    assert RunSpec.from_dict(orjson.loads(orjson.dumps(exposed.as_dict()))) == exposed
    # What the version before writes, and reads as a whole, says nothing of experiments.
    assert not {"experiment", "arm"} & spec.as_dict().keys()
    ref = RunRef("a/b {c}|ü", "t:1", "r.2")
    assert RunRef.decode(ref.encode()) == ref
