"""Which tool on offer serves a need, judged by its schema, and the arguments it is called with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services.simulator import arithmetic, matching
from services.simulator.chat_request import Tool
from services.simulator.needs import Kind, Need
from services.simulator.schema_values import SchemaFiller

_EXPRESSION_NAMES_TEXT = "expression expr formula equation calculation math math_expression arithmetic"
_EXPRESSION_NAMES = frozenset(_EXPRESSION_NAMES_TEXT.split())
_URL_NAMES_TEXT = "url uri href link web_address page_url"
_URL_NAMES = frozenset(_URL_NAMES_TEXT.split())
_CODE_NAMES_TEXT = "code script source source_code program python python_code snippet"
_CODE_NAMES = frozenset(_CODE_NAMES_TEXT.split())
_QUERY_NAMES_TEXT = "query q search question keywords search_query search_term search_text"
_QUERY_NAMES = frozenset(_QUERY_NAMES_TEXT.split())
_ZONE_NAMES_TEXT = "timezone tz time_zone zone"
_ZONE_NAMES = frozenset(_ZONE_NAMES_TEXT.split())
_PLACE_NAMES_TEXT = "location city place country format locale language"
_PLACE_NAMES = frozenset(_PLACE_NAMES_TEXT.split())
_TIME_WORDS_TEXT = "time date datetime clock now today"
_TIME_WORDS = frozenset(_TIME_WORDS_TEXT.split())
_SEARCH_WORDS_TEXT = "search document documents doc docs retrieve retrieval find lookup knowledge web query ask faq wiki rag"
_SEARCH_WORDS = frozenset(_SEARCH_WORDS_TEXT.split())
_MEMORY_WORDS_TEXT = "memory memories remember recall"
_MEMORY_WORDS = frozenset(_MEMORY_WORDS_TEXT.split())
_WEAK_NAME_WORDS_TEXT = "get set list find search fetch run call tool use make create do new my a the of for by to"
_WEAK_NAME_WORDS = frozenset(_WEAK_NAME_WORDS_TEXT.split())

_ZONES: Mapping[str, str] = {
    "utc": "UTC", "gmt": "UTC", "berlin": "Europe/Berlin", "london": "Europe/London", "paris": "Europe/Paris", "madrid": "Europe/Madrid",
    "rome": "Europe/Rome", "zurich": "Europe/Zurich", "moscow": "Europe/Moscow", "istanbul": "Europe/Istanbul", "tokyo": "Asia/Tokyo",
    "seoul": "Asia/Seoul", "beijing": "Asia/Shanghai", "shanghai": "Asia/Shanghai", "singapore": "Asia/Singapore", "delhi": "Asia/Kolkata",
    "mumbai": "Asia/Kolkata", "dubai": "Asia/Dubai", "sydney": "Australia/Sydney", "chicago": "America/Chicago", "york": "America/New_York",
    "angeles": "America/Los_Angeles", "francisco": "America/Los_Angeles", "toronto": "America/Toronto", "paulo": "America/Sao_Paulo",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class PlannedCall:
    """A tool call to make."""

    tool: str
    arguments: Mapping[str, Any]


class Toolbox:
    """The tools of one request, sorted by what their schemas say they take."""

    def __init__(self, tools: Sequence[Tool], asked: str):
        self._tools = tools
        self._asked = asked
        self._asked_lower = asked.lower()

    def call_for(self, need: Need) -> PlannedCall | None:
        """The call that serves the need, None where no tool on offer fits."""
        if not self._tools:
            return None
        if need.kind is Kind.CALCULATION:
            return self._calculation(need)
        if need.kind is Kind.TIME:
            return self._time(need)
        if need.kind is Kind.FETCH:
            return self._by_property(need, _URL_NAMES)
        if need.kind is Kind.CODE:
            return self._by_property(need, _CODE_NAMES)
        return None

    def search_for(self, need: Need, *, in_memory: bool) -> PlannedCall | None:
        """The call that looks the clause up in documents, or in memories."""
        for tool in self._named_first():
            name = _string_property(tool, _QUERY_NAMES)
            about = set(matching.words(f"{tool.name} {tool.description}"))
            if name and (bool(about & _MEMORY_WORDS) == in_memory) and (in_memory or about & _SEARCH_WORDS):
                return self._filled(tool, need.clause, {name: _cut(need.value or need.clause, _properties(tool)[name])})
        return None

    def other_for(self, need: Need) -> PlannedCall | None:
        """A tool whose own name is what the clause is about, such as get_weather, with arguments found in the clause."""
        best: tuple[int, Tool] | None = None
        for tool in self._tools:
            named = self._is_named(tool)
            if not named and _has_known_property(tool):
                continue
            name_words = {matching.stem(word) for word in matching.words(tool.name)} - _WEAK_NAME_WORDS
            hits = len(name_words & need.terms)
            score = 10 * named + hits
            if score and (named or hits * 2 >= len(name_words)) and (best is None or score > best[0]):
                best = (score, tool)
        return self._filled(best[1], need.clause, {}) if best else None

    def forced(self, tool_name: str | None, asked_before: int) -> PlannedCall:
        """A call that must be made whatever was asked; `asked_before` such calls vary its arguments."""
        tools = [tool for tool in self._tools if tool_name in (None, tool.name)]
        tool = max(
            tools, key=lambda candidate: len(matching.terms(f"{candidate.name} {candidate.description}") & matching.terms(self._asked))
        )
        return self.varied(tool, asked_before)

    def varied(self, tool: Tool, step: int) -> PlannedCall:
        """A call of the tool whose arguments differ from those of every other `step`, as far as its schema lets them."""
        properties = _properties(tool)
        expression = _string_property(tool, _EXPRESSION_NAMES)
        if expression:
            found, _ = arithmetic.find_expressions(self._asked)
            return PlannedCall(tool.name, {expression: found[step] if step < len(found) else f"{step + 1}*{step + 2}"})
        arguments = dict(self._filled(tool, self._asked, {}).arguments)
        if step:
            for name, value in arguments.items():
                schema = properties.get(name)
                if isinstance(schema, dict) and {"enum", "const", "format", "pattern"} & schema.keys():
                    continue
                if isinstance(value, str):
                    arguments[name] = f"{value} ({step + 1})"
                    break
                if isinstance(value, int) and not isinstance(value, bool):
                    arguments[name] = value + step
                    break
        return PlannedCall(tool.name, arguments)

    def named_or_first(self, name: str) -> Tool:
        """The tool of that name, else one that the question names, else the first."""
        return next((tool for tool in self._tools if tool.name == name), self._named_first()[0])

    def _calculation(self, need: Need) -> PlannedCall | None:
        for tool in self._named_first():
            name = _string_property(tool, _EXPRESSION_NAMES)
            if name:
                return self._filled(tool, need.clause, {name: need.value})
            operands = self._operands(tool, need.value)
            if operands:
                return PlannedCall(tool.name, operands)
            code = _string_property(tool, _CODE_NAMES)
            if code and self._is_named(tool):
                return self._filled(tool, need.clause, {code: need.value})
        return self._by_property(need, _CODE_NAMES)

    def _operands(self, tool: Tool, expression: str) -> dict[str, Any] | None:
        """Arguments for a tool such as add(a, b) or calculate(operation, left, right)."""
        binary = arithmetic.binary_operation(expression)
        if binary is None:
            return None
        left, operator, right = binary
        names = arithmetic.OPERATION_NAMES[operator]
        properties = _properties(tool)
        numeric = [name for name, schema in properties.items() if _type_of(schema) in ("number", "integer")]
        if len(numeric) != 2:
            return None
        arguments: dict[str, Any] = {numeric[0]: left, numeric[1]: right}
        for name, schema in properties.items():
            choices = schema.get("enum") if isinstance(schema, dict) else None
            if isinstance(choices, list):
                chosen = next((item for item in choices if isinstance(item, str) and item.lower() in names), None)
                if chosen is None:
                    return None
                return {name: chosen, **arguments}
        return arguments if set(matching.words(tool.name)) & names else None

    def _time(self, need: Need) -> PlannedCall | None:
        for tool in self._named_first():
            properties = _properties(tool)
            zone = _string_property(tool, _ZONE_NAMES)
            required = tool.parameters.get("required")
            required_names = {name for name in required if isinstance(name, str)} if isinstance(required, list) else set()
            if not (set(matching.words(tool.name)) & _TIME_WORDS or zone) or required_names - _ZONE_NAMES - _PLACE_NAMES:
                continue
            given: dict[str, Any] = {}
            if zone:
                asked_zone = _zone_in(need.clause)
                if asked_zone or zone in required_names:
                    given[zone] = asked_zone or "UTC"
            if not properties:
                return PlannedCall(tool.name, {})
            return self._filled(tool, need.clause, given, only_required=True)
        return None

    def _by_property(self, need: Need, names: frozenset[str]) -> PlannedCall | None:
        for tool in self._named_first():
            name = _string_property(tool, names)
            if name:
                return self._filled(tool, need.clause, {name: need.value})
        return None

    def _filled(self, tool: Tool, text: str, given: Mapping[str, Any], *, only_required: bool = False) -> PlannedCall:
        schema = dict(tool.parameters)
        filler = SchemaFiller(text, tool.parameters)
        required = schema.get("required")
        rest = [name for name in required if isinstance(name, str) and name not in given] if isinstance(required, list) else []
        if given or only_required:
            properties = _properties(tool)
            optional = [name for name in properties if name not in given and name not in rest and filler.has_evidence(properties[name])]
            made = {name: filler.value(properties.get(name, {}), name, 1) for name in (*rest, *optional)}
            return PlannedCall(tool.name, {**given, **made})
        value = filler.fill() if schema.get("properties") else {}
        return PlannedCall(tool.name, value if isinstance(value, dict) else {})

    def _named_first(self) -> list[Tool]:
        return sorted(self._tools, key=lambda tool: not self._is_named(tool))

    def _is_named(self, tool: Tool) -> bool:
        name = tool.name.lower()
        if "_" in name or "-" in name:
            return name in self._asked_lower or name.replace("_", " ").replace("-", " ") in self._asked_lower
        return f"{name} tool" in self._asked_lower or f"use {name}" in self._asked_lower or f"with {name}" in self._asked_lower


def expression_in(arguments: Mapping[str, Any]) -> str:
    """The expression that a calculator was called with, empty for other tools."""
    return next((value for name, value in arguments.items() if name.lower() in _EXPRESSION_NAMES and isinstance(value, str)), "")


def _properties(tool: Tool) -> Mapping[str, Any]:
    properties = tool.parameters.get("properties")
    return properties if isinstance(properties, dict) else {}


def _type_of(schema: Any) -> str:
    kind = schema.get("type", "") if isinstance(schema, dict) else ""
    if isinstance(kind, list):
        kind = next((item for item in kind if item != "null"), "")
    return kind if isinstance(kind, str) else ""


def _cut(query: str, schema: Any) -> str:
    limit = schema.get("maxLength") if isinstance(schema, dict) else None
    return query[:limit] if isinstance(limit, int) and limit > 0 else query


def _string_property(tool: Tool, names: frozenset[str]) -> str:
    """The first property with one of the names that takes a string, empty where there is none."""
    for name, schema in _properties(tool).items():
        if name.lower() in names and _type_of(schema) in ("string", "") and not (isinstance(schema, dict) and "enum" in schema):
            return name
    return ""


def _has_known_property(tool: Tool) -> bool:
    known = _EXPRESSION_NAMES | _URL_NAMES | _CODE_NAMES | _QUERY_NAMES | _ZONE_NAMES
    return bool(_string_property(tool, known)) or bool(set(matching.words(tool.name)) & _TIME_WORDS)


def _zone_in(clause: str) -> str:
    for word in clause.replace("?", " ").replace(",", " ").split():
        head, slash, tail = word.partition("/")
        if slash and head.isalpha() and head[:1].isupper() and tail[:1].isupper():
            return word.rstrip(".!")
    return next((_ZONES[word] for word in matching.words(clause) if word in _ZONES), "")
