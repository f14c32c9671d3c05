"""Gemini's batches of content: what a batch is, where its requests come from, and how errors stand among its results."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import orjson

from services.simulator.batches import MAX_LINES
from services.simulator.gemini_request import named
from services.simulator.refusals import Refused

_TYPE = "type.googleapis.com/google.ai.generativelanguage.v1main."
# google.rpc.Code: statuses in results are those of gRPC, not of HTTP.
_CODES: Mapping[str, int] = {
    "CANCELLED": 1, "UNKNOWN": 2, "INVALID_ARGUMENT": 3, "DEADLINE_EXCEEDED": 4, "NOT_FOUND": 5, "PERMISSION_DENIED": 7,
    "RESOURCE_EXHAUSTED": 8, "FAILED_PRECONDITION": 9, "ABORTED": 10, "UNIMPLEMENTED": 12, "INTERNAL": 13, "UNAVAILABLE": 14,
    "UNAUTHENTICATED": 16,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Entry:
    """One request of a batch; `about` is what its result repeats: its key, or the metadata of an inline one."""

    about: Mapping[str, Any]
    request: Mapping[str, Any]


@dataclass(slots=True)
class ContentBatch:
    """One batch; `key` is what its creator brought, times are epochs. `file` is the name of its input, empty for inline requests."""

    name: str
    model: str
    display_name: str
    key: str
    file: str
    entries: Sequence[Entry]
    state: str = "BATCH_STATE_PENDING"
    created_s: float = field(default_factory=time.time)
    updated_s: float = field(default_factory=time.time)
    succeeded: int = 0
    failed: int = 0
    results: list[dict[str, Any]] = field(default_factory=list)
    output: dict[str, Any] | None = None
    cancel_asked: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.state not in ("BATCH_STATE_PENDING", "BATCH_STATE_RUNNING")

    def enter(self, state: str) -> None:
        """Go on to a state."""
        self.state = f"BATCH_STATE_{state}"
        self.updated_s = time.time()

    def as_dict(self) -> dict[str, Any]:
        """Google's Operation, with the batch as its metadata."""
        pending = len(self.entries) - self.succeeded - self.failed
        stats = {"requestCount": str(len(self.entries)), "pendingRequestCount": str(pending)}
        told: dict[str, Any] = {
            "@type": _TYPE + "GenerateContentBatch",
            "model": f"models/{self.model}",
            "displayName": self.display_name,
            "createTime": _told(self.created_s),
            "updateTime": _told(self.updated_s),
            # Zeros are left out, as Google's JSON has it.
            "batchStats": {
                **stats,
                **({"successfulRequestCount": str(self.succeeded)} if self.succeeded else {}),
                **({"failedRequestCount": str(self.failed)} if self.failed else {}),
            },
            "state": self.state,
            "name": self.name,
        }
        if self.file:
            told["inputConfig"] = {"fileName": self.file}
        operation: dict[str, Any] = {"name": self.name, "metadata": told}
        if self.ended:
            told["endTime"] = _told(self.updated_s)
            operation["done"] = True
            if self.output is not None:
                told["output"] = self.output
                operation["response"] = {"@type": _TYPE + "GenerateContentBatchOutput", **self.output}
            elif self.state == "BATCH_STATE_CANCELLED":
                operation["error"] = {"code": 1, "message": "The operation was cancelled."}
        return operation


def parse_config(body: Mapping[str, Any]) -> tuple[str, str, Sequence[Mapping[str, Any]]]:
    """Display name, input file and inline requests of a new batch; raises Refused (400)."""
    batch = named(body.get("batch"), None, "batch")
    config = named(batch.get("inputConfig"), frozenset(("fileName", "requests")), "batch.input_config")
    display_name, file = batch.get("displayName"), config.get("fileName")
    if not isinstance(display_name, str) or not display_name:
        raise Refused("* BatchGenerateContentRequest.batch.display_name: display_name is required")
    if isinstance(file, str) and file:
        return display_name, file, ()
    requests = named(config.get("requests"), None, "batch.input_config.requests").get("requests")
    if not isinstance(requests, list) or not requests or len(requests) > MAX_LINES:
        raise Refused("* BatchGenerateContentRequest.batch.input_config: needs a file or requests")
    return display_name, "", requests


def inline_entries(requests: Sequence[Any]) -> Sequence[Entry]:
    """The entries of inline requests; raises Refused (400)."""
    found = []
    for index, item in enumerate(requests):
        where = f"batch.input_config.requests.requests[{index}]"
        one = named(item, frozenset(("request", "metadata")), where)
        about = {"metadata": one["metadata"]} if one.get("metadata") is not None else {}
        found.append(Entry(about, named(one.get("request"), None, f"{where}.request")))
    return found


def file_entries(content: bytes) -> Sequence[Entry]:
    """The entries of an input file; raises Refused (400), which fails the batch."""
    found = []
    for number, text in enumerate(content.splitlines(), 1):
        if not text.strip():
            continue
        try:
            line = orjson.loads(text)
        except orjson.JSONDecodeError:
            line = None
        if not isinstance(line, dict) or not isinstance(line.get("request"), dict):
            raise Refused(f"Line {number} of the file is no request.")
        found.append(Entry({"key": line["key"]} if isinstance(line.get("key"), str) else {}, line["request"]))
    if not 0 < len(found) <= MAX_LINES:
        raise Refused(f"The file must hold 1 to {MAX_LINES} requests.")
    return found


def status_of(body: bytes) -> dict[str, Any]:
    """The google.rpc.Status of an error that HTTP would have told."""
    error = orjson.loads(body)["error"]
    details = {"details": error["details"]} if "details" in error else {}
    return {"code": _CODES.get(error["status"], 2), "message": error["message"], **details}


def _told(epoch_s: float) -> str:
    return datetime.fromtimestamp(epoch_s, UTC).isoformat().replace("+00:00", "Z")
