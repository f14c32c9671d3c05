"""Numbers and names of a request: checked alike in every dialect, refused in the words of each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from services.simulator.refusals import Refused

MAX_NAME_CHARS = 256


def is_model_name(value: Any) -> TypeGuard[str]:
    """Whether any model can have this name."""
    return isinstance(value, str) and 0 < len(value) <= MAX_NAME_CHARS and value.isprintable()


@dataclass(frozen=True, slots=True)
class Numbers:
    """Reads the numbers of one dialect. Each function makes the error for the field's name and, in order, what else it takes."""

    not_integer: Callable[[str, Any], Refused]
    below: Callable[[str, Any, int], Refused]
    not_number: Callable[[str, Any], Refused]
    outside: Callable[[str, Any, float, float], Refused]

    def integer(self, body: Mapping[str, Any], name: str, low: int) -> int | None:
        """An integer from `low`, None where there is none; raises Refused."""
        value = body.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.not_integer(name, value)
        if value < low:
            raise self.below(name, value, low)
        return value

    def check(self, body: Mapping[str, Any], name: str, low: float, high: float) -> None:
        """Raises Refused for what is no number from `low` to `high`; it may be absent."""
        value = body.get(name)
        if value is None:
            return
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.not_number(name, value)
        if not low <= value <= high:
            raise self.outside(name, value, low, high)
