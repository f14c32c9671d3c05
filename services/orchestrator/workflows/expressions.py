"""Conditions and templates of a workflow: a small language without side effects, parsed when the workflow is loaded.

    steps.check.output.total <= 100 and not (input.data.country in ['DE', 'FR'])
    "Refund {steps.check.output.total} to {input.data.customer}"

A path that leads nowhere is null in a condition and an error in a template.
"""

import operator
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import orjson
from pydantic import GetCoreSchemaHandler
from pydantic_core import core_schema

MOST_CHARS = 4_000
MOST_DEPTH = 32
MOST_TEMPLATE_CHARS = 32_000
_TOKEN = re.compile(
    r"\s*(?:(?P<number>-?\d+(?:\.\d+)?)|(?P<string>'[^']*'|\"[^\"]*\")|(?P<name>[A-Za-z_][A-Za-z0-9_-]*)"
    r"|(?P<sign>==|!=|<=|>=|[<>()\[\].,]))"
)
_BRACES = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_LITERALS = {"true": True, "false": False, "null": None}
_WORDS = frozenset({"and", "or", "not", "in", "len", "number", *_LITERALS})
_NUMBER = re.compile(r"-?\d{1,32}(\.\d{1,32})?([eE][+-]?\d{1,3})?")
_ORDER: Mapping[str, Callable[[Any, Any], bool]] = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
Path = tuple[str | int, ...]
Evaluate = Callable[[Mapping[str, Any]], Any]


class ExpressionError(ValueError):
    """An expression that cannot be read or has no value; the message says why."""


class Missing(ExpressionError):
    """A path of a template that leads nowhere."""


class _Text:
    """A text that is parsed once and stored as it was written."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.text == self.text

    def __hash__(self) -> int:
        return hash(self.text)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(
            lambda value: value if isinstance(value, cls) else cls(value),
            core_schema.union_schema([core_schema.is_instance_schema(cls), core_schema.str_schema(strict=True)]),
            serialization=core_schema.plain_serializer_function_ser_schema(lambda value: value.text),
        )


class Condition(_Text):
    """A condition; `paths` are all that it looks at."""

    def __init__(self, text: str) -> None:
        """Raises ExpressionError."""
        super().__init__(text)
        parser = _Parser(text)
        self._evaluate = parser.whole()
        self.paths: tuple[Path, ...] = tuple(parser.paths)

    def holds(self, scope: Mapping[str, Any]) -> bool:
        """Raises ExpressionError where it compares what cannot be compared, or is neither true nor false."""
        return _truth(self._evaluate(scope))


class Template(_Text):
    """A text with `{path}` in it; braces are doubled to stand for themselves."""

    def __init__(self, text: str) -> None:
        """Raises ExpressionError."""
        super().__init__(text)
        if len(text) > MOST_TEMPLATE_CHARS:
            raise ExpressionError(f"is longer than {MOST_TEMPLATE_CHARS} characters")
        self._parts: list[str | Path] = []
        end = 0
        for found in _BRACES.finditer(text):
            self._parts.append(text[end : found.start()])
            end = found.end()
            if found[0] in ("{{", "}}"):
                self._parts.append(found[0][0])
            elif found[1] is None:
                raise ExpressionError(f"a single {found[0]!r}; double it where it is meant as it is")
            else:
                self._parts.append(_Parser(found[1]).only_path())
        self._parts = [part for part in [*self._parts, text[end:]] if part != ""]

    @property
    def paths(self) -> tuple[Path, ...]:
        """All that it takes in."""
        return tuple(part for part in self._parts if isinstance(part, tuple))

    def value(self, scope: Mapping[str, Any]) -> Any:
        """What a template that is one path leads to, as it is; the text of any other. Raises Missing."""
        if len(self._parts) == 1 and isinstance(self._parts[0], tuple):
            return _found(scope, self._parts[0])
        return self.render(scope)

    def render(self, scope: Mapping[str, Any]) -> str:
        """The text; what is no text stands in it as JSON. Raises Missing."""
        return "".join(part if isinstance(part, str) else as_text(_found(scope, part)) for part in self._parts)


def as_text(value: Any) -> str:
    """A text as it is, all else as JSON."""
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def as_templates(value: Any) -> Any:
    """JSON with each text in it made a template. Raises ExpressionError, which names the path."""
    return _mapped(value, lambda text, where: _template(text, where) if isinstance(text, str) else text)


def as_written(value: Any) -> Any:
    """The inverse of `as_templates`."""
    return _mapped(value, lambda template, _: template.text if isinstance(template, Template) else template)


def fill(value: Any, scope: Mapping[str, Any]) -> Any:
    """A value with every template in it replaced by what it stands for. Raises Missing."""
    return _mapped(value, lambda template, _: template.value(scope) if isinstance(template, Template) else template)


def templates(value: Any, where: str = "") -> Iterator[tuple[str, Template]]:
    """The templates in a value, each with its path."""
    if isinstance(value, Template):
        yield where, value
    elif isinstance(value, Mapping):
        for name, part in value.items():
            yield from templates(part, f"{where}.{name}")
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            yield from templates(part, f"{where}.{index}")


def _mapped(value: Any, change: Callable[[Any, str], Any], where: str = "") -> Any:
    if isinstance(value, Mapping):
        return {name: _mapped(part, change, f"{where}.{name}") for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_mapped(part, change, f"{where}.{index}") for index, part in enumerate(value)]
    return change(value, where)


def _template(text: str, where: str) -> Template:
    try:
        return Template(text)
    except ExpressionError as error:
        raise ExpressionError(f"{where.lstrip('.')}: {error}" if where else str(error)) from error


def look_up(scope: Any, path: Path) -> tuple[bool, Any]:
    """Whether a path leads anywhere, and to what."""
    for part in path:
        in_object = isinstance(scope, Mapping) and isinstance(part, str) and part in scope
        if in_object or (isinstance(scope, list) and isinstance(part, int) and -len(scope) <= part < len(scope)):
            scope = scope[part]
        else:
            return False, None
    return True, scope


def named(path: Path) -> str:
    """A path as it is written."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def _found(scope: Mapping[str, Any], path: Path) -> Any:
    there, value = look_up(scope, path)
    if not there:
        raise Missing(f"{named(path)} leads nowhere")
    return value


def _truth(value: Any) -> bool:
    if value is None or isinstance(value, bool):
        return bool(value)
    raise ExpressionError(f"{_kind(value)} is neither true nor false")


def _kind(value: Any) -> str:
    kinds = ((type(None), "null"), (bool, "a boolean"), (int | float, "a number"), (str, "a text"), (list, "a list"))
    return next((name for kind, name in kinds if isinstance(value, kind)), "an object")


def _equal(left: Any, right: Any) -> bool:
    # To Python, true is 1.
    return _kind(left) == _kind(right) and left == right


def _ordered(sign: str, left: Any, right: Any) -> bool:
    if _kind(left) != _kind(right) or _kind(left) not in ("a number", "a text"):
        raise ExpressionError(f"{_kind(left)} {sign} {_kind(right)} has no meaning")
    return _ORDER[sign](left, right)


def _within(left: Any, right: Any) -> bool:
    if right is None:
        return False
    if isinstance(right, list):
        return any(_equal(left, each) for each in right)
    if isinstance(left, str) and isinstance(right, str | Mapping):
        return left in right
    raise ExpressionError(f"{_kind(left)} in {_kind(right)} has no meaning")


def _length(value: Any) -> int:
    if value is None:
        return 0
    if isinstance(value, str | list | Mapping):
        return len(value)
    raise ExpressionError(f"{_kind(value)} has no length")


def _number(value: Any) -> Any:
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        return float(value)
    if value is None or _kind(value) == "a number":
        return value
    raise ExpressionError(f"{_kind(value)} is no number")


class _Parser:
    """Recursive descent; each method answers the function that gives the value."""

    def __init__(self, text: str) -> None:
        if len(text) > MOST_CHARS:
            raise ExpressionError(f"is longer than {MOST_CHARS} characters")
        self.paths: list[Path] = []
        self._tokens: list[tuple[str, str]] = []
        self._at = self._depth = 0
        position, end = 0, len(text.rstrip())
        while position < end:
            found = _TOKEN.match(text, position)
            if found is None:
                raise ExpressionError(f"cannot be read from {text[position:].strip()[:20]!r} on")
            self._tokens.append((found.lastgroup or "", found[found.lastgroup or 0]))
            position = found.end()

    def whole(self) -> Evaluate:
        """The value of the whole text."""
        evaluate = self._either()
        self._end()
        return evaluate

    def only_path(self) -> Path:
        """The whole text as one path."""
        self._path()
        self._end()
        return self.paths[0]

    def _end(self) -> None:
        if self._at < len(self._tokens):
            raise ExpressionError(f"{self._tokens[self._at][1]!r} is not expected there")

    def _ahead(self, *texts: str) -> bool:
        return self._at < len(self._tokens) and self._tokens[self._at][0] in ("name", "sign") and self._tokens[self._at][1] in texts

    def _take(self, *texts: str) -> str:
        """The next token, if it is one of `texts`; empty otherwise."""
        if not self._ahead(*texts):
            return ""
        self._at += 1
        return self._tokens[self._at - 1][1]

    def _expect(self, text: str) -> None:
        if not self._take(text):
            raise ExpressionError(f"{text!r} is missing")

    def _either(self) -> Evaluate:
        self._depth += 1
        if self._depth > MOST_DEPTH:
            raise ExpressionError(f"is nested deeper than {MOST_DEPTH}")
        parts = [self._both()]
        while self._take("or"):
            parts.append(self._both())
        self._depth -= 1
        return parts[0] if len(parts) == 1 else lambda scope: any(_truth(part(scope)) for part in parts)

    def _both(self) -> Evaluate:
        parts = [self._negated()]
        while self._take("and"):
            parts.append(self._negated())
        return parts[0] if len(parts) == 1 else lambda scope: all(_truth(part(scope)) for part in parts)

    def _negated(self) -> Evaluate:
        negations = 0
        while self._take("not"):
            negations += 1
        part = self._compared()
        if not negations:
            return part
        return lambda scope: _truth(part(scope)) is (negations % 2 == 0)

    def _compared(self) -> Evaluate:
        left = self._operand()
        sign = self._take("==", "!=", "<", "<=", ">", ">=", "in", "not")
        if not sign:
            return left
        if sign == "not":
            self._expect("in")
            sign = "not in"
        right = self._operand()
        if sign in ("==", "!="):
            return lambda scope: _equal(left(scope), right(scope)) is (sign == "==")
        if sign in ("in", "not in"):
            return lambda scope: _within(left(scope), right(scope)) is (sign == "in")
        return lambda scope: _ordered(sign, left(scope), right(scope))

    def _operand(self) -> Evaluate:
        if self._take("("):
            inner = self._either()
            self._expect(")")
            return inner
        if self._take("["):
            return self._list()
        if name := self._take("len", "number"):
            self._expect("(")
            inside, function = self._either(), _length if name == "len" else _number
            self._expect(")")
            return lambda scope: function(inside(scope))
        if self._at >= len(self._tokens):
            raise ExpressionError("ends too early")
        kind, text = self._tokens[self._at]
        if kind == "name" and text not in _WORDS:
            return self._path()
        literal: Any
        if kind == "number":
            literal = float(text) if "." in text else int(text)
        elif kind == "string":
            literal = text[1:-1]
        elif text in _LITERALS:
            literal = _LITERALS[text]
        else:
            raise ExpressionError(f"{text!r} is not expected there")
        self._at += 1
        return lambda scope: literal

    def _list(self) -> Evaluate:
        parts: list[Evaluate] = []
        while not self._take("]"):
            if parts:
                self._expect(",")
            parts.append(self._either())
        return lambda scope: [part(scope) for part in parts]

    def _path(self) -> Evaluate:
        parts: list[str | int] = [self._name()]
        while sign := self._take(".", "["):
            if sign == ".":
                parts.append(self._name())
                continue
            kind, text = self._tokens[self._at] if self._at < len(self._tokens) else ("", "")
            if kind not in ("number", "string") or ("." in text and kind == "number"):
                raise ExpressionError("an index must be a whole number or a quoted name")
            parts.append(int(text) if kind == "number" else text[1:-1])
            self._at += 1
            self._expect("]")
        path = tuple(parts)
        self.paths.append(path)
        return lambda scope: look_up(scope, path)[1]

    def _name(self) -> str:
        kind, text = self._tokens[self._at] if self._at < len(self._tokens) else ("", "")
        if kind != "name":
            raise ExpressionError(f"a name is missing{f' before {text!r}' if text else ''}")
        self._at += 1
        return text
