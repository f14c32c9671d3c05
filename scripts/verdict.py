"""How a long run under faults tells what it found."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson


def tell(found: Mapping[str, Any], path: Path) -> int:
    """Prints `found` as JSON and writes it to `path`. Answers the exit status: 0 where its `ok` is true, 1 otherwise."""
    text = orjson.dumps(found, option=orjson.OPT_INDENT_2)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text)
    sys.stdout.write(text.decode() + "\n")
    return 0 if found["ok"] else 1
