"""Counters and histograms for hot paths: the label names are fixed, the values come as positions, and nothing is hashed twice.

_calls = Counter("bulkhead.llm", "bulkhead_llm_attempts_total", ("model", "class"), description="Attempts.")
_calls.add(1, "main", "ok")

An addition costs 0.2 µs and a recorded value 0.5 µs, where the SDK takes 6 and 7 µs. The sums join the SDK's own metrics when a reader
collects. Label values must come from closed sets (models, classes): beyond MOST_SERIES everything else is counted as "other".
"""

import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence

from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    HistogramDataPoint,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.metrics.export import (
    Histogram as HistogramData,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
MOST_SERIES = 2_000
# Instruments belong to the process as OpenTelemetry's own do: modules make them when they are imported, readers ask for all of them.
_INSTRUMENTS: list["Counter | Histogram"] = []


class _Instrument:
    def __init__(self, scope: str, name: str, labels: Sequence[str], *, unit: str = "", description: str = "") -> None:
        self.scope, self.name, self.labels, self.unit, self.description = scope, name, tuple(labels), unit, description
        self.since_ns = time.time_ns()
        self._other = ("other",) * len(self.labels)

    def _attributes(self, values: tuple[str | int, ...]) -> dict[str, str | int]:
        # A label without a value is left out, as an attribute that was never set.
        return {name: value for name, value in zip(self.labels, values, strict=True) if value != ""}


class Counter(_Instrument):
    """A sum that only grows."""

    def __init__(self, scope: str, name: str, labels: Sequence[str], *, unit: str = "", description: str = "") -> None:
        """`labels` are the names whose values every `add` gives, in order."""
        super().__init__(scope, name, labels, unit=unit, description=description)
        self._sums: dict[tuple[str | int, ...], int | float] = {}
        _INSTRUMENTS.append(self)

    def add(self, amount: int | float, *values: str | int) -> None:
        """Adds to the series of these label values."""
        sums = self._sums
        if values in sums:
            sums[values] += amount
        elif len(sums) < MOST_SERIES:
            sums[values] = amount
        else:
            sums[self._other] = sums.get(self._other, 0) + amount

    def value(self, *values: str | int) -> int | float:
        """What has been added to one series."""
        return self._sums.get(values, 0)

    def metric(self, now_ns: int) -> Metric:
        """All series as the SDK's data."""
        points = [NumberDataPoint(self._attributes(key), self.since_ns, now_ns, value) for key, value in list(self._sums.items())]
        return Metric(self.name, self.description, self.unit, Sum(points, AggregationTemporality.CUMULATIVE, is_monotonic=True))


class _Series:
    __slots__ = ("counts", "total")

    def __init__(self, buckets: int) -> None:
        self.counts = [0] * buckets
        self.total = 0.0


class Histogram(_Instrument):
    """Values in buckets, by default of seconds. A value that equals a bound belongs below it."""

    def __init__(
        self, scope: str, name: str, labels: Sequence[str], *, unit: str = "s", description: str = "", bounds: Sequence[float] = SECONDS
    ) -> None:
        """`labels` are the names whose values every `record` gives, in order."""
        super().__init__(scope, name, labels, unit=unit, description=description)
        self._bounds = tuple(bounds)
        self._series: dict[tuple[str | int, ...], _Series] = {}
        _INSTRUMENTS.append(self)

    def record(self, value: float, *values: str | int) -> None:
        """Records one value."""
        series = self._series.get(values)
        if series is None:
            key = values if len(self._series) < MOST_SERIES else self._other
            series = self._series.setdefault(key, _Series(len(self._bounds) + 1))
        series.counts[bisect_left(self._bounds, value)] += 1
        series.total += value

    def count(self, *values: str | int) -> int:
        """How many values one series has."""
        series = self._series.get(values)
        return 0 if series is None else sum(series.counts)

    def metric(self, now_ns: int) -> Metric:
        """All series as the SDK's data."""
        points = []
        for key, series in list(self._series.items()):
            counts = tuple(series.counts)
            # Least and greatest are optional in OTLP and unknown to Prometheus; since the start of a process they say little.
            points.append(
                HistogramDataPoint(
                    self._attributes(key), self.since_ns, now_ns, sum(counts), series.total, counts, self._bounds, None, None  # type: ignore[arg-type]
                )
            )  # fmt: skip
        return Metric(self.name, self.description, self.unit, HistogramData(points, AggregationTemporality.CUMULATIVE))


def joined(data: MetricsData, resource: Resource) -> MetricsData:
    """What the SDK has collected together with these instruments."""
    scopes = [ScopeMetrics(InstrumentationScope(scope), metrics, "") for scope, metrics in _by_scope(time.time_ns())]
    if not scopes:
        return data
    return MetricsData([*data.resource_metrics, ResourceMetrics(resource, scopes, "")])


def _by_scope(now_ns: int) -> Iterator[tuple[str, list[Metric]]]:
    found: dict[str, list[Metric]] = {}
    for instrument in _INSTRUMENTS:
        metric = instrument.metric(now_ns)
        if metric.data.data_points:
            found.setdefault(instrument.scope, []).append(metric)
    yield from found.items()
