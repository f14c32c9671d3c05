"""The way down of one model call, as far as it concerns why memory is to forget."""

from types import SimpleNamespace

import pytest

from services.common.errors import InvalidInput, UpstreamFailed
from services.orchestrator.agents import Degradation
from services.orchestrator.ports import Message
from services.orchestrator.turn.degradation import Descent, recalled

DOWN = UpstreamFailed("down", reason="UPSTREAM_UNAVAILABLE")
LONG = InvalidInput("long", reason="CONTEXT_LENGTH_EXCEEDED")
REFUSED = InvalidInput("no", reason="CONTENT_POLICY_VIOLATION")


@pytest.mark.parametrize(
    ("failures", "reason"),
    [
        ([REFUSED], "content_refused"),
        # One recalled message and a long result: first these are shortened, then memory is left out.
        ([LONG, LONG], "context_too_long"),
        # Left out for another reason, and it was something else that helped.
        ([DOWN, LONG], None),
        ([LONG, DOWN], None),
    ],
)
def test_memory_forgets_only_what_was_left_out_because_the_model_refused_it(failures, reason):
    messages = [Message("system", "prompt"), Message("user", "earlier"), Message("user", "now"), Message("tool", "x" * 5_000)]
    turn = SimpleNamespace(
        agent=SimpleNamespace(degradation=Degradation(reset_memory=True)), state=SimpleNamespace(parts={}), messages=messages,
        writer=SimpleNamespace(emit=lambda kind, data: None), ref=SimpleNamespace(run_id="r"),
    )  # fmt: skip
    recalled(turn, 1, 1)
    descent = Descent(turn, (), ())
    for failure in failures:
        assert descent.down(failure)
    assert descent.poison() == reason
