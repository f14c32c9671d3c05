"""What a new batch and each of its lines must be. Pure."""

import re
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import orjson

from services.common.errors import InvalidInput

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")
MAX_LINES = 50_000
# A request of the model port may have 10 MiB, and the line around it a little more.
MAX_LINE_BYTES = 10 * 1024 * 1024 + 64 * 1024
MAX_PROBLEMS = 100
MAX_CUSTOM_ID = 512
# Of OpenAI's API.
MAX_METADATA, MAX_METADATA_KEY, MAX_METADATA_VALUE = 16, 64, 512
KEPT_S = (3_600, 30 * 24 * 3_600)
_WINDOW = re.compile(r"([1-9]\d{0,6})([smhd])\Z")
_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


@dataclass(frozen=True, slots=True)
class Windows:
    """How long a batch may take, at least and at most."""

    shortest: timedelta = timedelta(hours=1)
    longest: timedelta = timedelta(days=7)

    def seconds(self, text: Any) -> int:
        """The seconds of a completion window such as 24h or 2d. Raises InvalidInput."""
        match = _WINDOW.match(text) if isinstance(text, str) else None
        seconds = int(match[1]) * _UNITS[match[2]] if match else 0
        if not self.shortest.total_seconds() <= seconds <= self.longest.total_seconds():
            raise InvalidInput.field("completion_window", f"must be a time such as 24h, from {self._told}")
        return seconds

    @property
    def _told(self) -> str:
        return f"{self.shortest.total_seconds() / 3600:g}h to {self.longest.total_seconds() / 86400:g}d"


@dataclass(frozen=True, slots=True)
class Wanted:
    """A new batch as its request names it."""

    endpoint: str
    input_file_id: str
    completion_window: str
    window_s: int
    metadata: Mapping[str, str] | None
    output_kept_s: int


def wanted(body: Mapping[str, Any], windows: Windows) -> Wanted:
    """Checks the request for a new batch. Raises InvalidInput that names the field."""
    endpoint, file_id, window = body.get("endpoint"), body.get("input_file_id"), body.get("completion_window")
    if endpoint not in ENDPOINTS:
        raise InvalidInput.field("endpoint", f"must be one of {', '.join(ENDPOINTS)}")
    if not isinstance(file_id, str) or not file_id:
        raise InvalidInput.field("input_file_id", "is required")
    return Wanted(str(endpoint), file_id, str(window), windows.seconds(window), metadata_of(body.get("metadata")), _kept(body))


def metadata_of(given: Any) -> Mapping[str, str] | None:
    """The caller's own labels. Raises InvalidInput."""
    if given is None:
        return None
    if not isinstance(given, Mapping) or len(given) > MAX_METADATA:
        raise InvalidInput.field("metadata", f"must be an object with at most {MAX_METADATA} entries")
    for key, value in given.items():
        if not isinstance(value, str) or len(key) > MAX_METADATA_KEY or len(value) > MAX_METADATA_VALUE:
            raise InvalidInput.field(
                "metadata", f"keys have at most {MAX_METADATA_KEY} characters and values are texts of at most {MAX_METADATA_VALUE}"
            )
    return dict(given)


def _kept(body: Mapping[str, Any]) -> int:
    given = body.get("output_expires_after")
    return 0 if given is None else kept_s(given, "output_expires_after")


def kept_s(given: Any, where: str) -> int:
    """Seconds of OpenAI's {anchor: created_at, seconds}. Raises InvalidInput."""
    if not isinstance(given, Mapping) or given.get("anchor") != "created_at":
        raise InvalidInput.field(where, "must be an object with the anchor created_at")
    seconds = given.get("seconds")
    if not isinstance(seconds, int) or isinstance(seconds, bool) or not KEPT_S[0] <= seconds <= KEPT_S[1]:
        raise InvalidInput.field(f"{where}.seconds", f"must be from {KEPT_S[0]} to {KEPT_S[1]}")
    return seconds


def problem(code: str, message: str, line: int | None = None, param: str | None = None) -> dict[str, Any]:
    """One entry of `errors.data`."""
    return {"code": code, "line": line, "message": message, "param": param}


@dataclass(slots=True)
class Scan:
    """Where the requests of an input file stand, and what is wrong with it. `model` is the one that all of them name, or empty."""

    offsets: array = field(default_factory=lambda: array("Q"))
    lengths: array = field(default_factory=lambda: array("L"))
    problems: list[dict[str, Any]] = field(default_factory=list)
    model: str = ""

    def __len__(self) -> int:
        return len(self.offsets)


def scanned(lines: Iterable[tuple[int, bytes | None]], endpoint: str, most: int = MAX_LINES) -> Scan:
    """Reads an input file, as pairs of offset and line; None stands for a line that is too long to read."""
    found, seen, models = Scan(), set[str](), set[str]()
    for number, (offset, raw) in enumerate(lines, 1):
        if raw is not None and not raw.strip():
            continue
        wrong = _too_long(number) if raw is None else _checked(raw, number, endpoint, seen, models)
        if wrong is not None:
            found.problems.append(wrong)
            if len(found.problems) == MAX_PROBLEMS:
                break
            continue
        assert raw is not None
        found.offsets.append(offset)
        found.lengths.append(len(raw))
        if len(found) > most:
            found.problems.append(problem("too_many_lines", f"a batch has at most {most} requests", number))
            break
    if not len(found) and not found.problems:
        found.problems.append(problem("empty_file", "the file holds no request", None, "input_file_id"))
    if len(models) == 1:
        found.model = models.pop()
    return found


def _too_long(number: int) -> dict[str, Any]:
    return problem("line_too_large", f"a line has at most {MAX_LINE_BYTES} bytes", number)


def _checked(raw: bytes, number: int, endpoint: str, seen: set[str], models: set[str]) -> dict[str, Any] | None:
    try:
        line = orjson.loads(raw)
    except orjson.JSONDecodeError:
        line = None
    if not isinstance(line, dict):
        return problem("invalid_json_line", "the line is no JSON object", number)
    custom_id = line.get("custom_id")
    if not isinstance(custom_id, str) or not custom_id:
        return problem("missing_required_parameter", "custom_id is required, and is a text", number, "custom_id")
    if len(custom_id) > MAX_CUSTOM_ID:
        return problem("invalid_custom_id", f"custom_id has at most {MAX_CUSTOM_ID} characters", number, "custom_id")
    if custom_id in seen:
        return problem("duplicate_custom_id", f"the custom_id {custom_id[:100]!r} is used more than once", number, "custom_id")
    if line.get("method") != "POST":
        return problem("invalid_method", "method must be POST", number, "method")
    if line.get("url") != endpoint:
        return problem("invalid_url", f"url must be the endpoint of the batch, {endpoint}", number, "url")
    body = line.get("body")
    if not isinstance(body, dict):
        return problem("missing_required_parameter", "body is required, and is an object", number, "body")
    model = body.get("model")
    if not isinstance(model, str) or not model:
        return problem("missing_required_parameter", "body.model is required", number, "body.model")
    seen.add(custom_id)
    if len(models) < 2:
        models.add(model)
    return None


def split_lines(file: Any) -> Iterator[tuple[int, bytes | None]]:
    """Offsets and lines of an open binary file; a line beyond MAX_LINE_BYTES is None."""
    offset = 0
    while raw := file.readline(MAX_LINE_BYTES + 1):
        length, whole = len(raw), raw.endswith(b"\n") or len(raw) <= MAX_LINE_BYTES
        while not whole:
            rest = file.readline(1 << 20)
            length += len(rest)
            whole = not rest or rest.endswith(b"\n")
            raw = b""
        # A byte order mark belongs to the file and not to its first request.
        mark = 3 if offset == 0 and raw.startswith(b"\xef\xbb\xbf") else 0
        yield offset + mark, raw[mark:] if raw else None
        offset += length
