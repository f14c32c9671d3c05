"""What a model is told of a tool's result. The log and the executor have the whole of it."""

from collections.abc import Mapping
from typing import Any

import orjson

MOST_OUTPUT_CHARS = 65_536


def cut(content: str) -> str:
    """As much of a result as a model is given."""
    return content if len(content) <= MOST_OUTPUT_CHARS else content[:MOST_OUTPUT_CHARS] + " …[cut: the result is longer]"


def output_of(raw: bytes, data: Mapping[str, Any]) -> str:
    """The output in the data of a `tool_call_completed`, byte for byte as the model got it, which parsing and writing it again would not
    give."""
    before = orjson.dumps({"call_id": data["call_id"], "tool": data["tool"]})[:-1] + b',"output":'
    after = b"," + orjson.dumps({name: value for name, value in data.items() if name not in ("call_id", "tool", "output")})[1:]
    if raw.startswith(before) and raw.endswith(after):
        return raw[len(before) : -len(after)].decode("utf-8", "replace")
    return orjson.dumps(data["output"]).decode()


def told(raw: bytes) -> str:
    """What a model was told of a call that ended with this `tool_call_completed`."""
    data = orjson.loads(raw)
    note: str = data.get("note", "")
    return note + cut(output_of(raw, data))
