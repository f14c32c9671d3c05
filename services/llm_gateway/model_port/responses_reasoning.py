"""What a model needs back of its own thinking, packed into `encrypted_content` of a reasoning item and unpacked from it.

OpenAI's field is opaque to callers, who send it back as it came. The gateway encrypts nothing: providers sign or encrypt
what they put into these blocks themselves.
"""

import base64
import binascii
from collections.abc import Sequence
from typing import Any

import orjson

_MARK = "bulkhead-1:"


def sealed(blocks: Sequence[Any]) -> str:
    """Thinking blocks as one opaque text."""
    return _MARK + base64.b64encode(orjson.dumps(list(blocks))).decode()


def unsealed(content: Any) -> list[Any]:
    """The blocks in such a text; none for what another provider wrote."""
    if not isinstance(content, str) or not content.startswith(_MARK):
        return []
    try:
        found = orjson.loads(base64.b64decode(content[len(_MARK) :], validate=True))
    except (binascii.Error, orjson.JSONDecodeError):
        return []
    return [block for block in found if isinstance(block, dict)] if isinstance(found, list) else []
