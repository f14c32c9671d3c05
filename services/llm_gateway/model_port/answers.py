"""Headers of successful answers, and what all requests share."""

import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import orjson

from services.common.errors import InvalidInput
from services.llm_gateway.model_port.exchange import Header
from services.llm_gateway.results import Notice, Outcome

PICO = 1e12


def request_model(body: dict[str, Any]) -> str:
    """The model of a request. Raises InvalidInput."""
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise InvalidInput.field("model", "you must provide a model")
    return model


def answer_headers(outcome: Outcome, began: float, notices: Sequence[Notice] = (), *, cost_known: bool = True) -> list[Header]:
    """Who answered, after how many attempts, for how much, where the time went. `began` is on `time.perf_counter()`."""
    elapsed_s = time.perf_counter() - began
    timing, usage, deployment = outcome.timing, outcome.usage, outcome.deployment
    overhead_s = max(elapsed_s - timing.queue_s - timing.reserve_s - timing.upstream_s - timing.retry_s, 0.0)
    retry = b", retry;dur=%.2f" % (timing.retry_s * 1000) if timing.retry_s else b""
    found = [
        (b"x-litellm-model-id", _named(deployment.id)),
        (b"x-litellm-model-group", _named(deployment.group)),
        (b"x-litellm-attempted-retries", b"%d" % outcome.retries),
        (b"x-litellm-attempted-fallbacks", b"%d" % outcome.fallbacks),
        (b"openai-processing-ms", b"%d" % (elapsed_s * 1000)),
        (
            b"server-timing",
            b"queue;dur=%.2f, reserve;dur=%.2f, upstream;dur=%.2f, overhead;dur=%.2f"
            % (timing.queue_s * 1000, timing.reserve_s * 1000, timing.upstream_s * 1000, overhead_s * 1000)
            + retry,
        ),
    ]
    if cost_known:
        found.append((b"x-litellm-response-cost", b"%.12g" % (usage.cost_picousd / PICO)))
    if outcome.cached:
        found.append((b"x-bulkhead-cache", outcome.cached.encode()))
    if outcome.routing:
        found.append((b"x-bulkhead-routing", latin(orjson.dumps(outcome.routing).decode())))
    for limit in outcome.limits:
        kind = limit.kind.encode()
        found.append((b"x-ratelimit-limit-" + kind, b"%d" % limit.limit))
        found.append((b"x-ratelimit-remaining-" + kind, b"%d" % limit.remaining))
        found.append((b"x-ratelimit-reset-" + kind, b"%.3gs" % limit.reset_s))
    for name, value in outcome.upstream_headers.items():
        found.append((b"llm_provider-" + name.encode("latin-1", "replace"), latin(value)))
    if notices:
        found += warning_headers(notices)
    return found


class StreamHead:
    """The headers of a stream: those of an answer, but for its cost. A stream of somebody else's call has only its time."""

    def __init__(self, began: float) -> None:
        """`began` is on `time.perf_counter()`."""
        self._began = began
        self._outcome: Outcome | None = None

    def opened(self, outcome: Outcome) -> None:
        """For `ChatCall.opened`; the first of several calls stands for them."""
        self._outcome = self._outcome or outcome

    def headers(self, notices: Sequence[Notice]) -> list[Header]:
        """As they are when the first token is here."""
        if self._outcome is not None:
            return answer_headers(self._outcome, self._began, notices, cost_known=False)
        elapsed_ms = (time.perf_counter() - self._began) * 1000
        timing = (b"server-timing", b"queue;dur=0, reserve;dur=0, upstream;dur=0, overhead;dur=%.2f" % elapsed_ms)
        return [(b"openai-processing-ms", b"%d" % elapsed_ms), timing, *warning_headers(notices)]


@lru_cache(maxsize=1024)
def _named(name: str) -> bytes:
    """A name that comes with every answer."""
    return latin(name)


def latin(value: str) -> bytes:
    """A header value: no line can be smuggled in, and no text stops an answer."""
    return value.replace("\r", " ").replace("\n", " ").encode("latin-1", "replace")


def warning_headers(notices: Sequence[Notice]) -> list[Header]:
    """The codes of what went wrong on the way, in order."""
    return [(b"x-bulkhead-warnings", ", ".join(notice.code for notice in notices).encode())] if notices else []
