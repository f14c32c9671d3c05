"""Any log of a run as AG-UI: the order of events is the protocol's, and whoever comes in anywhere ends where all others do."""

import orjson
import pytest
from bulkhead.orchestrator.v1.orchestrator_pb2 import Event
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.gateway.surfaces.ag_ui.conversation import changes
from services.gateway.surfaces.ag_ui.projection import Projection
from tests.contract.ag_ui_client import Client, checked, patched

RUN, THREAD = "r", "t"
BASE = [{"id": "u1", "role": "user", "content": "hello"}]
TEXTS = st.sampled_from(["", "a", "bc", "Ü", "d e"])
CALLS = st.sampled_from(["c1", "c2", "c3"])
STEPS = st.integers(1, 3)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.sampled_from(["", "x", "~/"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b/c", "~"]), inner, max_size=3),
    max_leaves=8,
)


def told(kind, **data):
    return st.fixed_dictionaries(
        {name: value if isinstance(value, st.SearchStrategy) else st.just(value) for name, value in data.items()}
    ).map(lambda made: (kind, made))


ENTRIES = st.one_of(
    told("message_delta", text=TEXTS, message_id=STEPS.map(lambda step: f"{RUN}/{step}")),
    told("message_delta", text=TEXTS, message_id=STEPS.map(lambda step: f"{RUN}/{step}")),
    told("message_completed", text=TEXTS, message_id=STEPS.map(lambda step: f"{RUN}/{step}")),
    told("attempt_superseded", from_seq=st.integers(1, 30)),
    told("step_started", step=STEPS),
    told("step_completed", step=STEPS),
    told("tool_call_started", call_id=CALLS, tool="calc", arguments=JSON),
    told("tool_call_completed", call_id=CALLS, tool="calc", output=JSON),
    told("tool_call_progress", call_id=CALLS, data=JSON),
    told("plan_updated", version=st.integers(1, 3), steps=st.lists(st.fixed_dictionaries({"title": TEXTS, "status": TEXTS}), max_size=3)),
    told("warning", code=TEXTS, user_message=TEXTS),
    told("citation", citation_id=TEXTS),
    told("steer_applied", text=TEXTS, number=st.integers(1, 9)),
    told("interrupt_raised", interrupt_id=CALLS, call_id=CALLS, tool="calc", arguments=JSON, expires_at_ms=1),
    told("interrupt_resolved", interrupt_id=CALLS, outcome="approved", verb="approve"),
    told("unheard_of", what=JSON),
    told("image", content_id=CALLS, call_id=CALLS),
)
CLIENT_CALLS = [{"tool_call_id": f"call_{number}", "name": "ask", "arguments": "{}"} for number in range(3)]
ENDS = st.one_of(
    told("run_finished", output_text=TEXTS, finish_reason="tool_calls", client_tool_calls=CLIENT_CALLS),
    told("run_finished", output_text=TEXTS, finish_reason="stop"),
    told("run_cancelled", output_text=TEXTS),
    told("run_failed", error={}),
)


class Owner:
    """Makes of any entries a log as owners of runs write it: step by step a text, then calls, then their results, each once."""

    def __init__(self):
        self.step, self.message, self.texts_done, self.begun, self.over, self.steers = 0, 0, True, [], set(), 0

    def log(self, entries):
        for kind, data in entries:
            yield from getattr(self, kind, self.told)(kind, data)

    def told(self, kind, data):
        self.texts_done |= kind not in ("warning", "citation", "plan_updated", "attempt_superseded")
        yield kind, data

    def results(self):
        """What has to be there before the agent or the user says anything more."""
        for call in self.begun:
            yield "tool_call_completed", {"call_id": call, "tool": "calc", "output": call}
        self.over |= set(self.begun)
        self.begun = []

    def step_started(self, kind, data):
        yield from self.results()
        # Another owner announces the step again.
        self.step += data["step"] > 1
        self.texts_done = True
        yield kind, {"step": self.step}

    def step_completed(self, kind, data):
        yield from self.results()
        self.texts_done = True
        yield kind, {"step": self.step}

    def message_delta(self, kind, data):
        yield from self.results()
        if self.texts_done or data["message_id"] > f"{RUN}/1":
            self.message += 1
            yield from self.step_started("step_started", {"step": 2})
        self.texts_done = kind == "message_completed"
        yield kind, {**data, "message_id": f"{RUN}/m{self.message}"}

    message_completed = message_delta

    def steer_applied(self, kind, data):
        yield from self.results()
        self.steers += 1
        yield from self.step_started("step_started", {"step": 2})
        yield kind, {**data, "number": self.steers}

    def tool_call_started(self, kind, data):
        self.texts_done = True
        if data["call_id"] not in {*self.begun, *self.over}:
            self.begun.append(data["call_id"])
        yield kind, data

    interrupt_raised = tool_call_started

    def tool_call_completed(self, kind, data):
        if data["call_id"] in self.begun:
            self.begun.remove(data["call_id"])
            self.over.add(data["call_id"])
            yield kind, data


def log_of(entries):
    return [
        Event(seq=seq, run_id=RUN, thread_id=THREAD, type=kind, data_json=orjson.dumps(data)) for seq, (kind, data) in enumerate(entries, 1)
    ]


def stamped(events):
    """As they come over the wire."""
    return [orjson.loads(orjson.dumps({**event, "timestamp": 1})) for event in events]


def fresh():
    projection = Projection(RUN, THREAD, RUN, BASE)
    return projection, stamped([projection.started(), projection.state_snapshot()])


def settled(client):
    return client.messages, client.state, client.outcome


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), entries=st.lists(ENTRIES, max_size=25), end=ENDS)
def test_whoever_comes_in_anywhere_ends_where_all_others_do(data, entries, end):
    log = log_of([*Owner().log(entries), end])
    projection, whole = fresh()
    marks, client = [len(whole)], Client(BASE).take(whole)
    for event in log:
        whole += stamped(projection.take(event))
        client.take(whole[marks[-1] :])
        marks.append(len(whole))
        # At any time a client has what somebody who comes now is given.
        assert (client.messages, client.state) == (projection.messages_snapshot()["messages"], projection.state)
    final = settled(Client(BASE).take(checked(whole)))
    # What the log has when the client is back; it was cut off anywhere before, also within what one entry of the log is here.
    known = data.draw(st.integers(0, len(log) - 1))
    late = Projection(RUN, THREAD, RUN, BASE)
    for event in log[:known]:
        late.take(event)
    back = stamped(late.prelude())
    for event in log[known:]:
        back += stamped(late.take(event))
    checked(back)
    for cut in range(marks[known] + 1):
        assert settled(Client(BASE).take(whole[:cut]).take(back)) == final, cut


@settings(max_examples=100, deadline=None)
@given(before=JSON, after=JSON)
def test_changes_make_the_one_value_out_of_the_other(before, after):
    assert patched({"": before}, list(changes({"": before}, {"": after}))) == {"": after}
    assert list(changes(after, after)) == []


@pytest.mark.parametrize(("kind", "ends"), [("run_finished", "success"), ("run_cancelled", "cancelled"), ("run_failed", "RUN_FAILED")])
def test_what_is_begun_is_closed_before_the_end(kind, ends):
    projection, events = fresh()
    entries = [
        ("step_started", {"step": 1}),
        ("child_run_started", {"call_id": "c", "run_id": "child", "agent": "writer"}),
        ("message_delta", {"message_id": "r/1", "text": "Well"}),
        (kind, {"output_text": "Well"}),
    ]
    for event in log_of(entries):
        events += stamped(projection.take(event))
    assert Client().take(checked(events)).outcome == ends
    assert [event["type"] for event in events[-4:-1]] == [
        "TEXT_MESSAGE_END", "SUBAGENT_FINISHED" if kind == "run_finished" else "SUBAGENT_ERROR", "STEP_FINISHED",
    ]  # fmt: skip


def test_an_answer_that_no_message_told_is_a_message_of_its_own():
    projection, events = fresh()
    for event in log_of([("run_finished", {"output_text": "Forty-two."})]):
        events += stamped(projection.take(event))
    assert Client(BASE).take(checked(events)).answer == "Forty-two."


@pytest.mark.parametrize(("from_seq", "left"), [(1, ""), (2, "Let"), (3, "Let me"), (4, "Let me guess")])
def test_text_that_no_longer_holds_is_taken_back(from_seq, left):
    projection, events = fresh()
    deltas = [("message_delta", {"message_id": "r/1", "text": text}) for text in ("Let", " me", " guess")]
    for event in log_of([*deltas, ("attempt_superseded", {"from_seq": from_seq})]):
        events += stamped(projection.take(event))
    assert Client(BASE).take(events).answer == left
    for event in log_of([*[("", {})] * 4, ("message_delta", {"message_id": "r/1", "text": " see"}), ("run_finished", {})])[4:]:
        events += stamped(projection.take(event))
    client = Client(BASE).take(checked(events))
    assert (client.answer, len(client.messages)) == (f"{left} see", 2)


def test_after_a_loss_of_the_store_a_client_has_what_the_log_still_tells():
    entries = [
        ("step_started", {"step": 1}),
        ("message_delta", {"message_id": "r/1", "text": "The lost"}),
        ("message_completed", {"message_id": "r/1", "text": "The lost answer."}),
        ("tool_call_started", {"call_id": "c1", "tool": "calc", "arguments": {}}),
        ("child_run_started", {"call_id": "c1", "run_id": "child", "agent": "writer"}),
        ("plan_updated", {"version": 1, "steps": []}),
    ]
    projection, events = fresh()
    for event in log_of(entries):
        events += stamped(projection.take(event))
    # All but the first two are lost.
    gap = Event(seq=1000, run_id="", thread_id=THREAD, type="log_gap", data_json=b'{"from_seq":3}')
    after = Projection(RUN, THREAD, RUN, BASE)
    for event in [*log_of(entries[:2]), gap]:
        after.take(event)
    events += stamped(projection.become(after))
    later = log_of([*[("", {})] * 1000, ("message_completed", {"message_id": "r/1", "text": "The answer."}), ("run_finished", {})])[1000:]
    for event in later:
        events += stamped(after.take(event))
    # A message that had ended is at work again, as far as the log tells: its name is used once more.
    client = Client(BASE).take(checked(events, but={"AGUI101", "AGUI102", "AGUI104"}))
    assert (client.answer, client.state["plan"], len(client.messages)) == ("The answer.", None, 2)
