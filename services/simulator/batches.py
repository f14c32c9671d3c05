"""OpenAI's Batch API: what a batch is, how its file is checked, and its way through the states."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from services.simulator.refusals import Refused
from services.simulator.stored_files import StoredFile

ENDPOINTS = ("/v1/chat/completions", "/v1/embeddings")
MAX_LINES = 50_000
MAX_BATCHES = 1_000
_WINDOW_S = 24 * 3_600
_ENDED = frozenset(("completed", "failed", "expired", "cancelled"))


@dataclass(frozen=True, slots=True)
class Line:
    """One request of a batch."""

    custom_id: str
    body: Mapping[str, Any]


@dataclass(slots=True)
class Batch:
    """One batch. `times_s` are epochs by the name of the state they belong to; `key` is what its creator brought."""

    id: str
    endpoint: str
    input_file_id: str
    metadata: Mapping[str, str] | None
    key: str
    status: str = "validating"
    times_s: dict[str, int] = field(default_factory=dict)
    errors: Sequence[Mapping[str, Any]] = ()
    total: int = 0
    completed: int = 0
    failed: int = 0
    output_file_id: str | None = None
    error_file_id: str | None = None
    cancel_asked: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.times_s["created"] = int(time.time())

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.status in _ENDED

    def cancel(self) -> None:
        """Ask it to end before its next line."""
        self.enter("cancelling")
        self.cancel_asked.set()

    def enter(self, status: str) -> None:
        """Go on to a state."""
        self.status = status
        self.times_s[status] = int(time.time())

    def as_dict(self) -> dict[str, Any]:
        """OpenAI's batch object."""
        times = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": self.endpoint,
            "errors": {"object": "list", "data": list(self.errors)} if self.errors else None,
            "input_file_id": self.input_file_id,
            "completion_window": "24h",
            "status": self.status,
            "output_file_id": self.output_file_id,
            "error_file_id": self.error_file_id,
            "created_at": self.times_s["created"],
            "expires_at": self.times_s["created"] + _WINDOW_S,
            **{f"{name}_at": self.times_s.get(name) for name in times},
            "request_counts": {"total": self.total, "completed": self.completed, "failed": self.failed},
            "metadata": self.metadata,
        }


def parse_batch(body: Mapping[str, Any], batch_id: str, key: str, endpoints: Sequence[str] = ENDPOINTS) -> Batch:
    """Check the request for a new batch; raises Refused (400)."""
    endpoint = body.get("endpoint")
    if endpoint not in endpoints:
        raise Refused(f"Invalid value for 'endpoint': expected one of {', '.join(endpoints)}.", param="endpoint", code="invalid_value")
    if body.get("completion_window") != "24h":
        raise Refused("Invalid value for 'completion_window': expected 24h.", param="completion_window", code="invalid_value")
    file_id = body.get("input_file_id")
    if not isinstance(file_id, str):
        raise Refused("Missing required parameter: 'input_file_id'.", param="input_file_id", code="missing_required_parameter")
    metadata = body.get("metadata")
    if metadata is not None and not (isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())):
        raise Refused("'metadata' must be an object of strings.", param="metadata")
    return Batch(batch_id, str(endpoint), file_id, metadata, key)


def read_lines(source: StoredFile, endpoint: str) -> tuple[list[Line], list[dict[str, Any]]]:
    """The requests of a file, and what is wrong with it: a batch with any such line fails as a whole."""
    lines: list[Line] = []
    problems: list[dict[str, Any]] = []
    seen: set[str] = set()
    for number, text in enumerate(source.content.splitlines(), 1):
        if not text.strip():
            continue
        code, message, param = "", "", None
        try:
            parsed = orjson.loads(text)
        except orjson.JSONDecodeError:
            parsed = None
        custom_id = parsed.get("custom_id") if isinstance(parsed, dict) else None
        if not isinstance(parsed, dict):
            code, message = "invalid_json_line", "This line is not parseable as valid JSON."
        elif not isinstance(custom_id, str) or not custom_id:
            code, message, param = "missing_required_parameter", "Missing required parameter: 'custom_id'.", "custom_id"
        elif custom_id in seen:
            code, message, param = "duplicate_custom_id", f"The custom_id '{custom_id}' is used twice.", "custom_id"
        elif parsed.get("method") != "POST":
            code, message, param = "invalid_method", "The method of a request must be POST.", "method"
        elif parsed.get("url") != endpoint:
            code, message, param = "mismatched_url", "The URL of a request must be the batch's endpoint.", "url"
        elif not isinstance(parsed.get("body"), dict):
            code, message, param = "missing_required_parameter", "Missing required parameter: 'body'.", "body"
        if code:
            problems.append({"code": code, "message": message, "param": param, "line": number})
        else:
            seen.add(str(custom_id))
            lines.append(Line(str(custom_id), parsed["body"]))
    if not lines and not problems:
        problems.append({"code": "empty_file", "message": "The file holds no request.", "param": "input_file_id", "line": None})
    if len(lines) > MAX_LINES:
        problems.append({"code": "too_many_lines", "message": f"At most {MAX_LINES} requests.", "param": None, "line": None})
    return lines, problems[:100]


def result_line(line: Line, request_id: str, status: int, body: Any) -> bytes:
    """One line of the output or of the error file."""
    response = {"status_code": status, "request_id": request_id, "body": body}
    return orjson.dumps({"id": f"batch_req_{request_id}", "custom_id": line.custom_id, "response": response, "error": None})
