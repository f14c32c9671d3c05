"""JSON Schemas that callers give, for what a model answers: compiled within bounds, since neither the one nor the other is ours.

A validator takes a branch of a schema for each way that leads to it. With references that can be twice as many a level, so that a small
schema and a small answer would keep a process at work for hours. What a check would take at most is therefore told beforehand.
"""

from collections.abc import Mapping
from typing import Any

import jsonschema_rs

DIALECT = "https://json-schema.org/draft/2020-12/schema"
MOST_PROBLEMS = 8
MOST_PROBLEM_CHARS = 300
# Levels of an answer, and those for which a schema must be cheap when it is given.
MOST_DEPTH, LOOKED_DEPTH = 64, 3
# Branches that one check may have to look at, and how far those of a schema may lead into one another.
MOST_WORK, MOST_LEVELS = 5_000_000, 300
# Work of a schema when it is given: an answer of some hundred values can be checked by it in any case.
MOST_GIVEN_WORK = 10_000
_SAME_LISTS, _SAME_MAPS, _SAME = ("allOf", "anyOf", "oneOf"), ("dependentSchemas",), ("not", "if", "then", "else")
_BELOW_LISTS, _BELOW_MAPS = ("prefixItems",), ("properties", "patternProperties")
_BELOW = ("additionalProperties", "items", "contains", "propertyNames")
_REFUSED = ("$id", "$anchor", "$dynamicRef", "$dynamicAnchor", "$recursiveRef", "unevaluatedProperties", "unevaluatedItems")


class BadSchema(ValueError):
    """What is wrong with a schema, in words for who gave it."""


class AnswerSchema:
    """One compiled schema."""

    def __init__(self, definition: Any) -> None:
        """Raises BadSchema."""
        if not isinstance(definition, dict):
            raise BadSchema("must be a JSON Schema object")
        self._root: dict[str, Any] = {name: value for name, value in definition.items() if name != "$schema"}
        if self._work(LOOKED_DEPTH) > MOST_GIVEN_WORK:
            raise BadSchema("is too complex to check answers by")
        check_form(self._root)
        try:
            # Patterns that never go back, and nothing is fetched.
            self._validator = jsonschema_rs.Draft202012Validator(
                self._root, validate_formats=True, offline=True, pattern_options=jsonschema_rs.RegexOptions()
            )
        except jsonschema_rs.ValidationError as error:
            raise BadSchema(_at(error)) from error
        except (jsonschema_rs.ReferencingError, ValueError, TypeError) as error:
            raise BadSchema(str(error)[:MOST_PROBLEM_CHARS]) from error

    def problems(self, value: Any) -> list[str]:
        """Where a value does not fit, the first few; empty where it does."""
        nodes, depth = size(value)
        if depth > MOST_DEPTH:
            return [f"It is nested deeper than {MOST_DEPTH} levels."]
        try:
            work = nodes * self._work(depth)
        except BadSchema:
            work = MOST_WORK + 1
        if work > MOST_WORK:
            return ["It is too large, or nested too deeply, to be checked."]
        if self._validator.is_valid(value):
            return []
        found = []
        for error in self._validator.iter_errors(value):
            found.append(_at(error))
            if len(found) == MOST_PROBLEMS:
                break
        return found

    def _work(self, depth: int) -> int:
        """Branches that lead to one value at most, `depth` levels below the root, on the way there. Raises BadSchema."""
        return _Work(self._root).of(self._root, depth, 0)


def check_form(definition: dict[str, Any]) -> None:
    """Raises BadSchema where this is no JSON Schema."""
    try:
        jsonschema_rs.meta.validate({**definition, "$schema": DIALECT})
    except jsonschema_rs.ValidationError as error:
        raise BadSchema(_at(error)) from error
    except (jsonschema_rs.ReferencingError, ValueError, TypeError) as error:
        raise BadSchema(str(error)[:MOST_PROBLEM_CHARS]) from error


class _Work:
    def __init__(self, root: dict[str, Any]) -> None:
        self._root = root
        self._known: dict[tuple[int, int], int] = {}
        self._open: set[tuple[int, int]] = set()

    def of(self, node: Any, depth: int, level: int) -> int:
        if not isinstance(node, dict):
            return 1
        name = id(node), depth
        if name in self._known:
            return self._known[name]
        if name in self._open:
            raise BadSchema("refers to itself without an end")
        if level > MOST_LEVELS:
            raise BadSchema("is nested too deeply")
        for word in _REFUSED:
            if word in node:
                raise BadSchema(f"{word} is not supported")
        self._open.add(name)
        total = 1
        for inner in self._same(node):
            total = min(total + self.of(inner, depth, level + 1), MOST_WORK + 1)
        for group in _below(node) if depth else ():
            # Members of one value are looked at for one way each.
            most = 0
            for inner in group:
                most = max(most, self.of(inner, depth - 1, level + 1))
            total = min(total + most, MOST_WORK + 1)
        self._open.discard(name)
        self._known[name] = total
        return total

    def _same(self, node: dict[str, Any]) -> list[Any]:
        """Schemas that hold for the same value."""
        found = [node[word] for word in _SAME if word in node]
        for word in _SAME_LISTS:
            found += node[word] if isinstance(node.get(word), list) else []
        for word in _SAME_MAPS:
            found += node[word].values() if isinstance(node.get(word), dict) else []
        if "$ref" in node:
            found.append(self._target(node["$ref"]))
        return found

    def _target(self, reference: Any) -> Any:
        if not isinstance(reference, str) or (reference != "#" and not reference.startswith("#/")):
            raise BadSchema("$ref must point into the schema itself, as #/$defs/name")
        found: Any = self._root
        for part in reference.split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            found = found.get(name) if isinstance(found, Mapping) else None
        if not isinstance(found, dict | bool):
            raise BadSchema("$ref points to nothing")
        return found


def _below(node: dict[str, Any]) -> list[list[Any]]:
    """Schemas that hold for what is within a value: of each list, one member of the value meets one."""
    found = [[node[word]] for word in _BELOW if word in node]
    found += [node[word] for word in _BELOW_LISTS if isinstance(node.get(word), list)]
    properties = node.get("properties")
    found += [list(properties.values())] if isinstance(properties, dict) else []
    patterns = node.get("patternProperties")
    # A name may meet each of them.
    found += [[inner] for inner in patterns.values()] if isinstance(patterns, dict) else []
    return found


def size(value: Any) -> tuple[int, int]:
    """How many values a value is made of, and its levels."""
    nodes, depth, level = 0, 0, [value]
    while level:
        nodes, depth = nodes + len(level), depth + 1
        level = [
            inner for outer in level if isinstance(outer, dict | list) for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return nodes, depth


def _at(error: jsonschema_rs.ValidationError) -> str:
    where = "/".join(str(part) for part in error.instance_path)
    return f"{error.message}{f' (at /{where})' if where else ''}"[:MOST_PROBLEM_CHARS]
