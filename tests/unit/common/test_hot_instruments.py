"""Instruments of hot paths, as a Prometheus server and an OTLP collector see them."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.resources import Resource
from prometheus_client import generate_latest
from prometheus_client.core import REGISTRY

from services.common.telemetry import Counter, Histogram, _instruments, _setup

RESOURCE = Resource({"service.name": "test"})
_numbers = itertools.count()


@pytest.fixture
def unique():
    """A name that no other instrument of this process has."""
    return f"hot_{next(_numbers)}"


@pytest.fixture
def scraped():
    """What a scrape of this process answers."""
    reader = _setup._Prometheus(RESOURCE)
    meters = MeterProvider(resource=RESOURCE, metric_readers=[reader], shutdown_on_exit=False)
    meters.get_meter("any").create_observable_gauge("any_gauge", [lambda _: []])
    meters.get_meter("any").create_counter("any_counter").add(1)
    yield lambda: generate_latest(REGISTRY).decode()
    meters.shutdown()


def lines(text: str, start: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(start)]


def test_a_counter_is_scraped_with_its_labels(unique, scraped):
    counter = Counter("scope", f"{unique}_total", ("model", "class"), description="Things.")
    counter.add(2, "main", "ok")
    counter.add(3, "main", "ok")
    counter.add(1, "main", "")
    found = lines(scraped(), f"{unique}_total")
    assert len(found) == 2
    assert any('class="ok"' in line and 'model="main"' in line and line.endswith(" 5.0") for line in found)
    assert any('class=""' in line and line.endswith(" 1.0") for line in found)


def test_a_histogram_is_scraped_with_cumulative_buckets_and_its_unit(unique, scraped):
    histogram = Histogram("scope", unique, ("route",), bounds=(0.1, 1.0))
    for value in (0.05, 0.1, 0.5, 7.0):
        histogram.record(value, "/a")
    text = scraped()
    buckets = [float(line.rpartition(" ")[2]) for line in lines(text, f"{unique}_seconds_bucket")]
    assert buckets == [2.0, 3.0, 4.0]
    assert lines(text, f"{unique}_seconds_sum")[0].endswith(" 7.65")
    assert lines(text, f"{unique}_seconds_count")[0].endswith(" 4.0")


def test_the_sdks_own_instruments_stay_beside_them(unique, scraped):
    Counter("scope", f"{unique}_total", ()).add(1)
    text = scraped()
    assert lines(text, f"{unique}_total")
    assert lines(text, "any_counter_total")


def test_label_values_without_end_do_not_fill_the_memory(unique, monkeypatch):
    monkeypatch.setattr(_instruments, "MOST_SERIES", 3)
    counter, histogram = Counter("scope", f"{unique}_total", ("model",)), Histogram("scope", unique, ("model",))
    for number in range(10):
        counter.add(1, f"m{number}")
        histogram.record(0.1, f"m{number}")
    counter.add(1, "m0")
    assert (counter.value("m0"), counter.value("other")) == (2, 7)
    assert (histogram.count("m0"), histogram.count("other")) == (1, 7)


@given(st.lists(st.floats(0.0, 200.0), min_size=1, max_size=50))
def test_a_histogram_agrees_with_the_sdks_own(values):
    ours = Histogram("scope", f"compared_{next(_numbers)}", ())
    reader = InMemoryMetricReader()
    view = _setup.View(instrument_unit="s", instrument_name="*", aggregation=_setup.ExplicitBucketHistogramAggregation(_setup.SECONDS))
    meters = MeterProvider(metric_readers=[reader], views=[view], shutdown_on_exit=False)
    theirs = meters.get_meter("any").create_histogram("theirs", unit="s")
    for value in values:
        ours.record(value)
        theirs.record(value)
    data = reader.get_metrics_data()
    expected = data.resource_metrics[0].scope_metrics[0].metrics[0].data.data_points[0]
    found = ours.metric(1).data.data_points[0]
    assert tuple(found.bucket_counts) == tuple(expected.bucket_counts)
    assert tuple(found.explicit_bounds) == tuple(expected.explicit_bounds)
    assert found.count == expected.count
    assert found.sum == pytest.approx(expected.sum)
