"""The faults that a request can ask for, by their names.

    sim-1+first_token_delay=2000+tokens_per_s=20      a suffix of the model name
    x-sim-fault: cut_after=5; tokens_per_s=10         a header, separated by ";"
    x-sim-first-token-delay: 2000                     a header of the fault's own
    {"fault": "status=503", "times": 2}               the control endpoint; a mapping {"status": 503} works too

Where several ways name the same fault, control beats header beats model name.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from services.simulator.refusals import Refused

_MAX_DELAY_MS = 600_000


@dataclass(frozen=True, slots=True)
class Kind:
    """One fault: what its value means and, where it may be left out, what it is then. `high` bounds a number."""

    does: str
    unit: str = ""
    default: str | None = None
    number: bool = True
    low: float = 0
    high: float = 1_000_000


KINDS: Mapping[str, Kind] = {
    "first_token_delay": Kind("waits before the first token, or before the whole answer", "ms", high=_MAX_DELAY_MS),
    "tokens_per_s": Kind("sends, or makes, that many tokens a second", "tokens/s", low=0.01),
    "status": Kind("answers with that HTTP status and an error in the dialect's form", "HTTP status", low=300, high=599),
    "rate_limit": Kind(
        "answers 429 with the wait as N (the dialect's own way), seconds:N (Retry-After), date:N (Retry-After as an HTTP date), "
        "ms:N (retry-after-ms), x-ms:N (x-ms-retry-after-ms), reset:N or reset-epoch:N (x-ratelimit-reset in seconds or as an epoch), "
        "reset-requests:N (x-ratelimit-reset-requests), anthropic-reset:N (anthropic-ratelimit-requests-reset), "
        "retry-info:N (in Gemini's body), junk (a Retry-After that says nothing), none",
        "form:N", default="1", number=False,
    ),
    "unauthorized": Kind("answers as to a wrong key", default="1"),
    "forbidden": Kind("answers as to a key without the right", default="1"),
    "require_key": Kind("refuses every other key as unauthorized", "key", number=False),
    "no_prefill": Kind("refuses a request that ends with an assistant message", default="1"),
    "restart": Kind("answers anew where the request ends with an assistant message, instead of going on from it", default="1"),
    "insufficient_quota": Kind("answers 429 with the code insufficient_quota", default="1"),
    "context_length": Kind("answers 400 with the code context_length_exceeded", default="1"),
    "content_policy": Kind("answers 400 with the code content_policy_violation", default="1"),
    "redirect": Kind("answers 307 with that Location", "URL", default="/v1/elsewhere", number=False),
    "reset": Kind("resets the connection before any header", default="1"),
    "close_before_body": Kind("closes the connection before it has read the body (see below)", default="1"),
    "hang": Kind("takes the request and never answers", default="1"),
    "error_body": Kind("answers 200 with an error as the body", default="1"),
    "empty_body": Kind("answers 200 with nothing in it", default="1"),
    "html_body": Kind("answers with a page of HTML, whatever the status", default="1"),
    "wrong_content_type": Kind("labels the answer with another content type", "type", default="text/html", number=False),
    "cut_after": Kind("closes the connection after that many tokens of a stream, or in the middle of a whole body", "tokens", default="3"),
    "end_after": Kind("ends a stream in good order after that many tokens, without finish_reason and [DONE]", "tokens", default="3"),
    "stall_after": Kind("sends nothing more after that many tokens, or in the middle of a whole body, and stays", "tokens", default="3"),
    "error_event_after": Kind("sends an error event after that many tokens of a stream, then ends it", "tokens", default="0"),
    "cut_in_arguments": Kind(
        "closes the connection before, inside or after the arguments of a tool call", "place", default="inside", number=False
    ),
    "malformed_json": Kind("spoils the JSON of a whole body, or of one event after that many tokens", "tokens", default="1"),
    "malformed_tool_arguments": Kind("breaks off the JSON in the arguments of each tool call", default="1"),
    "content_filter": Kind("ends the answer after that many tokens with finish_reason content_filter", "tokens", default="3"),
    "finish_without_content": Kind("finishes without having said anything", default="1"),
    "usage_zero": Kind("tells a usage of 0", default="1"),
    "usage_with_finish": Kind("tells the usage in the event with finish_reason, asked for or not", default="1"),
    "usage_in_extra_chunk": Kind("tells the usage in an event of its own after the finish, asked for or not", default="1"),
    "reasoning_tokens": Kind("thinks that many tokens before it answers", "tokens", default="16", high=100_000),
    "show_reasoning": Kind("shows what was thought (OpenAI: reasoning_content)", default="1"),
    "cached_prefix": Kind("counts the first so many tokens as cached once it has seen them", "tokens", default="1024"),
    "missing_usage": Kind("leaves usage out", default="1"),
    "missing_done": Kind("leaves the closing [DONE] out", default="1"),
    "missing_finish": Kind("leaves finish_reason out; [DONE] is sent", default="1"),
    "empty_choices": Kind("answers without choices", default="1"),
    "duplicate_chunk": Kind("sends the event with that token twice", "token", default="1", low=1),
    "keepalive": Kind("puts an SSE comment before each event", default="1"),
    "role_chunks": Kind("sends that many events that hold no content before the first that does", "events", default="3", high=1_000),
    "unknown_event": Kind("puts an event of an unknown kind after that many tokens", "tokens", default="1"),
    "invalid_utf8": Kind("puts bytes that are no UTF-8 after that many tokens, or at the end of a whole body", "tokens", default="1"),
    "nul_bytes": Kind("puts NUL bytes after that many tokens, or at the end of a whole body", "tokens", default="1"),
    "bom": Kind("begins the body with a byte order mark", default="1"),
    "gzip": Kind("compresses the body, asked for or not", default="1"),
    "trickle": Kind("sends that many bytes at a time", "bytes", default="1", low=1),
    "slow_headers": Kind("stops that long in the middle of the headers", "ms", default="1000", high=_MAX_DELAY_MS),
    "delay_after_headers": Kind("waits between the headers and the body", "ms", default="1000", high=_MAX_DELAY_MS),
    "bad_chunked": Kind("breaks the chunked transfer encoding in the middle", default="1"),
    "content_length": Kind("tells a content-length that is so much too long, or too short", "bytes", default="10", low=-1_000_000),
    "batch_delay": Kind("lets a batch wait so long before its first line", "ms", default="1000", high=_MAX_DELAY_MS),
    "batch_line_delay": Kind("lets a batch wait so long after each line", "ms", default="100", high=_MAX_DELAY_MS),
    "batch_expires_after": Kind("lets a batch expire after so many lines", "lines", default="1"),
    "huge_event": Kind("pads one event of a stream to that size", "bytes", default="262144", high=32_000_000),
    "crlf": Kind("ends the lines of a stream with CRLF", default="1"),
}  # fmt: skip
"""Every fault by name. `docs/simulator.md` is checked against it."""

ALIASES: Mapping[str, str] = {"stall": "stall_after", "cut": "cut_after", "delay": "first_token_delay", "connection_reset": "reset"}

_STATUS = re.compile(r"[345]\d\d")
_RATE_LIMIT = re.compile(
    r"none|junk|(?:(?:seconds|date|ms|x-ms|reset|reset-epoch|reset-requests|anthropic-reset|retry-info):)?\d{1,7}(?:\.\d{1,3})?"
)
_PLACES = ("before", "inside", "after")
_SEPARATOR = re.compile(r"\s*[;,]\s*")

Faults = Mapping[str, float | str]
"""Checked faults: numbers as float, the rest as text."""

NO_FAULTS: Faults = {}


def split_model(model: str) -> tuple[str, Faults]:
    """The model's own name and the faults in its suffix; raises Refused (400) where the suffix names no fault."""
    if "+" not in model:
        return model, NO_FAULTS
    base, *named = model.split("+")
    return base, parse_list(named, "model")


def parse_text(text: str, where: str) -> Faults:
    """Faults written as `name=value; name`; raises Refused (400)."""
    return parse_list(_SEPARATOR.split(text.strip()), where)


def parse_list(items: Iterable[str], where: str) -> Faults:
    """Faults written one an item as `name=value`; raises Refused (400)."""
    faults: dict[str, float | str] = {}
    for item in items:
        name, equals, value = item.partition("=")
        if item:
            key, checked = parse_one(name.strip(), value.strip() if equals else None, where)
            faults[key] = checked
    return faults


def parse_mapping(named: Mapping[str, Any], where: str) -> Faults:
    """Faults as a JSON object, `true` or null standing for a fault without a value; raises Refused (400)."""
    faults: dict[str, float | str] = {}
    for name, value in named.items():
        key, checked = parse_one(str(name), None if value is None or value is True else str(value), where)
        faults[key] = checked
    return faults


def parse_one(name: str, value: str | None, where: str) -> tuple[str, float | str]:
    """One fault, checked. A typing error must not leave a test without its fault, so an unknown name is refused."""
    name = name.lower().replace("-", "_")
    if _STATUS.fullmatch(name) and value is None:
        name, value = "status", name
    name = ALIASES.get(name, name)
    kind = KINDS.get(name)
    if kind is None:
        raise Refused(f"Unknown fault '{name}' in {where}. Known: {', '.join(KINDS)}.", code="unknown_fault", param=where)
    if value is None or value == "":
        value = kind.default
    if value is None:
        raise Refused(f"The fault '{name}' in {where} needs a value: {name}=<{kind.unit}>.", code="invalid_fault", param=where)
    if not kind.number:
        if name == "rate_limit" and not _RATE_LIMIT.fullmatch(value):
            raise Refused(f"'{value}' is no form of rate_limit: {kind.does}.", code="invalid_fault", param=where)
        if name == "cut_in_arguments" and value not in _PLACES:
            raise Refused(f"The fault '{name}' in {where} is one of: {', '.join(_PLACES)}.", code="invalid_fault", param=where)
        if not value.isascii() or not value.isprintable() or len(value) > 500:
            raise Refused(
                f"The value of the fault '{name}' must be up to 500 printable ASCII characters.", code="invalid_fault", param=where
            )
        return name, value
    try:
        number = float(value)
    except ValueError:
        raise Refused(f"The fault '{name}' in {where} needs a number, got '{value}'.", code="invalid_fault", param=where) from None
    if not kind.low <= number <= kind.high:
        raise Refused(f"The fault '{name}' in {where} needs {kind.low:g} to {kind.high:g}, got {value}.", code="invalid_fault", param=where)
    return name, number


def count(faults: Faults, name: str) -> int | None:
    """The fault's value as a whole number, None where it was not asked for."""
    value = faults.get(name)
    return int(value) if isinstance(value, float) else None
