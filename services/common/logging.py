"""Logs: structlog, one event a line, with the ids that join a line to its trace and run, and without secrets."""

import asyncio
import datetime
import logging
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, TextIO

import orjson
import structlog
from opentelemetry import trace

from services.common.rpc import context as call_context
from services.common.settings import ServiceSettings

REDACTED = "[redacted]"
_SECRET_NAMES = re.compile(r"(authorization|api[-_]?key|secret|password|private[-_]?key|cookie|^token$|[-_]token$)", re.I)
_SECRETS = re.compile(
    r"\bbh_[A-Za-z0-9_-]{16,}"  # our API keys
    r"|\bsk-[A-Za-z0-9_-]{12,}"  # provider keys
    r"|\bAIza[A-Za-z0-9_-]{20,}"
    r"|\bBearer\s+[A-Za-z0-9._~+/=-]{8,}"
    r"|\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*"  # JWTs
    r"|(?<=://)[^/\s:@]*:[^/\s@]+(?=@)",  # user:password or :password in a URL
    re.I,
)
_EMAIL = re.compile(r"\b[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}\b")
_CARD = re.compile(r"(?<![\w.-])(?:\d[ -]?){12,18}\d(?![\w.-])")
# Names and ids in hexadecimal, which are most of what is logged: none of the patterns can match. Digits alone may be a card.
_HARMLESS = re.compile(r"(?!bh_)[a-z_]*\Z|[0-9]*[a-f][0-9a-f]*\Z")
_LEVELS = {"exception": "error", "warn": "warning", "fatal": "critical"}
_PLAIN = frozenset({int, float, bool, type(None)})
Plain = int | float | bool | None
_WriteInfo = Callable[[str, Mapping[str, str], Mapping[str, Plain]], None]
_PHONE = re.compile(r"(?<![\w.:-])\+\d{1,3}[ ./-]?(?:\(\d{1,4}\)[ ./-]?)?\d(?:[ ./-]?\d){5,11}(?![\w.-])")


def redact(text: str) -> str:
    """`text` without API keys, tokens, passwords in URLs, e-mail addresses, payment cards and phone numbers."""
    if len(text) < 6 or _HARMLESS.match(text):
        return text
    text = _SECRETS.sub(REDACTED, text)
    if "@" in text:
        text = _EMAIL.sub(REDACTED, text)
    if "+" in text:
        text = _PHONE.sub(REDACTED, text)
    return _CARD.sub(lambda m: REDACTED if _luhn(m.group()) else m.group(), text)


def _luhn(text: str) -> bool:
    digits = [int(c) for c in text if c.isdigit()]
    doubled = [d * 2 - 9 if d > 4 else d * 2 for d in digits[-2::-2]]
    return sum(digits[-1::-2]) + sum(doubled) > 0 and (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


@lru_cache(maxsize=2048)
def _names_a_secret(key: Any) -> bool:
    return isinstance(key, str) and _SECRET_NAMES.search(key) is not None


def redacted(value: Any) -> Any:
    """A value of a line, or all of them, as it is written: the one place where lines lose secrets and personal data."""
    if isinstance(value, str):
        return redact(value)
    if type(value) in _PLAIN:
        return value
    if isinstance(value, Mapping):
        return {k: REDACTED if _names_a_secret(k) else v if type(v) in _PLAIN else redacted(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [redacted(v) for v in value]
    return value if isinstance(value, (int, float)) else redact(str(value))


def _json(_: Any, __: str, event: MutableMapping[str, Any]) -> str:
    return orjson.dumps(event, default=str).decode()


def _nothing() -> None:
    return None


# Names of models, tenants and outcomes come with each call: what one of them is without secrets is worked out once.
_known = lru_cache(maxsize=1024)(redact)


def _correlate(event: MutableMapping[str, Any]) -> None:
    span = trace.get_current_span().get_span_context()
    if span.is_valid:
        event["trace_id"], event["span_id"] = f"{span.trace_id:032x}", f"{span.span_id:016x}"
    context = call_context.current()
    if context is not None:
        if "request_id" not in event:
            # A client chooses it, and it may hold anything.
            event["request_id"] = redact(context.request_id)
        if context.canary:
            event["canary"] = True
        principal = context.principal
        if principal is not None:
            if "tenant" not in event:
                event["tenant"] = _known(principal.tenant)
            if principal.run_id and "run_id" not in event:
                event["run_id"] = redact(principal.run_id)


class _DailyFile:
    """A text stream into `<dir>/<name>-<date>.jsonl`, a new file each UTC day."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        self._day = ""
        self._file: TextIO | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, text: str) -> None:
        day = datetime.datetime.now(datetime.UTC).date().isoformat()
        if self._file is None or day != self._day:
            if self._file is not None:
                self._file.close()
            self._day = day
            self._file = (self._folder / f"{self._name}-{day}.jsonl").open("a", encoding="utf-8")
        self._file.write(text)

    def flush(self) -> None:
        if self._file is not None:
            self._file.flush()


class _Clock:
    """The time as in `2026-11-21T13:48:13.123456Z`; the part before the point is rendered once a second."""

    def __init__(self) -> None:
        self._second, self._rendered = -1, ""

    def __call__(self) -> str:
        second, micros = divmod(time.time_ns() // 1000, 1_000_000)
        if second != self._second:
            self._rendered = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            self._second = second
        return f"{self._rendered}.{micros:06d}Z"


class _Finish:
    """structlog processor, the last before a renderer: everything that each line gets, and the redaction.

    One function in place of five: a service writes a line a call, and that was a tenth of what a call cost.
    """

    def __init__(self, fixed: Mapping[str, str]) -> None:
        self._fixed = redacted(fixed)
        self._clock = _Clock()
        # For `EveryCall`; absent where lines are not JSON.
        self.write_info: _WriteInfo | None = None
        # Writes what waits for the end of the tick.
        self.flush: Callable[[], None] = _nothing

    def writing_to(self, stream: Any, *, wanted: bool) -> None:
        """Offers `write_info`, whose lines go out together at the end of a loop tick."""
        lines: deque[bytes] = deque()

        def flush() -> None:
            taken: list[bytes] = []
            # One by one: the watchdog logs from a thread of its own, and a line is written once by whoever takes it.
            with suppress(IndexError):
                while True:
                    taken.append(lines.popleft())
            if taken:
                stream.write(b"".join(taken).decode())
                stream.flush()

        def write(event: str, names: Mapping[str, str], values: Mapping[str, Plain]) -> None:
            fields: dict[str, Any] = dict(zip(names, map(_known, names.values()), strict=True))
            fields.update(values)
            _correlate(fields)
            fields["event"], fields["level"], fields["ts"] = event, "info", self._clock()
            fields.update(self._fixed)
            lines.append(orjson.dumps(fields, default=str, option=orjson.OPT_APPEND_NEWLINE))
            if len(lines) > 1:
                return
            try:
                asyncio.get_running_loop().call_soon(flush)
            except RuntimeError:
                flush()

        self.flush = flush
        self.write_info = write if wanted else lambda event, names, values: None

    def __call__(self, _: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event["level"] = _LEVELS.get(method, method)
        _correlate(event)
        if event.get("exc_info"):
            event = structlog.processors.format_exc_info(None, method, event)
        event = redacted(event)
        # After the redaction: neither the time nor the process's own names can hold anything to redact.
        event["ts"] = self._clock()
        event.update(self._fixed)
        return event


class EveryCall:
    """A logger of INFO events that are written for each and every call: the same line as structlog's, at a third of the cost.

    lines = EveryCall(structlog.get_logger("bulkhead.llm"))
    lines.info("llm_call", {"model": "main"}, {"tokens": 5})
    """

    def __init__(self, logger: Any) -> None:
        """`logger` is asked wherever lines are not JSON."""
        self._logger = logger
        self._write: _WriteInfo | None = None

    def info(self, event: str, names: Mapping[str, str], values: Mapping[str, Plain]) -> None:
        """Writes one line. `names` are texts that come again and again; `values` can hold nothing to redact."""
        if self._write is None:
            if not structlog.is_configured():
                self._slowly(event, names, values)
                return
            first = structlog.get_config()["processors"][0]
            self._write = getattr(first, "write_info", None) or self._slowly
        self._write(event, names, values)

    def _slowly(self, event: str, names: Mapping[str, str], values: Mapping[str, Plain]) -> None:
        self._logger.info(event, **names, **values)


_GRPC, _UNANSWERED = "grpc._cython.cygrpc", "ExecuteBatchError raised in core by servicer method"


class _Lines:
    """A structlog logger that writes whole lines, each of them at once."""

    def __init__(self, stream: Any, before: Callable[[], None]) -> None:
        """`before` writes what is older than a line."""
        self._write, self._flush, self._before = stream.write, stream.flush, before

    def msg(self, line: str) -> None:
        self._before()
        self._write(line + "\n")
        self._flush()

    debug = info = warning = warn = error = exception = critical = fatal = log = msg


def _is_of_ours(record: logging.LogRecord) -> bool:
    """Whether a line tells of more than a caller that is gone: grpc calls it an error where the answer found no connection any more."""
    return not (record.name == _GRPC and str(record.msg).startswith(_UNANSWERED))


def configure(settings: ServiceSettings) -> None:
    """Sends structlog and the standard library's loggers through one pipeline."""
    level = getattr(logging, settings.log_level)
    fixed = {"service": settings.service_name, "instance": settings.instance, "version": settings.version, "track": settings.track}
    finish = _Finish(fixed)
    daily = settings.log_sink == "jsonl_daily"
    console = settings.log_format == "console" and not daily
    renderer: Any = structlog.dev.ConsoleRenderer(colors=sys.stdout.isatty()) if console else _json
    stream: Any = _DailyFile(settings.log_dir, settings.instance) if daily else sys.stdout
    if renderer is _json:
        finish.writing_to(stream, wanted=level <= logging.INFO)
    structlog.configure(
        processors=[finish, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: _Lines(stream, finish.flush),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=[finish], processor=renderer))
    handler.addFilter(_is_of_ours)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # Libraries speak up from WARNING on: at DEBUG an HTTP client alone drowns everything else.
    root.setLevel(max(level, logging.WARNING))
