"""What goes into a tool and what comes out of it, held against its schemas and its size."""

from typing import Any

import orjson

from services.common import approval
from services.tool_executor.coercion import coerce
from services.tool_executor.failures import ToolFailure, Violation
from services.tool_executor.tools import Tool


def parsed(arguments_json: bytes) -> Any:
    """The arguments as they came; none are an empty object. Raises ToolFailure."""
    try:
        return orjson.loads(arguments_json or b"{}")
    except orjson.JSONDecodeError as error:
        raise ToolFailure(
            "input.invalid",
            f"The arguments are not valid JSON (at character {error.pos}).",
            violations=[Violation("", "json", "a JSON object")],
        ) from error


def canonical(arguments: Any) -> bytes:
    """The arguments in the one form that their digest is made of. Raises ToolFailure."""
    try:
        return approval.canonical(arguments)
    except orjson.JSONEncodeError as error:
        raise ToolFailure("input.invalid", "The arguments are nested too deeply.", violations=[Violation("", "maxDepth", 254)]) from error


def valid(tool: Tool, arguments: Any) -> tuple[Any, list[str]]:
    """The arguments as the tool declares them, and what was coerced. Raises ToolFailure."""
    schema = tool.input_schema
    try:
        if schema.is_valid(arguments) and isinstance(arguments, dict):
            return arguments, []
        arguments, changed = coerce(schema, arguments)
        violations = schema.violations(arguments)
    except (ValueError, RecursionError) as error:
        raise ToolFailure("input.invalid", "The arguments are nested too deeply.", violations=[Violation("", "maxDepth")]) from error
    if not violations and not isinstance(arguments, dict):
        violations = [Violation("", "type", ["object"])]
    if violations:
        places = ", ".join(dict.fromkeys(f"{v.path or '/'} ({v.keyword})" for v in violations))
        raise ToolFailure("input.invalid", f"The arguments do not fit the schema of {tool.name}: {places}.", violations=violations)
    return arguments, changed


def output(tool: Tool, value: Any) -> bytes:
    """The value as JSON within the tool's size cap and output schema. Raises ToolFailure."""
    try:
        written = orjson.dumps(value)
    except (orjson.JSONEncodeError, TypeError) as error:
        raise ToolFailure("output.invalid", f"The tool {tool.name} answered something that is not JSON.") from error
    if len(written) > tool.limits.max_output_bytes:
        raise ToolFailure(
            "output.too_large",
            f"The output of {tool.name} is larger than {tool.limits.max_output_bytes} bytes. Ask for less.",
            developer_message=f"{len(written)} bytes",
        )
    if tool.output_schema is not None and (violations := tool.output_schema.violations(value)):
        raise ToolFailure("output.invalid", f"The output of {tool.name} does not fit its schema.", violations=violations)
    return written
