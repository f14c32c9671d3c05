"""The loop guard: a run that goes round in circles is warned once and then ended.

Going round is to ask for the same tool call with the same arguments time and again, or to make step after step of which none
brings the result of a call that was not made before.
"""

import hashlib
from collections.abc import Sequence

from services.orchestrator.turn import arguments, degradation
from services.orchestrator.turn.state import PendingCall, RunStopped, Turn

REASON = "ABNORMAL_USAGE"
WARNING = "abnormal_usage"
_REPEATED = "The same tool call was made again and again with the same arguments."
_IDLE = "Step after step brought nothing new."
_NOTE = "{} Its result will not change. Do something else, or answer with what you have; the run ends if this goes on."


def asked(turn: Turn, calls: Sequence[PendingCall]) -> None:
    """Counts the calls of an answer. Raises RunStopped where they go on with what the model was warned of."""
    state, most = turn.state, turn.agent.loop_guard.repeats
    digests = [_digest(call) for call in calls]
    fresh = [call.number for call, digest in zip(calls, digests, strict=True) if digest not in state.asked]
    counts = dict(state.asked)
    for digest in digests:
        counts[digest] = counts.get(digest, 0) + 1
    if state.warned_step and any(counts[digest] > most for digest in digests):
        raise RunStopped(REASON, _REPEATED)
    state.asked, state.fresh = counts, fresh
    # Until a result says otherwise.
    state.idle_steps += 1


def brought(turn: Turn, call: PendingCall) -> None:
    """Notes that a call has a result."""
    if call.number in turn.state.fresh:
        turn.state.idle_steps = 0


def step_ended(turn: Turn) -> None:
    """Warns, with the write that ends the step, or raises RunStopped where that was done already."""
    state, guard = turn.state, turn.agent.loop_guard
    idle = state.idle_steps >= guard.idle_steps
    if not idle and max(state.asked.values(), default=0) < guard.repeats:
        return
    if state.warned_step:
        if idle and state.idle_steps > guard.idle_steps:
            raise RunStopped(REASON, _IDLE)
        return
    state.warned_step = state.step
    degradation.warn(
        turn, WARNING, reason="idle" if idle else "repeated", user_message=_IDLE if idle else _REPEATED,
        idle_steps=state.idle_steps, repeats=max(state.asked.values(), default=0),
    )  # fmt: skip


def note(turn: Turn) -> str:
    """What the model is told in the step after the warning."""
    state = turn.state
    if not state.warned_step or state.warned_step != state.step:
        return ""
    return _NOTE.format(_IDLE if state.idle_steps >= turn.agent.loop_guard.idle_steps else _REPEATED)


def _digest(call: PendingCall) -> str:
    try:
        _, given = arguments.read(call.arguments or "{}")
    except ValueError:
        given = call.arguments.encode()
    return hashlib.sha256(call.name.encode() + b"\0" + given).hexdigest()[:16]
