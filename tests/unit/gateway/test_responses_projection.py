"""Whatever the log of a run says, its events are ones that the SDK can read, and each cut of them goes on where it was."""

import asyncio

import orjson
import pytest
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb
from hypothesis import given, settings
from hypothesis import strategies as st
from openai import omit
from openai.lib.streaming.responses._responses import ResponseStreamState
from openai.types import responses as types
from pydantic import TypeAdapter

from services.common.errors import InvalidInput, NotFound
from services.gateway.following import Follower
from services.gateway.surfaces.responses import ids
from services.gateway.surfaces.responses.projection import NUMBERS_AN_EVENT, Projection
from services.gateway.surfaces.responses.reading import settled

EVENTS = TypeAdapter(types.ResponseStreamEvent)
FIRST_SEQ = 41
USAGE = {"input_tokens": 3, "output_tokens": 4}
TEXTS = st.sampled_from(["", "a", "b ", "über\n", "a long piece of text", "\0"])
MESSAGES = st.sampled_from(["m1", "m2"])
CALLS = st.sampled_from(["c1", "c2", "c3"])


def of(type_, /, **fields):
    """Events of one type, with fields out of these strategies."""
    return st.tuples(st.just(type_), st.fixed_dictionaries(fields))


QUESTIONS = st.sampled_from(["run_1/1/0", "run_1/1/1"])
BODY = st.one_of(
    of("message_delta", text=TEXTS, message_id=MESSAGES),
    of("message_delta", text=TEXTS, message_id=MESSAGES),
    of("message_completed", text=TEXTS, message_id=MESSAGES),
    of("attempt_superseded", from_seq=st.integers(FIRST_SEQ, FIRST_SEQ + 30)),
    of("log_gap", from_seq=st.integers(FIRST_SEQ, FIRST_SEQ + 30)),
    of("run_started"),
    of("tool_call_started", call_id=CALLS, tool=st.just("t"), arguments=st.sampled_from([{"a": 1}, "no json", None])),
    of("tool_call_completed", call_id=CALLS, output=st.sampled_from([{"b": 1}, "text", None])),
    of("tool_call_failed", call_id=CALLS, error=st.sampled_from([{"reason": "R", "message": "m"}, {}])),
    of(
        "interrupt_raised", interrupt_id=QUESTIONS, kind=st.sampled_from(["tool_call", "outcome_unknown"]),
        call_id=CALLS, tool=st.just("t"), arguments=st.just({}),
    ),
    of("interrupt_raised", kind=st.just("client_tools"), calls=st.just([])),
    of("interrupt_resolved", interrupt_id=QUESTIONS),
    of("citation", document_id=st.just("d"), title=st.just("t")),
    of("warning", code=st.just("w")),
    of("something_new", x=st.just(1)),
)  # fmt: skip
ENDS = st.one_of(
    of("run_finished", output_text=TEXTS, finish_reason=st.sampled_from(["stop", "length", "tool_limit", "new"]), usage=st.just(USAGE)),
    of("run_failed", error=st.just({"reason": "OVERLOADED", "message": "m"}), usage=st.just({})),
    of("run_cancelled", output_text=TEXTS, usage=st.just(USAGE)),
)
FORMS = st.sampled_from([{}, {"response_format": {"type": "json_object"}}])
CLIENT_CALLS = [{"tool_call_id": f"call_{number}", "name": "f", "arguments": '{"n":1}'} for number in range(20)]
ENDS_OF_CLIENTS = of(
    "run_finished", output_text=TEXTS, finish_reason=st.sampled_from(["tool_calls", "rephrase", "stop"]), usage=st.just(USAGE),
    client_tool_calls=st.integers(0, 20).map(lambda many: CLIENT_CALLS[:many]),
)  # fmt: skip
LOGS = st.tuples(st.lists(BODY, max_size=18), ENDS).map(lambda parts: [("run_queued", {"input": []}), *parts[0], parts[1]])
LOGS_OF_CLIENTS = st.tuples(FORMS, st.lists(BODY, max_size=9), ENDS_OF_CLIENTS | ENDS).map(
    lambda parts: [("run_queued", {"input": [], **parts[0]}), *parts[1], parts[2]]
)


def run():
    return pb.Run(run_id="run_1", thread_id="t", agent="assistant", first_seq=FIRST_SEQ)


def told(log):
    """The events of a log, as clients get them."""
    projection = Projection(run())
    found = []
    for seq, (kind, data) in enumerate(log, FIRST_SEQ):
        event = pb.Event(seq=seq, run_id="run_1", thread_id="t", type=kind, data_json=orjson.dumps(data))
        found += [orjson.loads(orjson.dumps(one)) for one in projection.take(event)]
    return found, projection


def texts_of(events):
    """Pieces of each message, by its index."""
    found = {}
    for event in events:
        if event["type"] == "response.output_text.delta":
            found[event["output_index"]] = found.get(event["output_index"], "") + event["delta"]
    return found


@given(LOGS | LOGS_OF_CLIENTS)
@settings(max_examples=120, deadline=None, derandomize=True, database=None)
def test_the_sdk_reads_whatever_happens(log):
    events, projection = told(log)
    numbers = [event["sequence_number"] for event in events]
    assert numbers == sorted(set(numbers))
    assert projection.ended
    state = ResponseStreamState(input_tools=omit, text_format=omit)
    for event in events:
        state.handle_event(EVENTS.validate_python(event))
    final = events[-1]["response"]
    assert final == orjson.loads(orjson.dumps(projection.response()))
    types.Response.model_validate(final)
    done = {event["output_index"]: event["item"] for event in events if event["type"] == "response.output_item.done"}
    assert [done[index] for index in range(len(done))] == final["output"]
    assert [event["output_index"] for event in events if event["type"] == "response.output_item.added"] == list(range(len(done)))
    assert all(item.get("status") != "in_progress" for item in final["output"])
    if log[-1][0] != "run_finished":
        return
    end, structured = log[-1][1], "response_format" in log[0][1]
    calls = [item for item in final["output"] if item["type"] == "function_call"]
    assert [(one["call_id"], one["arguments"], one["status"]) for one in calls] == [
        (one["tool_call_id"], one["arguments"], "completed") for one in end.get("client_tool_calls", ())
    ]
    said = [part for item in final["output"] if item["type"] == "message" for part in item["content"]]
    if end["output_text"] and not (structured and calls):
        refused = structured and end["finish_reason"] == "rephrase"
        assert said[-1]["refusal" if refused else "text"] == end["output_text"]
    if structured:
        # Of what has not the form nothing is shown.
        assert len(said) <= 1


@given(LOGS.filter(lambda log: not {"attempt_superseded", "log_gap"} & {kind for kind, _ in log}))
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_what_is_shown_piece_by_piece_is_the_text(log):
    events, projection = told(log)
    shown = texts_of(events)
    for index, item in enumerate(projection.items):
        if item["type"] == "message":
            final = item["content"][0]["text"]
            # A text that was replaced as a whole, as by a guardrail, is told as a whole only.
            assert shown.get(index, "") == final or not final.startswith(shown.get(index, ""))


@given(LOGS | LOGS_OF_CLIENTS, st.data())
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_a_cut_log_makes_the_same_events_under_the_same_numbers(log, data):
    events, _ = told(log)
    position = data.draw(st.integers(0, len(log)))
    assert told(log[:position])[0] == events[: len(told(log[:position])[0])]


def test_numbers_stay_apart_where_the_log_loses_events():
    kept, _ = told([("run_queued", {}), ("run_started", {}), ("message_delta", {"text": "a", "message_id": "m"})])
    projection = Projection(run())
    found = []
    for seq, kind, fields in [
        (FIRST_SEQ, "run_queued", {}),
        (FIRST_SEQ + 1000, "log_gap", {"from_seq": FIRST_SEQ + 1}),
        (FIRST_SEQ + 1001, "run_started", {}),
    ]:
        found += projection.take(pb.Event(seq=seq, run_id="run_1", type=kind, data_json=orjson.dumps(fields)))
    assert found[-1]["sequence_number"] == 1001 * NUMBERS_AN_EVENT
    assert found[-1]["sequence_number"] > kept[-1]["sequence_number"]


ASKED = {"interrupt_id": "run_1/1/0", "kind": "tool_call", "call_id": "c1", "tool": "t", "arguments": {}}


def test_a_question_is_one_item_however_often_it_is_told():
    log = [
        ("run_queued", {}),
        ("interrupt_raised", ASKED),
        ("interrupt_raised", ASKED),
        ("run_cancelled", {"output_text": "", "usage": {}}),
    ]
    assert [item["id"] for item in told(log)[1].items] == ["mcpr_run_1.1.0"]


class Batches:
    """A log that comes in these batches; live, it never ends by itself."""

    def __init__(self, *batches):
        self.batches = batches

    async def open(self, subject, after, *, types=(), replay_only=False):
        """As EventSource.open."""
        for batch in self.batches:
            yield [event for event in batch if event.seq > after]
        while not replay_only:
            await asyncio.sleep(3600)


@pytest.mark.parametrize("again", [False, True])
async def test_a_question_that_is_answered_by_now_stops_nobody_who_goes_on(again):
    def event(number, type_, /, **data):
        return pb.Event(seq=FIRST_SEQ + number, run_id="run_1", type=type_, data_json=orjson.dumps(data))

    first = [event(0, "run_queued"), event(1, "run_started"), event(2, "interrupt_raised", **ASKED)]
    later = [event(3, "interrupt_resolved", interrupt_id="run_1/1/0"), event(4, "run_finished", output_text="done", usage=USAGE)]
    done = await settled(Follower(Batches(first, later)), Projection(run()), again=again)
    assert done.status == ("completed" if again else "in_progress")


@pytest.mark.parametrize("run_id", ["run_1", "a.b-c:d", "x" * 128])
def test_ids_lead_back(run_id):
    assert ids.run_id_of(ids.response_id(run_id)) == run_id
    assert ids.thread_id_of(ids.conversation_id(run_id)) == run_id
    assert ids.approval_id_of(ids.question_id(f"{run_id}/3/0")) == f"{run_id}/3/0"


@pytest.mark.parametrize("given_id", ["", "resp_", "run_1", "resp_a/b", "resp_" + "x" * 129, "resp_a\n"])
def test_what_is_no_id_is_not_found(given_id):
    with pytest.raises(NotFound):
        ids.run_id_of(given_id)


@pytest.mark.parametrize("given_id", ["", "mcpr_", "mcpr_run_1", "mcpr_run_1.1", "mcpr_..", "run_1.1.0", "mcpr_a b.1.0"])
def test_what_is_no_question_is_refused(given_id):
    with pytest.raises(InvalidInput):
        ids.approval_id_of(given_id)
