"""Fitting a session's window into a token budget: tool results go first, then the oldest turns, then the end of a text."""

from dataclasses import replace

import orjson

from services.memory.ports import Turn
from services.memory.tokens import clip, estimate

ELIDED = "[elided]"


def tokens_of(turn: Turn) -> int:
    """Estimated tokens of a turn, tool calls included."""
    return estimate(turn.user_text) + estimate(turn.assistant_text) + estimate(turn.tool_calls_json.decode("utf-8", "replace"))


def without_outputs(turn: Turn) -> Turn:
    """The turn with the outputs of its tools elided; names and arguments stay. What is no list of calls goes altogether."""
    try:
        calls = orjson.loads(turn.tool_calls_json)
    except orjson.JSONDecodeError:
        return replace(turn, tool_calls_json=b"")
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        return replace(turn, tool_calls_json=b"")
    return replace(turn, tool_calls_json=orjson.dumps([{**call, "output": ELIDED} if "output" in call else call for call in calls]))


def fit(turns: list[Turn], budget: int) -> list[Turn]:
    """The newest turns, oldest first, that fit `budget` tokens; at least a clipped newest one while any budget is left."""
    kept = list(turns)
    total = sum(map(tokens_of, kept))
    for slim in (without_outputs, lambda turn: replace(turn, tool_calls_json=b"")):
        for position, turn in enumerate(kept):
            if total <= budget:
                return kept
            if turn.tool_calls_json:
                kept[position] = slim(turn)
                total += tokens_of(kept[position]) - tokens_of(turn)
    while len(kept) > 1 and total > budget:
        total -= tokens_of(kept.pop(0))
    if total <= budget:
        return kept
    newest = kept[-1]
    user = clip(newest.user_text, max(budget // 2, budget - estimate(newest.assistant_text)))
    clipped = replace(newest, user_text=user, assistant_text=clip(newest.assistant_text, budget - estimate(user)))
    return [clipped] if clipped.user_text or clipped.assistant_text else []
