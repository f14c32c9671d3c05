"""Hold the gateway's OpenAPI document and the JSON Schema of its events against those of the last release.

Whatever would break a client of the last release is a line, and the check fails; additions pass. `--release` takes the documents as
they are now for the next comparison: it is run when a release is made, and by nobody else.
"""

import argparse
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import orjson

from scripts.api_changes import events_changes, openapi_changes
from services.gateway.app import application
from services.gateway.edge.document import document
from services.gateway.surfaces import native
from services.gateway.surfaces.schemas.events import SCHEMA

ROOT = Path(__file__).resolve().parent.parent
RELEASED = ROOT / "docs" / "schemas"
OPENAPI, EVENTS = "openapi.json", "events-v1.json"
_COMPARED = {OPENAPI: openapi_changes, EVENTS: events_changes}
# What is said about a thing breaks nobody, and would make each better word a change of the release.
_SAID = frozenset({"description", "title", "summary", "example", "examples", "default", "tags", "operationId"})
_NAMED = frozenset({"properties", "$defs", "schemas", "responses", "headers", "paths", "content", "patternProperties"})


def present() -> dict[str, Any]:
    """The documents as they are now, by the name of their file. Nothing is connected to: routes are only described."""
    wiring = MagicMock()
    wiring.settings.version = version("bulkhead")
    app = application(wiring, MagicMock(), MagicMock())
    return {OPENAPI: kept(document(app, native.NAMED_MODELS)), EVENTS: kept(SCHEMA)}


def kept(node: Any, *, named: bool = False) -> Any:
    """What of a document is compared. Below `named` keys are names that somebody chose."""
    if isinstance(node, Mapping):
        return {key: kept(value, named=not named and key in _NAMED) for key, value in node.items() if named or key not in _SAID}
    return [kept(value) for value in node] if isinstance(node, list | tuple) else node


def written(content: Any) -> bytes:
    """The one form in which a document stands in the tree: keys in order, a member a line."""
    return orjson.dumps(content, option=orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def main() -> int:
    """Exit status 0, or 1 with a line for each change that breaks a client."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--release", action="store_true", help="take the present documents as those of the last release")
    now = present()
    if parser.parse_args().release:
        RELEASED.mkdir(parents=True, exist_ok=True)
        for name, content in now.items():
            (RELEASED / name).write_bytes(written(content))
        return 0
    lines = [line for name, compare in _COMPARED.items() for line in compare(orjson.loads((RELEASED / name).read_bytes()), now[name])]
    for line in lines:
        print(line, file=sys.stderr)
    if lines:
        print(f"{len(lines)} changes break clients of the last release (docs/schemas/)", file=sys.stderr)
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
