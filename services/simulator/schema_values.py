"""Values that satisfy a JSON Schema, taken from a text where the text has something that fits.

Used for tool arguments and for structured answers. Covers the keywords that function schemas are written with; a
`pattern` is honoured only where a word of the text matches it, since no string can be made from a pattern in general.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from services.simulator.refusals import Refused

_MAX_DEPTH = 24
_MAX_VALUES = 5_000
_MAX_TEXT_CHARS = 20_000
_NUMBER = re.compile(r"(?<![\w.])-?\d{1,15}(?:\.\d{1,15})?(?!\.?\w)")
_QUOTED = re.compile(r"\"([^\"]+)\"|“([^“”]+)”|`([^`]+)`|(?<!\w)'([^']+)'(?!\w)")
_AFTER_PREPOSITION = re.compile(r"\b(?:in|for|at|of|to|from|named|called|about|near)\s+((?:[A-Z][\w-]*)(?:\s+[A-Z][\w-]*)*)")
_PROPER_NOUN = re.compile(r"(?<![.?!]\s)(?<!^)\b([A-Z][\w-]+(?:\s+[A-Z][\w-]+)*)")
_WHOLE_TEXT_NAMES_TEXT = "query q question text input prompt message content answer body summary description note notes fact memory"
_WHOLE_TEXT_NAMES = frozenset(_WHOLE_TEXT_NAMES_TEXT.split())
_FORMATS: Mapping[str, str] = {
    "date": "2000-01-01",
    "date-time": "2000-01-01T00:00:00Z",
    "time": "00:00:00Z",
    "duration": "PT1S",
    "email": "simulator@example.com",
    "uri": "https://example.com/",
    "url": "https://example.com/",
    "hostname": "example.com",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "uuid": "00000000-0000-4000-8000-000000000000",
}
_FORMAT_PATTERNS: Mapping[str, re.Pattern[str]] = {
    "date": re.compile(r"\b\d{4}-\d\d-\d\d\b"),
    "date-time": re.compile(r"\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)"),
    "email": re.compile(r"\b[\w.+-]+@[\w-]+(?:\.[\w-]+)+\b"),
    "uri": re.compile(r"https?://[^\s<>\"')\]]+"),
    "url": re.compile(r"https?://[^\s<>\"')\]]+"),
}


class SchemaFiller:
    """Fills schemas from one text. Each number and each quoted phrase of the text is used once, in order."""

    def __init__(self, text: str, root: Mapping[str, Any], *, whole_text: str | None = None):
        text = text[-_MAX_TEXT_CHARS:]
        self._text = text
        self._root = root
        self._whole_text = text if whole_text is None else whole_text
        self._numbers = [float(found) if "." in found else int(found) for found in _NUMBER.findall(text)]
        self._phrases = ["".join(groups) for groups in _QUOTED.findall(text)]
        self._values_made = 0

    def fill(self) -> Any:
        """A value for the whole schema; raises Refused (400) where the schema nests without end."""
        return self.value(self._root, "", 0)

    def value(self, schema: Any, name: str, depth: int) -> Any:
        """A value for a part of the schema that stands under the property `name`."""
        if depth > _MAX_DEPTH:
            raise Refused(f"The JSON schema nests deeper than {_MAX_DEPTH} levels.", code="invalid_schema")
        if not isinstance(schema, dict):
            return self._string({}, name)
        schema = self._resolved(schema, depth)
        if "const" in schema:
            return schema["const"]
        if isinstance(schema.get("enum"), list) and schema["enum"]:
            return self._choice(schema["enum"])
        for key in ("anyOf", "oneOf"):
            if isinstance(schema.get(key), list) and schema[key]:
                branch = next((item for item in schema[key] if not (isinstance(item, dict) and item.get("type") == "null")), schema[key][0])
                return self.value(branch, name, depth + 1)
        kind = schema.get("type")
        if isinstance(kind, list):
            kind = next((item for item in kind if item != "null"), "null")
        if kind == "object" or (kind is None and isinstance(schema.get("properties"), dict)):
            return self._object(schema, depth)
        if kind == "array":
            count = max(_size(schema, "minItems", 1), 1)
            items = schema.get("items", {})
            prefix = schema.get("prefixItems")
            if isinstance(prefix, list) and prefix:
                return [self.value(item, name, depth + 1) for item in prefix]
            return [self.value(items, name, depth + 1) for _ in range(min(count, 100))]
        if kind in ("integer", "number"):
            return self._number(schema, kind)
        if kind == "boolean":
            return True
        if kind == "null":
            return None
        return self._string(schema, name)

    def _object(self, schema: Mapping[str, Any], depth: int) -> dict[str, Any]:
        properties = schema.get("properties")
        properties = properties if isinstance(properties, dict) else {}
        required = schema.get("required")
        required = [key for key in required if isinstance(key, str)] if isinstance(required, list) else []
        wanted = [key for key in properties if key in required or self.has_evidence(properties[key])]
        wanted += [key for key in required if key not in properties]
        if not wanted and depth == 0:
            wanted = list(properties)[:1]
        return {key: self.value(properties.get(key, {}), key, depth + 1) for key in wanted}

    def has_evidence(self, schema: Any) -> bool:
        """Whether the text names one of the schema's enum values, so that an optional property is worth giving."""
        choices = schema.get("enum") if isinstance(schema, dict) else None
        return isinstance(choices, list) and any(isinstance(item, str) and _mentions(self._text, item) for item in choices)

    def _resolved(self, schema: dict[str, Any], depth: int) -> dict[str, Any]:
        if depth > _MAX_DEPTH:
            raise Refused(f"The JSON schema nests deeper than {_MAX_DEPTH} levels.", code="invalid_schema")
        self._values_made += 1
        if self._values_made > _MAX_VALUES:
            # References that each branch in two would otherwise double the work at every level.
            raise Refused(f"The JSON schema asks for more than {_MAX_VALUES} values.", code="invalid_schema")
        for _ in range(_MAX_DEPTH):
            reference = schema.get("$ref")
            if not isinstance(reference, str):
                break
            target: Any = self._root if reference.startswith("#") else None
            for part in reference[1:].split("/"):
                if part:
                    target = target.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(target, dict) else None
            if not isinstance(target, dict):
                raise Refused(f"The JSON schema refers to '{reference}', which it does not have.", code="invalid_schema")
            schema = target
        parts = schema.get("allOf")
        if not isinstance(parts, list):
            return schema
        merged: dict[str, Any] = {key: value for key, value in schema.items() if key != "allOf"}
        for part in parts:
            if not isinstance(part, dict):
                continue
            for key, value in self._resolved(part, depth + 1).items():
                if key == "properties" and isinstance(merged.get(key), dict) and isinstance(value, dict):
                    merged[key] = {**merged[key], **value}
                elif key == "required" and isinstance(merged.get(key), list) and isinstance(value, list):
                    merged[key] = [*merged[key], *value]
                else:
                    merged.setdefault(key, value)
        return merged

    def _choice(self, choices: list[Any]) -> Any:
        return next((item for item in choices if isinstance(item, str) and _mentions(self._text, item)), choices[0])

    def _number(self, schema: Mapping[str, Any], kind: str) -> int | float:
        low, high = _bound(schema, "minimum", "exclusiveMinimum", 1), _bound(schema, "maximum", "exclusiveMaximum", -1)
        step = schema.get("multipleOf")
        if isinstance(step, bool) or not isinstance(step, (int, float)) or step <= 0:
            step = None
        for position, number in enumerate(self._numbers):
            if (kind == "integer" and number != int(number)) or (step and number % step):
                continue
            if (low is None or number >= low) and (high is None or number <= high):
                del self._numbers[position]
                return int(number) if kind == "integer" else number
        value = low if low is not None else min(1, high) if high is not None else 1
        if step:
            value = -(-value // step) * step
        return int(-(-value // 1)) if kind == "integer" else value

    def _string(self, schema: Mapping[str, Any], name: str) -> str:
        kind = schema.get("format")
        if isinstance(kind, str) and kind in _FORMATS:
            pattern = _FORMAT_PATTERNS.get(kind)
            found = pattern.search(self._text) if pattern else None
            return found.group(0) if found else _FORMATS[kind]
        value = self._phrase(name)
        pattern_text = schema.get("pattern")
        if isinstance(pattern_text, str) and len(pattern_text) <= 200:
            value = self._matching(pattern_text, value)
        value = value.ljust(min(_size(schema, "minLength", 0), 10_000), ".")
        limit = schema.get("maxLength")
        return value[: max(limit, 0)] if isinstance(limit, int) and not isinstance(limit, bool) else value

    def _phrase(self, name: str) -> str:
        if self._phrases:
            return self._phrases.pop(0)
        if name.lower().split("_")[-1] in _WHOLE_TEXT_NAMES:
            return self._whole_text
        noun = _AFTER_PREPOSITION.search(self._text) or _PROPER_NOUN.search(self._text)
        return noun.group(1) if noun else self._whole_text

    def _matching(self, pattern: str, value: str) -> str:
        # Only the plainest patterns are tried: groups and many quantifiers can run for ever on a short word.
        if "(" in pattern or len(re.findall(r"[*+{]", pattern)) > 2:
            return value
        try:
            compiled = re.compile(pattern)
        except re.error:
            return value
        return next((word for word in (value, *re.findall(r"[\w-]{1,64}", self._text)[:200]) if compiled.search(word[:64])), value)


def _mentions(text: str, word: str) -> bool:
    return bool(word) and re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) is not None


def _size(schema: Mapping[str, Any], key: str, default: int) -> int:
    value = schema.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else default


def _bound(schema: Mapping[str, Any], inclusive: str, exclusive: str, direction: int) -> int | float | None:
    for key, step in ((inclusive, 0), (exclusive, direction)):
        value = schema.get(key)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            return value + step
    return None
