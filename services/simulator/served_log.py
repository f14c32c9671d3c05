"""What was served and billed, one line a request, for reconciliation with what the platform believes.

Lines are plain JSON objects of the simulator's own making and are never changed once written.
"""

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from services.simulator import prices
from services.simulator.faults import Faults
from services.simulator.prices import Model

KEPT_LINES = 20_000
LOGGED_HEADERS = frozenset(
    (
        "x-canary",
        "traceparent",
        "tracestate",
        "baggage",
        "x-request-id",
        "idempotency-key",
        "x-bulkhead-run-id",
        "x-stainless-retry-count",
        "user-agent",
    )
)
"""The request headers a line repeats. Never one that holds a key."""


@dataclass(slots=True)
class Visit:
    """A request while it is being served; becomes one line of the log. Monotonic times are the machine's, in seconds."""

    id: str
    endpoint: str
    headers: Mapping[str, str]
    received_unix_s: float
    received_monotonic_s: float
    requested_model: str = ""
    model: Model | None = None
    stream: bool = False
    asked: str = ""
    faults: Faults = field(default_factory=dict)
    scenario: str | None = None
    status: int = 0
    error_code: str | None = None
    finish_reason: str | None = None
    tool_calls: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    batch_id: str | None = None
    billed: bool = False
    usage_sent: bool = False
    aborted: bool = False
    first_byte_monotonic_s: float | None = None
    aborted_monotonic_s: float | None = None

    def note_abort(self) -> None:
        """The client has gone away before its answer was complete."""
        if not self.aborted:
            self.aborted = True
            self.aborted_monotonic_s = time.monotonic()

    def as_dict(self) -> dict[str, Any]:
        """The line, but for what only the end of the request knows."""
        billed = self.billed and self.model is not None
        # Thinking comes first: what was generated before an early end is reasoning as far as there is any.
        reasoning_tokens = min(self.reasoning_tokens, self.completion_tokens)
        cost_nanousd = 0
        if self.billed and self.model is not None:
            cost_nanousd = prices.bill_nanousd(
                self.model,
                self.prompt_tokens,
                self.completion_tokens,
                cached_tokens=self.cached_tokens,
                cache_write_tokens=self.cache_write_tokens,
                reasoning_tokens=reasoning_tokens,
                batch=self.batch_id is not None,
            )
        return {
            "id": self.id,
            "endpoint": self.endpoint,
            "requested_model": self.requested_model,
            "model": self.model.name if self.model else None,
            "stream": self.stream,
            "status": self.status,
            "error_code": self.error_code,
            "faults": {name: "***" if name == "require_key" else value for name, value in self.faults.items()} if self.faults else {},
            "scenario": self.scenario,
            "finish_reason": self.finish_reason,
            "tool_calls": self.tool_calls,
            "prompt_tokens": self.prompt_tokens if billed else 0,
            "cached_tokens": self.cached_tokens if billed else 0,
            "cache_write_tokens": self.cache_write_tokens if billed else 0,
            "completion_tokens": self.completion_tokens if billed else 0,
            "reasoning_tokens": reasoning_tokens if billed else 0,
            "batch_id": self.batch_id,
            "billed_nanousd": cost_nanousd,
            "usage_sent": self.usage_sent,
            "aborted": self.aborted,
            "aborted_monotonic_s": self.aborted_monotonic_s,
            "received_unix_s": self.received_unix_s,
            "received_monotonic_s": self.received_monotonic_s,
            "first_byte_monotonic_s": self.first_byte_monotonic_s,
            "headers": self.headers,
            "asked": self.asked[:200],
        }


_COUNTED = ("requests", "aborted", "errors", "prompt_tokens", "completion_tokens", "billed_nanousd")


@dataclass(slots=True)
class ServedLog:
    """The last 20,000 lines in memory and, with a file, all of them there. `seq` counts from 1 and is never used twice.

    `totals` count since the last `clear`, `lifetime` since the start.
    """

    file: BinaryIO | None = None
    # Serialised: 20,000 nested dicts would take 50 MB, and time in each of the collector's rounds.
    _lines: deque[bytes] = field(default_factory=lambda: deque(maxlen=KEPT_LINES))
    _open: dict[str, Visit] = field(default_factory=dict)
    _seq: int = 0
    _forgotten: int = 0  # lines up to this one were cleared, not dropped
    totals: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_COUNTED, 0))
    lifetime: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_COUNTED, 0))

    @classmethod
    def to_file(cls, path: Path | None) -> "ServedLog":
        """A log that also appends to `path`; raises OSError where it cannot be written."""
        if path is None:
            return cls()
        path.parent.mkdir(parents=True, exist_ok=True)
        return cls(path.open("ab"))

    def begin(self, visit: Visit) -> None:
        """A request has come in."""
        self._open[visit.id] = visit

    def end(self, visit: Visit) -> None:
        """The request is over, in whatever way: write its line."""
        self._open.pop(visit.id, None)
        self._seq += 1
        line = {"seq": self._seq, **visit.as_dict(), "ended_monotonic_s": time.monotonic()}
        # The copy matters: what orjson returns keeps its 8 KiB buffer for as long as it lives (orjson 3.13, measured).
        serialised = orjson.dumps(line) + b"\n"
        self._lines.append(serialised)
        for counts in (self.totals, self.lifetime):
            counts["requests"] += 1
            counts["aborted"] += visit.aborted
            counts["errors"] += visit.status >= 400
            counts["prompt_tokens"] += line["prompt_tokens"]
            counts["completion_tokens"] += line["completion_tokens"]
            counts["billed_nanousd"] += line["billed_nanousd"]
        if self.file is not None:
            self.file.write(serialised)
            self.file.flush()

    def page(self, after: int, limit: int, run: str = "") -> bytes:
        """JSON of the lines with a `seq` beyond `after`, oldest first; `dropped` of them are no longer in memory.

        With `run` only lines that hold that text, in a header or anywhere else.
        """
        first = self._seq - len(self._lines) + 1
        start = max(after - first + 1, 0)
        if run:
            # As it stands in a JSON string.
            wanted = orjson.dumps(run)[1:-1]
            found = (line for line in islice(self._lines, start, None) if wanted in line)
            lines = list(islice(found, limit))
        else:
            lines = list(islice(self._lines, start, start + limit))
        rest = {
            "last_seq": orjson.loads(lines[-1])["seq"] if run and lines else first + start + len(lines) - 1 if lines else max(after, 0),
            "dropped": max(first - 1 - max(after, self._forgotten), 0),
            "totals": self.totals,
        }
        return b'{"lines":[' + b",".join(lines) + b"]," + orjson.dumps(rest)[1:]

    def in_flight(self) -> list[dict[str, Any]]:
        """The requests that are being served now, with the tokens they have had so far."""
        return [visit.as_dict() for visit in self._open.values()]

    def clear(self) -> int:
        """Forget the lines in memory and the totals (the file keeps its lines); returns how many there were."""
        count = len(self._lines)
        self._lines.clear()
        self._forgotten = self._seq
        self.totals = dict.fromkeys(_COUNTED, 0)
        return count

    def close(self) -> None:
        """Close the file."""
        if self.file is not None:
            self.file.close()
