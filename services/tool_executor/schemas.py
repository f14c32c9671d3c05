"""JSON Schema 2020-12: compiled once, checked in well under a microsecond, violations as data."""

from collections.abc import Mapping
from typing import Any

import jsonschema_rs
import orjson

from services.tool_executor.failures import Violation

MAX_VIOLATIONS = 16
MAX_EXPECTED_BYTES = 1024
# What a schema asks for, by the name that jsonschema-rs gives it. Anything else may hold parts of the rejected value.
_EXPECTATIONS = ("types", "options", "limit", "pattern", "format", "property", "multiple_of", "expected_value")


class BadSchema(ValueError):
    """The schema itself is wrong; the message says how."""


class Schema:
    """One compiled schema."""

    def __init__(self, definition: Mapping[str, Any]) -> None:
        """Raises BadSchema. References may only point into the schema itself: nothing is fetched."""
        self.definition = dict(definition)
        try:
            jsonschema_rs.meta.validate({"$schema": "https://json-schema.org/draft/2020-12/schema", **self.definition})
            self._validator = jsonschema_rs.Draft202012Validator(
                self.definition, validate_formats=True, offline=True, pattern_options=jsonschema_rs.RegexOptions()
            )
        except jsonschema_rs.ValidationError as error:
            where = "/".join(str(p) for p in error.instance_path)
            raise BadSchema(f"{error.message}{f' (at {where})' if where else ''}") from error
        except (jsonschema_rs.ReferencingError, ValueError, TypeError) as error:
            raise BadSchema(str(error)) from error
        self.json = orjson.dumps(self.definition)
        self.is_valid = self._validator.is_valid

    def violations(self, value: Any) -> list[Violation]:
        """Every violation, up to 16, without the rejected values. Raises ValueError when the value is nested too deeply."""
        if self._validator.is_valid(value):
            return []
        found: list[Violation] = []
        for error in self._validator.iter_errors(value):
            found.append(self._violation(error))
            if len(found) == MAX_VIOLATIONS:
                break
        return found

    def errors(self, value: Any) -> "list[jsonschema_rs.ValidationError]":
        """The raw errors, for coercion."""
        return list(self._validator.iter_errors(value))

    def _violation(self, error: "jsonschema_rs.ValidationError") -> Violation:
        kind = error.kind
        path = pointer(error.instance_path)
        if kind.name in ("additionalProperties", "unevaluatedProperties"):
            unexpected = [str(name)[:64] for name in getattr(kind, "unexpected", ())[:1]]
            return Violation(pointer([*error.instance_path, *unexpected]), kind.name, self._allowed_properties(error.schema_path))
        if kind.name in ("anyOf", "oneOf") and hasattr(kind, "context"):
            types = sorted({t for branch in kind.context for e in branch if e.kind.name == "type" for t in e.kind.types})
            return Violation(path, kind.name, types or None)
        for name in _EXPECTATIONS:
            expected = getattr(kind, name, None)
            if expected is not None:
                return Violation(path, kind.name, _bounded(expected))
        return Violation(path, kind.name)

    def _allowed_properties(self, schema_path: list[str | int]) -> list[str] | None:
        schema: Any = self.definition
        for part in schema_path[:-1]:
            try:
                schema = schema[part]
            except (KeyError, IndexError, TypeError):
                return None
        properties = schema.get("properties") if isinstance(schema, dict) else None
        return sorted(properties)[:32] if isinstance(properties, dict) else None


def pointer(path: list[str | int]) -> str:
    """A JSON Pointer (RFC 6901)."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


def _bounded(expected: Any) -> Any:
    try:
        return expected if len(orjson.dumps(expected, default=str)) <= MAX_EXPECTED_BYTES else None
    except orjson.JSONEncodeError:
        return None
