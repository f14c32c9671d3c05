"""A run as its events tell it is the run that its model saw, whatever it did and whichever owners were lost on the way."""

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from services.orchestrator.ports import Message, ToolOutcome
from services.orchestrator.records import Event
from services.orchestrator.testing.turn_world import Journal, World, agent, steps_before
from services.orchestrator.threads.rebuilding import rebuild
from services.orchestrator.turn.results import MOST_OUTPUT_CHARS

TOOLS = st.sampled_from(["look", "mail", "nowhere"])
CALLS = st.lists(st.tuples(TOOLS, st.dictionaries(st.text(max_size=3), st.integers(0, 9), max_size=2)), min_size=1, max_size=3)
OUTPUTS = st.sampled_from([b"{}", b'{"a": [1, 2.50],  "b":null}', b'"\xe4\xbd\xa0"', b"[" + b"1," * MOST_OUTPUT_CHARS + b"1]"])


def events_of(journal):
    """The journal as the log has it."""
    queued = ("run_queued", {"input": [{"role": "user", "text": "go"}]})
    drafts = [queued, *journal.raw]
    return [
        Event(n, 0, "t", "r", 1, kind, data if isinstance(data, bytes) else orjson.dumps(data), kind == "message_delta", "")
        for n, (kind, data) in enumerate(drafts, 1)
    ]


class RawJournal(Journal):
    """Keeps the bytes of events beside what they say."""

    raw: list

    async def write(self, ref, epoch, number, trace_id, drafts, *, terminal=None, **parts):
        """As Journal.write."""
        before = len(self.events)
        try:
            return await super().write(ref, epoch, number, trace_id, drafts, terminal=terminal, **parts)
        finally:
            if len(self.events) > before:
                self.raw += [(draft.type, draft.data) for draft in drafts]
                if terminal is not None:
                    self.raw.append((terminal.event, terminal.data))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(CALLS, OUTPUTS), min_size=1, max_size=4), st.dictionaries(st.integers(1, 25), st.booleans(), max_size=3),
    st.booleans(),
)  # fmt: skip
def test_each_step_end_gives_the_messages_of_the_next_model_call(steps, lost_at, fails):
    journal = RawJournal(lost_at=lost_at)
    journal.raw = []

    def tool(name, arguments):
        if fails and name == "look":
            return ToolOutcome("failed", code="x", message="no")
        return ToolOutcome("done", steps[min(world.step, len(steps)) - 1][1])

    def reply(call):
        world.step = steps_before(call) + 1
        return steps[world.step - 1][0] if world.step <= len(steps) else "done"

    world = World(reply, agent(loop_guard={"repeats": 500, "idle_steps": 500}), journal=journal, tool=tool)
    world.step = 0
    world.run()
    log = events_of(journal)
    asked = {steps_before(call): [m for m in call.messages if m.role != "system"] for call in world.asked}
    ends = [event.seq for event in log if event.type == "step_completed"]
    for step, seq in enumerate(ends, 1):
        found = rebuild([event for event in log[:seq] if not event.provisional])
        assert found.step == step
        if step in asked:
            assert [Message("user", "go"), *found.messages] == asked[step]
    assert [m["text"] for m in rebuild(log).input] == ["go"]
    assert rebuild(log).ended == journal.terminals[0].event
