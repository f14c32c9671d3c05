"""One HTTP request and its answer, as the edge sees them."""

import asyncio
import re
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from opentelemetry import trace

from services.common.errors import BulkheadError
from services.gateway.edge.standing import unwatched

SCOPE_KEY = "bulkhead.exchange"
# Who has the end of such a path has what it leads to.
_LINK = re.compile(r"(?<=/links/).+", re.S)


@dataclass(slots=True)
class Exchange:
    """Facts of one request that the access log, the span and the answer's headers are made from; `replayed` where its idempotency key
    has done before what it asks for; `watch` looks after the caller's credential while an answer is open, as `Standing.watch`."""

    request_id: str
    trace_id: str
    span: trace.Span
    headers: dict[str, str]
    canary: bool = False
    tenant: str = ""
    thread_id: str = ""
    run_id: str = ""
    error: str = ""
    replayed: bool = False
    watch: Callable[[], AbstractContextManager[asyncio.Future[BulkheadError]]] = unwatched
    answer_headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    _error_id: str = ""

    @property
    def error_id(self) -> str:
        """The id that joins an opaque internal error to its log line."""
        if not self._error_id:
            self._error_id = uuid.uuid4().hex[:12]
        return self._error_id

    def about(self, *, thread_id: str = "", run_id: str = "") -> None:
        """Notes which thread and run the request is about, so that its trace and log line can be found by them."""
        if thread_id:
            self.thread_id = thread_id
            self.span.set_attribute("bulkhead.thread_id", thread_id)
        if run_id:
            self.run_id = run_id
            self.span.set_attribute("bulkhead.run_id", run_id)

    def answer(self, name: str, value: str) -> None:
        """Adds a header to the answer, whatever the answer will be. Characters beyond latin-1 are replaced."""
        self.answer_headers.append((name.encode("ascii"), value.encode("latin-1", "replace")))

    def answer_also(self, name: str, value: str) -> None:
        """Adds a member to a header that is a list; one line, since many clients read the first alone."""
        raw, member = name.encode("ascii"), value.encode("latin-1", "replace")
        for at, (known, before) in enumerate(self.answer_headers):
            if known == raw:
                self.answer_headers[at] = (raw, before + b", " + member)
                return
        self.answer_headers.append((raw, member))


def exchange(scope: Any) -> Exchange:
    """The exchange of a request or its ASGI scope."""
    return getattr(scope, "scope", scope)[SCOPE_KEY]


def shown_path(path: str) -> str:
    """A path as logs and traces may have it: without the token of a link."""
    return _LINK.sub("-", path)
