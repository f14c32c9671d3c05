"""What travels with a call: one context variable, read by channels, logs and servicers."""

import contextvars
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from services.common.errors import Unauthenticated
from services.common.identity import Principal


def new_request_id() -> str:
    """A request id for a call that arrived without one: unique, and no secret."""
    return f"{random.getrandbits(128):032x}"


@dataclass(frozen=True, slots=True)
class CallContext:
    """The context of one call, or of the background work of one run.

    `deadline` is in seconds of `time.monotonic()`. `token` is the internal token as it came in or was minted; outgoing
    calls pass it on. Whoever may mint and outlives a token gives `mint` instead, which is asked by each of them.
    """

    request_id: str = field(default_factory=new_request_id)
    canary: bool = False
    deadline: float | None = None
    principal: Principal | None = None
    token: str = ""
    mint: Callable[[], str] | None = None

    def outgoing_token(self) -> str:
        """The internal token of a call that is made now; empty where there is none."""
        return self.token if self.mint is None else self.mint()

    def remaining_s(self) -> float | None:
        """Seconds until the deadline (negative when past), None without one."""
        return None if self.deadline is None else self.deadline - time.monotonic()

    def with_timeout(self, timeout_s: float) -> "CallContext":
        """The same context with a deadline at most `timeout_s` from now."""
        deadline = time.monotonic() + timeout_s
        return replace(self, deadline=deadline if self.deadline is None else min(self.deadline, deadline))


_current: contextvars.ContextVar[CallContext | None] = contextvars.ContextVar("bulkhead_call", default=None)


def current() -> CallContext | None:
    """The context of the call that this task serves, if any."""
    return _current.get()


def principal() -> Principal:
    """The principal of the current call. Raises Unauthenticated outside of one."""
    context = _current.get()
    if context is None or context.principal is None:
        raise Unauthenticated("the call names no principal")
    return context.principal


@contextmanager
def bind(context: CallContext) -> Iterator[CallContext]:
    """Makes `context` the current one for this task and the tasks it starts."""
    token = _current.set(context)
    try:
        yield context
    finally:
        _current.reset(token)


def enter(context: CallContext) -> None:
    """As `bind`, for the rest of the task's life: for handlers that own their task."""
    _current.set(context)
