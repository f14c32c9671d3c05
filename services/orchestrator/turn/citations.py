"""Citations of an answer: ids are issued per turn, so that a model cannot invent a source."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

_MARK = re.compile(r"\[([cd]\d{1,4})\]")


def resolve(text: str, issued: Mapping[str, Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], list[str]]:
    """The sources that `text` cites, in order of appearance, and the ids that were never issued."""
    found, unknown = {}, {}
    for mark in _MARK.findall(text):
        if mark in issued:
            found[mark] = issued[mark]
        else:
            unknown[mark] = True
    return list(found.values()), list(unknown)


def issue(issued: dict[str, Any], citations: Sequence[Mapping[str, Any]], output: bytes) -> bytes:
    """Adds the citations of a tool's result to those issued; answers the output, with ids renamed that were taken already."""
    renamed: dict[str, str] = {}
    for citation in citations:
        name = citation["citation_id"]
        taken = issued.get(name)
        if taken is not None and {**taken, "citation_id": ""} != {**citation, "citation_id": ""}:
            number = 1
            while f"d{number}" in issued:
                number += 1
            renamed[name] = name = f"d{number}"
        issued[name] = {**citation, "citation_id": name}
    if not renamed:
        return output
    content = orjson.loads(output)
    for passage in content.get("passages", []) if isinstance(content, dict) else []:
        passage["citation"] = renamed.get(passage.get("citation"), passage.get("citation"))
    return orjson.dumps(content)
