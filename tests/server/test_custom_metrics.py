from __future__ import annotations

import math
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tensorfarm.server.custom_metrics import CustomMetrics
from tensorfarm.server.metrics import MetricsExposition
from tensorfarm.server.metrics_settings import MetricsSettings
from tensorfarm.server.prometheus_text import exposition
from tensorfarm.server.statistics import StatisticsBook
from tensorfarm.workers.contract.messages import Forget, Measure, OpenFamily, OpenMetric, ReadMetric
from tensorfarm.workers.contract.status import Code, StatusError


class Owner:
    """One worker's view of the metrics."""

    def __init__(self, metrics: CustomMetrics, name: str = "worker") -> None:
        self.metrics = metrics
        self.name = name

    def family(self, name: str, kind: str, description: str = "text") -> int:
        return self.metrics.open_family(self.name, OpenFamily(0, name, description, kind))

    def metric(self, family: int, labels: dict[str, str] | None = None, bounds: list[float] | None = None) -> int:
        return self.metrics.open_metric(self.name, OpenMetric(0, family, labels or {}, bounds))

    def measure(self, metric: int, verb: str, value: float) -> None:
        self.metrics.measure(self.name, Measure(metric, verb, value))

    def read(self, metric: int) -> float:
        return self.metrics.read(self.name, ReadMetric(0, metric))

    def forget(self, *families: int, metrics: tuple[int, ...] = ()) -> None:
        self.metrics.forget(self.name, Forget(list(metrics), list(families)))


class NoModels:
    def counted(self) -> list[Any]:
        return []


@pytest.fixture
def metrics() -> CustomMetrics:
    return CustomMetrics()


@pytest.fixture
def owner(metrics: CustomMetrics) -> Owner:
    return Owner(metrics)


def page(metrics: CustomMetrics) -> str:
    return exposition(metrics.families()).decode()


def refusal(operation: Any, *arguments: Any) -> tuple[Code, str]:
    with pytest.raises(StatusError) as raised:
        operation(*arguments)
    return raised.value.code, raised.value.message


def test_the_page_as_the_original_has_it(metrics: CustomMetrics, owner: Owner) -> None:
    counter = owner.family("requests", "counter", "How many\nso far")
    owner.measure(owner.metric(counter), "increment", 1)
    owner.measure(owner.metric(counter, {"z": 'y"\n', "a": "x"}), "increment", 2.5)
    owner.measure(owner.metric(owner.family("depth", "gauge", "é")), "set", -3)
    seconds = owner.metric(owner.family("seconds", "histogram"), {"a": "c"}, [0.1, 1, 2.5, 10])
    for value in (1, 1.1, 100, -5):
        owner.measure(seconds, "observe", value)
    assert page(metrics) == (
        "# HELP requests How many\\nso far\n"
        "# TYPE requests counter\n"
        "requests 1\n"
        'requests{a="x",z="y\\"\\n"} 2.5\n'
        "# HELP depth é\n"
        "# TYPE depth gauge\n"
        "depth -3\n"
        "# HELP seconds text\n"
        "# TYPE seconds histogram\n"
        'seconds_count{a="c"} 4\n'
        'seconds_sum{a="c"} 97.1\n'
        'seconds_bucket{a="c",le="0.1"} 1\n'
        'seconds_bucket{a="c",le="1"} 2\n'
        'seconds_bucket{a="c",le="2.5"} 3\n'
        'seconds_bucket{a="c",le="10"} 3\n'
        'seconds_bucket{a="c",le="+Inf"} 4\n'
    )
    assert {family.name for family in text_string_to_metric_families(page(metrics))} == {"requests", "depth", "seconds"}


def test_the_same_labels_are_the_same_series(owner: Owner) -> None:
    first, second = owner.family("m", "counter"), owner.family("m", "counter", "other text")
    one = owner.metric(first, {"a": "x", "b": "y"})
    assert owner.metric(first, {"b": "y", "a": "x"}) == one
    other = owner.metric(second, {"a": "x", "b": "y"})
    owner.measure(one, "increment", 1)
    owner.measure(other, "increment", 2)
    assert owner.read(one) == owner.read(other) == 3
    assert owner.metrics.families()[0].help_text == "text"


def test_a_family_without_series_leaves_nothing(metrics: CustomMetrics, owner: Owner) -> None:
    owner.family("m", "gauge")
    assert page(metrics) == ""


def test_processes_share_families_and_series_go_with_the_last(metrics: CustomMetrics, owner: Owner) -> None:
    other = Owner(metrics, "other")
    mine, theirs = owner.family("m", "gauge"), other.family("m", "gauge")
    owner.measure(owner.metric(mine), "set", 1)
    owner.metric(mine, {"only": "mine"})
    shared = other.metric(theirs)
    assert other.read(shared) == 1
    metrics.drop_owner("worker")
    assert page(metrics) == "# HELP m text\n# TYPE m gauge\nm 1\n"
    other.forget(theirs)
    assert page(metrics) == "" and metrics.families() == []
    # and the name is free for another kind
    owner.family("m", "counter")


def test_numbers_are_good_for_their_owner_alone(metrics: CustomMetrics, owner: Owner) -> None:
    other = Owner(metrics, "other")
    family = owner.family("m", "gauge")
    metric = owner.metric(family)
    assert refusal(other.metric, family)[0] == Code.INTERNAL
    assert refusal(other.measure, metric, "set", 1.0) == (Code.INTERNAL, "Could not set metric value. Metric has been invalidated.")
    other.forget(family, metrics=(metric,))
    owner.measure(metric, "set", 5)
    assert owner.read(metric) == 5


def test_what_is_forgotten_is_gone(owner: Owner) -> None:
    family = owner.family("m", "counter")
    metric, kept = owner.metric(family), owner.metric(family, {"a": "b"})
    owner.forget(metrics=(metric, 99))
    assert refusal(owner.read, metric) == (Code.INTERNAL, "Could not get metric value. Metric has been invalidated.")
    assert owner.read(kept) == 0
    owner.forget(family, family, 99)
    assert refusal(owner.measure, kept, "increment", 1) == (Code.INTERNAL, "Could not increment metric value. Metric has been invalidated.")
    assert refusal(owner.metric, family)[0] == Code.INTERNAL


@pytest.mark.parametrize("name", ["", "a b", "1a", "a-b", "é", "a\n"])
def test_bad_names(owner: Owner, name: str) -> None:
    assert refusal(owner.family, name, "gauge")[1] == "Invalid metric name"
    assert owner.metrics.families() == []


@pytest.mark.parametrize("label", ["", "a b", "__a", "1", "a:b"])
def test_bad_labels(owner: Owner, label: str) -> None:
    family = owner.family("m", "gauge")
    assert refusal(owner.metric, family, {label: "x"})[1] == "Invalid label name"
    assert page(owner.metrics) == ""


def test_le_is_the_histograms_own(owner: Owner) -> None:
    assert refusal(owner.metric, owner.family("h", "histogram"), {"le": "1"}, [1.0])[1] == "Invalid label name"
    owner.metric(owner.family("c", "counter"), {"le": "1"})


@pytest.mark.parametrize("bounds", [[3.0, 1.0], [1.0, 1.0], [1.0, math.nan]])
def test_bounds_rise(owner: Owner, bounds: list[float]) -> None:
    family = owner.family("h", "histogram")
    assert refusal(owner.metric, family, {}, bounds)[1] == "Bucket Boundaries must be strictly sorted"
    # also where the series is there already
    owner.metric(family, {}, [1.0])
    assert refusal(owner.metric, family, {}, bounds)[1] == "Bucket Boundaries must be strictly sorted"


def test_a_histogram_of_no_bounds(metrics: CustomMetrics, owner: Owner) -> None:
    owner.measure(owner.metric(owner.family("h", "histogram"), {}, []), "observe", 2)
    assert page(metrics).splitlines()[2:] == ["h_count 1", "h_sum 2", 'h_bucket{le="+Inf"} 1']


@pytest.mark.parametrize(
    ("kind", "verb", "value", "code", "text"),
    [
        (
            "counter",
            "increment",
            -1,
            Code.INVALID_ARG,
            "TRITONSERVER_METRIC_KIND_COUNTER can only be incremented monotonically by non-negative values.",
        ),
        ("counter", "set", 1, Code.UNSUPPORTED, "TRITONSERVER_METRIC_KIND_COUNTER does not support Set"),
        ("counter", "observe", 1, Code.UNSUPPORTED, "TRITONSERVER_METRIC_KIND_COUNTER does not support Observe"),
        ("gauge", "observe", 1, Code.UNSUPPORTED, "TRITONSERVER_METRIC_KIND_GAUGE does not support Observe"),
        ("histogram", "increment", 1, Code.UNSUPPORTED, "TRITONSERVER_METRIC_KIND_HISTOGRAM does not support Increment"),
        ("histogram", "set", 1, Code.UNSUPPORTED, "TRITONSERVER_METRIC_KIND_HISTOGRAM does not support Set"),
    ],
)
def test_what_a_kind_cannot(owner: Owner, kind: str, verb: str, value: float, code: Code, text: str) -> None:
    metric = owner.metric(owner.family("m", kind), {}, [1.0] if kind == "histogram" else None)
    assert refusal(owner.measure, metric, verb, value) == (code, text)


def test_a_histogram_has_no_value(owner: Owner) -> None:
    metric = owner.metric(owner.family("m", "histogram"), {}, [1.0])
    assert refusal(owner.read, metric) == (Code.UNSUPPORTED, "TRITONSERVER_METRIC_KIND_HISTOGRAM does not support Value")


def test_one_name_is_one_kind_also_beside_the_servers_own() -> None:
    custom = CustomMetrics(lambda: shown.kinds())
    shown = MetricsExposition(
        NoModels(), StatisticsBook(), MetricsSettings(), worker_restarts=lambda: {"cpu": 1}, sources=[custom.families]
    )
    owner = Owner(custom)
    for name in ("tensorfarm_worker_restarts_total", "nv_inference_count"):
        assert refusal(owner.family, name, "gauge")[1] == "Family name already exists with different type"
    owner.measure(owner.metric(owner.family("tensorfarm_worker_restarts_total", "counter"), {"worker": "mine"}), "increment", 2)
    owner.measure(owner.metric(owner.family("mine", "gauge")), "set", 7)
    text = shown.render().decode()
    assert text.count("# TYPE tensorfarm_worker_restarts_total counter") == 1
    assert 'tensorfarm_worker_restarts_total{worker="cpu"} 1\ntensorfarm_worker_restarts_total{worker="mine"} 2\n' in text
    assert text.endswith("# HELP mine text\n# TYPE mine gauge\nmine 7\n")
    # neither is counted twice the next time
    assert shown.render().decode() == text
