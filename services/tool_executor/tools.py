"""What a tool is, and how a Python function becomes one.

    @tool(version="1.0.0", read_only=True)
    async def current_time(timezone: str = "UTC") -> CurrentTime:
        \"\"\"Tells the current date and time.

        Args:
            timezone: IANA name of a time zone, for example Europe/Berlin.
        \"\"\"

The schemas come from the type hints and the docstring. A parameter `call` gets the ToolCall and is no argument.
"""

import hashlib
import inspect
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, get_type_hints

import orjson
from pydantic import BaseModel, ConfigDict, TypeAdapter, create_model

from services.common.identity import Principal
from services.tool_executor.outcomes import Citation, Event, PartialOutput, Progress, Warned
from services.tool_executor.schemas import Schema

MAX_TIMEOUT_S = 120.0
DEFAULT_TIMEOUT_S = 30.0
MAX_OUTPUT_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Annotations:
    """Declared behaviour; what is not declared is read pessimistically."""

    read_only: bool = False
    destructive: bool = True
    idempotent: bool = False
    open_world: bool = True


@dataclass(frozen=True, slots=True)
class Retry:
    """Repeats after the first attempt, and the range of the jittered wait before each, in seconds."""

    times: int = 2
    backoff_s: tuple[float, float] = (2.0, 5.0)


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one tool. `concurrent_calls` counts in this process."""

    timeout_s: float = DEFAULT_TIMEOUT_S
    max_output_bytes: int = MAX_OUTPUT_BYTES
    concurrent_calls: int = 64
    retry: Retry = field(default_factory=Retry)


class ToolCall:
    """What a running tool may know and do besides its arguments."""

    def __init__(
        self,
        principal: Principal,
        emit: Callable[[Event], None],
        *,
        key: str = "",
        run_id: str = "",
        thread_id: str = "",
        options: Any = None,
    ) -> None:
        self.principal = principal
        self.key = key
        self.run_id = run_id
        self.thread_id = thread_id
        self.options = options
        self.citations: list[Citation] = []
        # A tool that knows better says so: until it sends its request, nothing can have happened.
        self.effect_possible = True
        self._emit = emit

    def of(self, tool: "Tool") -> "ToolCall":
        """The same call as another tool makes it."""
        return ToolCall(self.principal, self._emit, key=self.key, run_id=self.run_id, thread_id=self.thread_id, options=tool.options)

    def progress(self, fraction: float, message: str) -> None:
        """Tells how far the tool is."""
        self._emit(Progress(fraction, message))

    def partial(self, text: str) -> None:
        """Tells output as it comes."""
        self._emit(PartialOutput(text))

    def warn(self, code: str, user_message: str, **attributes: Any) -> None:
        """Tells of a degradation."""
        self._emit(Warned(code, user_message, attributes))


Run = Callable[[ToolCall, Mapping[str, Any]], Awaitable[Any]]


@dataclass(frozen=True)
class Tool:
    """One version of a tool, ready to be called. `run` answers a JSON-ready value or raises ToolFailure."""

    name: str
    version: str
    description: str
    input_schema: Schema
    output_schema: Schema | None
    annotations: Annotations
    scopes: Sequence[str]
    limits: Limits
    run: Run
    options: Any = None
    # Whether a call needs an approval: '' no, waivable (unless the agent's rules waive it), required (by a person).
    approval: str = ""
    # Name, or name@version, of the tool that stands in when this one fails, and how old a result of the same call may be that does.
    fallback: str = ""
    stale_s: float = 0.0

    @cached_property
    def repeatable(self) -> bool:
        """Whether running it twice does no harm."""
        return self.annotations.read_only or self.annotations.idempotent

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the canonical definition, in hex."""
        a = self.annotations
        definition = {
            "name": self.name,
            "version": self.version,
            "description": self.description,
            "input_schema": self.input_schema.definition,
            "output_schema": self.output_schema.definition if self.output_schema else None,
            "annotations": [a.read_only, a.destructive, a.idempotent, a.open_world],
            "scopes": sorted(self.scopes),
        }
        return hashlib.sha256(orjson.dumps(definition, option=orjson.OPT_SORT_KEYS)).hexdigest()


@dataclass(frozen=True)
class BuiltIn:
    """A tool as its function declares it; tools.yaml decides whether and how it is offered."""

    name: str
    version: str
    description: str
    input_schema: Mapping[str, Any]
    output_schema: Mapping[str, Any] | None
    annotations: Annotations
    scopes: Sequence[str]
    options: type[BaseModel] | None
    run: Run


@dataclass(frozen=True)
class _Declaration:
    version: str
    annotations: Annotations
    scopes: Sequence[str]
    options: type[BaseModel] | None


def tool(
    *,
    version: str,
    read_only: bool = False,
    destructive: bool = True,
    idempotent: bool = False,
    open_world: bool = True,
    scopes: Sequence[str] = (),
    options: type[BaseModel] | None = None,
) -> Callable[[Callable], Callable]:
    """Declares an async function or method as a tool; `options` validates its own section of tools.yaml."""
    annotations = Annotations(read_only, destructive and not read_only, idempotent or read_only, open_world)

    def declare(function: Callable) -> Callable:
        function.__tool__ = _Declaration(version, annotations, tuple(scopes), options)  # type: ignore[attr-defined]
        return function

    return declare


def built_ins(sources: Iterable[Any]) -> list[BuiltIn]:
    """The tools among `sources`: functions, or objects whose methods are tools."""
    found = []
    for source in sources:
        candidates = [source] if callable(source) else [member for _, member in inspect.getmembers(source, inspect.ismethod)]
        found += [_built_in(function) for function in candidates if hasattr(function, "__tool__")]
    return found


def _built_in(function: Callable) -> BuiltIn:
    declaration: _Declaration = function.__tool__  # type: ignore[attr-defined]
    described, arguments = _documented(inspect.getdoc(function) or "")
    hints = get_type_hints(function, include_extras=True)
    fields: dict[str, Any] = {}
    takes_call = False
    for name, parameter in inspect.signature(function).parameters.items():
        if name == "call":
            takes_call = True
            continue
        fields[name] = (hints[name], ... if parameter.default is parameter.empty else parameter.default)
    schema = create_model(function.__name__, __config__=ConfigDict(extra="forbid"), **fields).model_json_schema()
    for name, text in arguments.items():
        schema["properties"][name].setdefault("description", text)
    returned = hints.get("return")
    output = TypeAdapter(returned).json_schema(mode="serialization") if returned not in (None, Any) else None

    async def run(call: ToolCall, values: Mapping[str, Any]) -> Any:
        return await (function(call=call, **values) if takes_call else function(**values))

    return BuiltIn(
        function.__name__,
        declaration.version,
        described,
        _untitled(schema),
        _untitled(output),
        declaration.annotations,
        declaration.scopes,
        declaration.options,
        run,
    )


_ARGUMENT = re.compile(r"^ {4}(\w+): (.*)$")


def _documented(text: str) -> tuple[str, dict[str, str]]:
    """Splits a docstring into the text for the model and the descriptions under `Args:`."""
    head, _, tail = text.partition("\nArgs:\n")
    arguments: dict[str, str] = {}
    last = ""
    for line in tail.splitlines():
        if match := _ARGUMENT.match(line):
            last = match.group(1)
            arguments[last] = match.group(2).strip()
        elif last and line.strip():
            arguments[last] += f" {line.strip()}"
    return " ".join(head.split()), arguments


def _untitled(schema: Any) -> Any:
    """Without the titles that pydantic makes of names: they only cost tokens of the model."""
    if isinstance(schema, dict):
        return {k: _untitled(v) for k, v in schema.items() if k != "title" or not isinstance(v, str)}
    if isinstance(schema, list):
        return [_untitled(v) for v in schema]
    return schema
