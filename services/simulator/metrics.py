"""Metrics, read from the totals when they are scraped: counting costs a request nothing."""

from collections.abc import Callable, Iterable

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Observation

from services.simulator.served_log import ServedLog

_MEASURED = (
    ("requests", "Requests served, refused ones too."),
    ("aborted", "Requests whose client left early."),
    ("errors", "Answers with a status of 400 or more."),
    ("prompt_tokens", "Tokens that were billed as input."),
    ("completion_tokens", "Tokens that were billed as output."),
    ("billed_nanousd", "What was billed, in nano-USD."),
)


def observe(served: ServedLog) -> None:
    """Export the log's running totals as `bulkhead.simulator.*` counters."""
    meter = metrics.get_meter("bulkhead.simulator")
    for name, description in _MEASURED:
        meter.create_observable_counter(f"bulkhead.simulator.{name}", [_reader(served, name)], description=description)


def _reader(served: ServedLog, name: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
    return lambda _: [Observation(served.lifetime[name])]
