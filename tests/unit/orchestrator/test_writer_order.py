"""What a writer may write early, and what goes with the next state: text and what was hurried go, the rest stays with what it led to."""

import asyncio

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common import testing
from services.orchestrator.records import RunRef, Terminal, Written
from services.orchestrator.writer import RunWriter

BATCH_S = 0.002


class Log:
    """A store that takes what is written, after so many turns of the loop, or when it is let go."""

    def __init__(self, turns=0):
        self.writes, self.turns, self.go_on = [], turns, asyncio.Event()
        self.go_on.set()

    async def write(self, ref, epoch, number, trace_id, drafts, *, mode, **parts):
        # What the agent does is told with text, and is about nothing that is kept.
        self.writes.append((mode, [name(draft) for draft in drafts if draft.type != "agent_status"]))
        for _ in range(self.turns):
            await asyncio.sleep(0)
        await self.go_on.wait()
        return Written(number * 100, number * 100 + len(drafts), 0, "")


class Hub:
    def watched(self, ref):
        return False


def name(draft):
    data = orjson.loads(draft.data)
    return data["text"] if draft.type == "message_delta" else draft.type


def writer(store):
    return RunWriter(store, Hub(), RunRef("acme", "t", "r"), 1, 1, trace_id="", batch_s=BATCH_S, patience_s=60.0, on_lost=lambda: None)


async def test_what_an_answer_led_to_is_written_with_the_end_and_not_with_text_that_waits_for_its_turn():
    store = Log()
    made = writer(store)
    store.go_on.clear()
    made.delta("m", "one")
    await testing.eventually_async(lambda: len(store.writes) == 1, "the first text is on its way")
    made.delta("m", " two")
    await testing.eventually_async(lambda: len(made._tasks) == 2, "the next text waits for its turn")
    made.emit("usage", {})
    made.emit("message_completed", {})
    store.go_on.set()
    # As whoever ends a run does, who may be lost right behind it.
    await made.settled()
    assert store.writes == [("e", ["one"]), ("e", [" two"])]
    await made.finish(Terminal("succeeded", b"{}", "run_finished", b"{}"))
    assert store.writes[2:] == [("f", ["usage", "message_completed"])]


OPS = st.lists(st.sampled_from(["delta", "emit", "hurried", "tick", "while", "checkpoint"]), max_size=30)


@settings(max_examples=150, deadline=None)
@given(OPS, st.integers(0, 3))
def test_all_is_written_once_in_order_and_what_belongs_to_a_state_with_it(ops, turns):
    async def run():
        store, told, bound = Log(turns), [], []
        made = writer(store)
        checkpoints = []
        for number, op in enumerate(ops):
            if op == "delta":
                made.delta("m", f"[{number}]")
                told.append(f"[{number}]")
                bound.clear()
            elif op in ("emit", "hurried"):
                made.emit(f"e{number}", {})
                told.append(f"e{number}")
                bound.append(f"e{number}")
                if op == "hurried":
                    made.flush_soon()
                    bound.clear()
            elif op == "tick":
                await asyncio.sleep(0)
            elif op == "while":
                await asyncio.sleep(BATCH_S * 2)
            else:
                checkpoints.append(list(bound))
                bound.clear()
                await made.checkpoint(b"{}")
        checkpoints.append(list(bound))
        await made.checkpoint(b"{}")
        assert "".join(part for _, drafts in store.writes for part in drafts) == "".join(told)
        with_state = [drafts for mode, drafts in store.writes if mode == "c"]
        assert len(with_state) == len(checkpoints)
        for drafts, belonging in zip(with_state, checkpoints, strict=True):
            assert drafts[len(drafts) - len(belonging) :] == belonging

    asyncio.run(run())
