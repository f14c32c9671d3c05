"""Arguments and results of tools as JSON texts, digit by digit: what a person approves has a digest over these very digits."""

import json
from collections.abc import Mapping
from typing import Any

import orjson
from bulkhead.orchestrator.v1.orchestrator_pb2 import Event


def arguments_of(event: Event) -> str:
    """`arguments` of an event as a JSON text; those that were no JSON stand in the log as the text that they were."""
    return _text(_exactly(event).get("arguments", {}))


def output_of(event: Event, data: Mapping[str, Any]) -> str:
    """What a call gave, as a client shows it: a text as it is, all else as JSON, and an error as an object `error`."""
    if "error" in data:
        return orjson.dumps({name: data[name] for name in ("error", "preview") if name in data}).decode()
    output = _exactly(event).get("output")
    return output if isinstance(output, str) else _text(output)


def _exactly(event: Event) -> Mapping[str, Any]:
    # The parser of the house makes doubles of whole numbers beyond 64 bits. This one refuses those of thousands of digits.
    try:
        return json.loads(event.data_json or b"{}")
    except ValueError:
        return orjson.loads(event.data_json)


def _text(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except ValueError:
        return orjson.dumps(value).decode()
