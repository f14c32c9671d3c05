"""Tokens of a request of the Messages API, without asking anybody.

An estimate, for nobody publishes the tokenizer: text at the rates that Claude's tokenizer shows on average, images by the documented
rule of (width x height) / 750 at its usual bound, since their sizes are not known here.
"""

from collections.abc import Mapping
from typing import Any

import orjson

IMAGE_TOKENS = 1_600
# What the API adds for a request, a message and the use of tools.
REQUEST_TOKENS, MESSAGE_TOKENS, TOOL_USE_TOKENS = 3, 4, 346
_ASCII_BYTES = 3.5
# Scripts of one to three bytes a letter share tokens in part, so bytes say more than letters.
_OTHER_BYTES = 2.5
_DATA = frozenset({"data", "signature", "encrypted_content", "file_data"})


def estimated_tokens(body: Mapping[str, Any]) -> int:
    """Tokens of the prompt of a Messages request."""
    found = REQUEST_TOKENS + _tokens(body.get("system")) + _tokens(body["messages"]) + MESSAGE_TOKENS * len(body["messages"])
    if body.get("tools"):
        found += TOOL_USE_TOKENS + _text(orjson.dumps(body["tools"]))
    return round(found)


def _tokens(value: Any) -> float:
    if isinstance(value, str):
        return _text(value.encode())
    if isinstance(value, list):
        return sum(map(_tokens, value))
    if not isinstance(value, Mapping):
        return 0.0
    if value.get("type") in ("image", "document"):
        source = value.get("source")
        text = source.get("data") if isinstance(source, Mapping) and source.get("type") == "text" else None
        return _tokens(text) if text is not None else float(IMAGE_TOKENS)
    if value.get("type") == "tool_use":
        return _text(orjson.dumps(value.get("input"))) + _tokens(value.get("name"))
    return sum(_tokens(inner) for key, inner in value.items() if key not in _DATA and key not in ("type", "role", "id", "tool_use_id"))


def _text(raw: bytes) -> float:
    plain = sum(1 for byte in raw if byte < 128) if not raw.isascii() else len(raw)
    return plain / _ASCII_BYTES + (len(raw) - plain) / _OTHER_BYTES
