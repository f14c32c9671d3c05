"""Events against their JSON Schema, of which nothing may be missing: what it does not list is found as well."""

from collections import Counter
from typing import Any

import jsonschema

from services.gateway.surfaces.schemas.events import SCHEMA


def closed(node: Any) -> Any:
    """The schema without room for members that it does not list; what it leaves open by name stays open."""
    if isinstance(node, dict):
        made = {key: closed(value) for key, value in node.items()}
        return {"additionalProperties": False, **made} if made.get("type") == "object" and "properties" in made else made
    return [closed(value) for value in node] if isinstance(node, list | tuple) else node


CLOSED = jsonschema.Draft202012Validator(closed(SCHEMA))


def problems(events: list[dict[str, Any]]) -> Counter[str]:
    """What is wrong with events, and how often; a type that the schema does not know is wrong."""
    found: Counter[str] = Counter()
    for event in events:
        found.update(f"{event['type']} {error.json_path}: {error.message[:200]}" for error in CLOSED.iter_errors(event))
        if event["type"] not in SCHEMA["$defs"]:
            found[f"{event['type']} is not in the schema"] += 1
    return found
