"""The tool `calculator`."""

import asyncio
from typing import Annotated

from pydantic import Field
from typing_extensions import TypedDict

from services.tool_executor.builtin import expressions
from services.tool_executor.builtin.arithmetic import CalculationError, shown
from services.tool_executor.failures import ToolFailure
from services.tool_executor.tools import tool

# An ordinary expression takes microseconds; only a long one can hold enough large roots to take some ten milliseconds.
SHORT = 100


class Calculation(TypedDict):
    """A result in decimal digits; `exact` is false where it was rounded to 15 significant ones."""

    result: str
    exact: bool


@tool(version="1.0.0", read_only=True, open_world=False)
async def calculator(expression: Annotated[str, Field(min_length=1, max_length=expressions.MAX_LENGTH)]) -> Calculation:
    """Evaluates an arithmetic expression exactly.

    It knows + - * / // % ** and parentheses, the constants pi, e and tau, and the functions abs, round, floor, ceil, min,
    max, sum, mean, sqrt, cbrt, exp, ln, log, log2, log10, sin, cos, tan, asin, acos, atan, degrees, radians, factorial,
    gcd, lcm and hypot. Angles are in radians.

    Args:
        expression: The expression in Python's notation, for example (17 * 23 + 5) / 4 or sqrt(2) ** 3.
    """
    try:
        value = expressions.evaluate(expression) if len(expression) <= SHORT else await asyncio.to_thread(expressions.evaluate, expression)
    except CalculationError as error:
        raise ToolFailure("input.invalid", str(error)) from error
    text, shown_exactly = shown(value)
    return {"result": text, "exact": value.exact and shown_exactly}
