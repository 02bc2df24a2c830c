from __future__ import annotations

import gc
import math
from typing import Any

import numpy as np
import pytest

from tensorfarm.workers.contract.messages import Forget, Measure, OpenFamily, OpenMetric, ReadMetric
from tensorfarm.workers.contract.status import internal
from tensorfarm.workers.python.errors import TritonModelException
from tensorfarm.workers.python.metrics import MetricFamily, MetricKind

from .fake_host import FakeHost

FROM = "Failed to process the request for model 'm_0_0', message: "
DELETED = (
    "Invalid metric operation as the corresponding 'MetricFamily' has been deleted. "
    "The 'MetricFamily' object should be deleted AFTER its corresponding 'Metric' objects have been deleted."
)


@pytest.fixture
def families(fake_host: FakeHost) -> dict[str, MetricFamily]:
    """One of each kind."""
    return {kind.name: MetricFamily(f"m_{kind.name.lower()}", "text", kind) for kind in MetricKind}


def test_families_and_metrics_are_asked_for(fake_host: FakeHost) -> None:
    family = MetricFamily(name="seconds", description="How long", kind=MetricFamily.HISTOGRAM)
    metric = family.Metric(labels={"b": "2", 1: None}, buckets=[0.1, 1, np.float32(2)])
    assert fake_host.asked == [
        OpenFamily(0, "seconds", "How long", "histogram"),
        OpenMetric(0, 1, {"b": "2", "1": "None"}, [0.1, 1.0, 2.0]),
    ]
    metric.observe(3)
    assert fake_host.told == [Measure(2, "observe", 3.0)]


def test_measures(fake_host: FakeHost, families: dict[str, MetricFamily]) -> None:
    counter, gauge = families["COUNTER"].Metric(), families["GAUGE"].Metric(labels={})
    counter.increment(2.5)
    counter.increment(True)
    counter.increment(math.inf)
    gauge.increment(-1.5)
    gauge.set(np.float64(4))
    assert fake_host.told == [
        Measure(4, "increment", 2.5),
        Measure(4, "increment", 1.0),
        Measure(4, "increment", math.inf),
        Measure(5, "increment", -1.5),
        Measure(5, "set", 4.0),
    ]
    fake_host.replies[ReadMetric] = 7
    assert counter.value() == 7.0 and isinstance(counter.value(), float)
    assert fake_host.asked[-1] == ReadMetric(0, 4)


@pytest.mark.parametrize(
    ("kind", "operation", "text"),
    [
        (
            "COUNTER",
            lambda m: m.increment(-1),
            f"Failed to increment metric value: {FROM}TRITONSERVER_METRIC_KIND_COUNTER can only be incremented monotonically by non-negative values.",
        ),
        ("COUNTER", lambda m: m.set(1), f"Failed to set metric value: {FROM}TRITONSERVER_METRIC_KIND_COUNTER does not support Set"),
        (
            "COUNTER",
            lambda m: m.observe(1),
            f"Failed to observe metric value: {FROM}TRITONSERVER_METRIC_KIND_COUNTER does not support Observe",
        ),
        ("GAUGE", lambda m: m.observe(1), f"Failed to observe metric value: {FROM}TRITONSERVER_METRIC_KIND_GAUGE does not support Observe"),
        ("HISTOGRAM", lambda m: m.value(), f"Failed to get metric value: {FROM}TRITONSERVER_METRIC_KIND_HISTOGRAM does not support Value"),
        (
            "HISTOGRAM",
            lambda m: m.increment(1),
            f"Failed to increment metric value: {FROM}TRITONSERVER_METRIC_KIND_HISTOGRAM does not support Increment",
        ),
        ("HISTOGRAM", lambda m: m.set(1), f"Failed to set metric value: {FROM}TRITONSERVER_METRIC_KIND_HISTOGRAM does not support Set"),
    ],
)
def test_what_a_kind_cannot(fake_host: FakeHost, families: dict[str, MetricFamily], kind: str, operation: Any, text: str) -> None:
    metric = families[kind].Metric(buckets=[1.0] if kind == "HISTOGRAM" else None)
    with pytest.raises(TritonModelException) as raised:
        operation(metric)
    assert str(raised.value) == text and fake_host.told == []


@pytest.mark.parametrize(
    ("kind", "given", "text"),
    [
        ("COUNTER", {"labels": "x"}, "Labels must be a dictionary."),
        ("COUNTER", {"labels": [("a", "b")]}, "Labels must be a dictionary."),
        ("COUNTER", {"buckets": (1,)}, "Buckets must be a list."),
        ("GAUGE", {"buckets": [1]}, "Unexpected buckets found."),
        ("HISTOGRAM", {"labels": {"a": "b"}}, "Missing required buckets."),
        ("HISTOGRAM", {"buckets": (1, 2)}, "Buckets must be a list."),
    ],
)
def test_what_a_metric_cannot_be_made_of(families: dict[str, MetricFamily], kind: str, given: dict[str, Any], text: str) -> None:
    with pytest.raises(TritonModelException) as raised:
        families[kind].Metric(**given)
    assert str(raised.value) == f"Failed to create metric. {text}"


def test_what_the_server_refuses(fake_host: FakeHost, families: dict[str, MetricFamily]) -> None:
    metric = families["GAUGE"].Metric()
    fake_host.replies = {kind: internal("no") for kind in (OpenFamily, OpenMetric, ReadMetric)}
    for operation, text in (
        (lambda: MetricFamily("x", "", MetricKind.GAUGE), "Error when creating MetricFamily"),
        (lambda: families["GAUGE"].Metric(), "Error when creating Metric"),
        (metric.value, "Failed to get metric value"),
    ):
        with pytest.raises(TritonModelException) as raised:
            operation()
        assert str(raised.value) == f"{text}: {FROM}no"


@pytest.mark.parametrize("arguments", [("m", "d", 1), ("m", 5, MetricKind.GAUGE), (5, "d", MetricKind.GAUGE)])
def test_other_types(fake_host: FakeHost, arguments: tuple[Any, ...]) -> None:
    with pytest.raises(TypeError, match="incompatible"):
        MetricFamily(*arguments)
    assert fake_host.asked == []


@pytest.mark.parametrize("value", ["1", None, b"1"])
def test_values_are_numbers(families: dict[str, MetricFamily], value: Any) -> None:
    with pytest.raises(TypeError, match="incompatible"):
        families["COUNTER"].Metric().increment(value)
    with pytest.raises(TypeError, match="incompatible"):
        families["HISTOGRAM"].Metric(buckets=[value])


def test_metrics_end_with_their_family(fake_host: FakeHost) -> None:
    family = MetricFamily("m", "", MetricKind.GAUGE)
    counter = MetricFamily("c", "", MetricKind.COUNTER)
    metric, other = family.Metric(), counter.Metric()
    del family, counter
    gc.collect()
    assert fake_host.told == [Forget([], [1]), Forget([], [2])]
    for operation, text in (
        (lambda: metric.increment(1), "Failed to increment metric value"),
        (lambda: other.increment(-1), "Failed to increment metric value"),
        (lambda: metric.set(1), "Failed to set metric value"),
        (lambda: metric.observe(1), "Failed to observe metric value"),
        (lambda: metric.value(), "Failed to get metric value"),
    ):
        with pytest.raises(TritonModelException) as raised:
            operation()
        assert str(raised.value) == f"{text}: {DELETED}"


def test_a_metric_that_is_dropped_keeps_its_series(fake_host: FakeHost, families: dict[str, MetricFamily]) -> None:
    families["GAUGE"].Metric().set(1)
    gc.collect()
    assert fake_host.told == [Measure(4, "set", 1.0)]
