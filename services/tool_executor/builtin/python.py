"""The tool `python`."""

import asyncio
import datetime
import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from services.tool_executor.failures import ToolFailure
from services.tool_executor.ports import Sandbox
from services.tool_executor.tools import ToolCall, tool

MAX_CODE = 20_000
MAX_NODES = 50_000
MAX_DEPTH = 100
MAX_INT_BITS = 14_000  # Python refuses to print more than 4,300 digits
LARGEST_JSON_INT = 2**63 - 1


class PythonOptions(BaseModel):
    """Options in tools.yaml: limits of one run."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    max_seconds: Annotated[float, Field(gt=0, le=60)] = 5.0
    max_memory_mb: Annotated[int, Field(ge=8, le=1024)] = 64
    max_recursion_depth: Annotated[int, Field(ge=10, le=1000)] = 200
    max_printed_chars: Annotated[int, Field(ge=0, le=100_000)] = 20_000


class CodeRun(TypedDict):
    """Value of the last expression, and what was printed."""

    result: Any
    stdout: str
    stdout_truncated: bool


class _Printed:
    """What the code printed, up to a limit; told on as it comes."""

    def __init__(self, call: ToolCall, limit: int) -> None:
        self._call = call
        self._room = limit
        self._parts: list[str] = []
        self.truncated = False

    def __call__(self, text: str) -> None:
        self.truncated = self.truncated or len(text) > self._room
        if text := text[: self._room]:
            self._room -= len(text)
            self._parts.append(text)
            self._call.partial(text)

    def text(self) -> str:
        return "".join(self._parts)


class Python:
    """Runs code through a port."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    @tool(version="1.0.0", read_only=True, open_world=False, options=PythonOptions)
    async def python(self, call: ToolCall, code: Annotated[str, Field(min_length=1, max_length=MAX_CODE)]) -> CodeRun:
        """Runs Python code in a sandbox without files and network; returns the value of its last expression and what it printed.

        Variables do not survive from one call to the next. Available are the built-in functions and parts of the standard
        library such as math, re, json, datetime, itertools and collections; nothing can be installed.

        Args:
            code: The code; end it with the expression whose value you want.
        """
        options: PythonOptions = call.options
        printed = _Printed(call, options.max_printed_chars)
        limits = {
            "max_seconds": options.max_seconds,
            "max_memory_bytes": options.max_memory_mb << 20,
            "max_recursion_depth": options.max_recursion_depth,
        }
        value = await self._sandbox.run(code, limits, printed)
        # What was printed is told through the loop; one turn lets the last of it arrive.
        await asyncio.sleep(0)
        return {"result": _Plain().of(value, 0), "stdout": printed.text(), "stdout_truncated": printed.truncated}


class _Plain:
    """Turns a Python value into JSON: sets become lists, times ISO strings, what has no JSON form its text."""

    def __init__(self) -> None:
        self._nodes = 0

    def of(self, value: Any, depth: int) -> Any:
        self._nodes += 1
        if self._nodes > MAX_NODES or depth > MAX_DEPTH:
            raise ToolFailure("output.too_large", "The value of the code is too large or nested too deeply. Return less.")
        match value:
            case None | bool() | str():
                return value
            case int():
                if value.bit_length() > MAX_INT_BITS:
                    raise ToolFailure("output.too_large", "The value of the code has thousands of digits. Return less.")
                return value if abs(value) <= LARGEST_JSON_INT else str(value)
            case float():
                return value if math.isfinite(value) else str(value)
            case Mapping():
                return {k if isinstance(k, str) else str(k): self.of(v, depth + 1) for k, v in value.items()}
            case list() | tuple() | set() | frozenset():
                items = sorted(value, key=repr) if isinstance(value, (set, frozenset)) else value
                return [self.of(item, depth + 1) for item in items]
            case datetime.date() | datetime.time():
                return value.isoformat()
            case bytes():
                return value.decode("utf-8", errors="replace")
        return str(value)
