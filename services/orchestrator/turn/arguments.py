"""JSON that models and tools have made: arguments of calls, answers, results."""

from typing import Any

import orjson

from services.common.approval import canonical

# What reads JSON takes four times the nesting that what writes it does. Written with so many levels around it, a value still is.
_AROUND = 16


def read(text: str | bytes) -> tuple[Any, bytes]:
    """A value of JSON and its canonical form. Raises ValueError where it cannot be read, or not be written where it is told of."""
    around = value = orjson.loads(text)
    for _ in range(_AROUND):
        around = [around]
    try:
        return value, canonical(around)[_AROUND:-_AROUND]
    except orjson.JSONEncodeError as error:
        raise ValueError("it is nested too deeply") from error
