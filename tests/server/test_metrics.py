from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tensorfarm.server.admission import Admission, AdmissionLimits, Overloaded
from tensorfarm.server.host_cpu import HostCpu
from tensorfarm.server.metrics import MetricsExposition
from tensorfarm.server.metrics_settings import MetricsSettings
from tensorfarm.server.prometheus_text import Family
from tensorfarm.server.statistics import FailureReason, StatisticsBook, VersionStatistics

# HELP and TYPE lines of the reference server, in its order; the model load time is of a later release, the last ones are ours.
HEADS = """\
nv_inference_request_success Number of successful inference requests, all batch sizes
nv_inference_request_success counter
nv_inference_request_failure Number of failed inference requests, all batch sizes
nv_inference_request_failure counter
nv_inference_count Number of inferences performed (does not include cached requests)
nv_inference_count counter
nv_inference_exec_count Number of model executions performed (does not include cached requests)
nv_inference_exec_count counter
nv_inference_request_duration_us Cumulative inference request duration in microseconds (includes cached requests)
nv_inference_request_duration_us counter
nv_inference_queue_duration_us Cumulative inference queuing duration in microseconds (includes cached requests)
nv_inference_queue_duration_us counter
nv_inference_compute_input_duration_us Cumulative compute input duration in microseconds (does not include cached requests)
nv_inference_compute_input_duration_us counter
nv_inference_compute_infer_duration_us Cumulative compute inference duration in microseconds (does not include cached requests)
nv_inference_compute_infer_duration_us counter
nv_inference_compute_output_duration_us Cumulative inference compute output duration in microseconds (does not include cached requests)
nv_inference_compute_output_duration_us counter
nv_inference_pending_request_count Instantaneous number of pending requests awaiting execution per-model.
nv_inference_pending_request_count gauge
nv_model_load_duration_secs Model load time in seconds
nv_model_load_duration_secs gauge
nv_pinned_memory_pool_total_bytes Pinned memory pool total memory size, in bytes
nv_pinned_memory_pool_total_bytes gauge
nv_pinned_memory_pool_used_bytes Pinned memory pool used memory size, in bytes
nv_pinned_memory_pool_used_bytes gauge
nv_cpu_utilization CPU utilization rate [0.0 - 1.0]
nv_cpu_utilization gauge
nv_cpu_memory_total_bytes CPU total memory (RAM), in bytes
nv_cpu_memory_total_bytes gauge
nv_cpu_memory_used_bytes CPU used memory (RAM), in bytes
nv_cpu_memory_used_bytes gauge
tensorfarm_instance_busy_seconds_total Time that instances spent on batches, added up; \
its rate over tensorfarm_instances is the share of them that is busy [0.0 - 1.0]
tensorfarm_instance_busy_seconds_total counter
tensorfarm_instances Model instances that can take batches
tensorfarm_instances gauge
tensorfarm_requests_in_flight Requests that wait or run
tensorfarm_requests_in_flight gauge
tensorfarm_worker_restarts_total Times a worker process was started again after it had died
tensorfarm_worker_restarts_total counter
tensorfarm_arena_used_bytes Bytes of an arena's shared memory in use
tensorfarm_arena_used_bytes gauge
"""

SUMMARY_HEADS = """\
nv_inference_request_summary_us Summary of inference request duration in microseconds (includes cached requests)
nv_inference_request_summary_us summary
nv_inference_queue_summary_us Summary of inference queuing duration in microseconds (includes cached requests)
nv_inference_queue_summary_us summary
nv_inference_compute_input_summary_us Cumulative compute input duration in microseconds (does not include cached requests)
nv_inference_compute_input_summary_us summary
nv_inference_compute_infer_summary_us Cumulative compute inference duration in microseconds (does not include cached requests)
nv_inference_compute_infer_summary_us summary
nv_inference_compute_output_summary_us Cumulative inference compute output duration in microseconds (does not include cached requests)
nv_inference_compute_output_summary_us summary
"""

CACHE_HEADS = """\
nv_cache_num_hits_per_model Number of cache hits per model
nv_cache_num_hits_per_model counter
nv_cache_hit_duration_per_model Total cache hit duration per model, in microseconds
nv_cache_hit_duration_per_model counter
nv_cache_num_misses_per_model Number of cache misses per model
nv_cache_num_misses_per_model counter
nv_cache_miss_duration_per_model Total cache miss (insert+lookup) duration per model, in microseconds
nv_cache_miss_duration_per_model counter
"""

MIB = 1 << 20


@dataclass
class Version:
    statistics: VersionStatistics
    in_flight: int = 0
    instance_count: int = 0


@dataclass
class Service:
    loaded: list[Version] = field(default_factory=list)

    def counted(self) -> list[Version]:
        return self.loaded


@dataclass
class Times:
    compute_start_ns: int = 9_999
    input_end_ns: int = 12_998
    output_start_ns: int = 30_000
    compute_end_ns: int = 31_999


@dataclass
class Request:
    start_ns: int = 1_000
    queued_ns: int = 2_000


def proc(folder: Path) -> HostCpu:
    (folder / "stat").write_text("cpu 1 1 1 1 1 1 1 1 0 0\n")
    (folder / "meminfo").write_text("MemTotal: 2048 kB\nMemAvailable: 1024 kB\n")
    return HostCpu(proc=folder)


def heads(page: str) -> str:
    """The HELP and TYPE lines in the page's order."""
    return "".join(line[7:] + "\n" for line in page.splitlines() if line.startswith("#"))


def series(page: str) -> dict[str, str]:
    lines = [line for line in page.splitlines() if not line.startswith("#")]
    found = dict(line.rsplit(" ", 1) for line in lines)
    assert len(found) == len(lines), "a series twice"
    return found


def names(page: str) -> set[str]:
    return {line.partition("{")[0] for line in series(page)}


def render(versions: Iterable[VersionStatistics], book: StatisticsBook, settings: MetricsSettings | None = None) -> str:
    service = Service([Version(statistics) for statistics in versions])
    return MetricsExposition(service, book, settings or MetricsSettings(), clock_ns=lambda: 40_000).render().decode()


def test_the_whole_page(tmp_path: Path) -> None:
    book = StatisticsBook()
    plain = book.open("plain", 1)
    tagged = book.open("tagged", 3, {"team": "vision", "a": 'quo"te\\back\nline'})
    plain.load_duration_ns = 1_500_000_000
    plain.pending_count = 2
    plain.batch_done(Times(), 5, [Request(), Request(1_500, 2_500)], 5, 40_000, 1)
    plain.request_failed(FailureReason.CANCELED, 0, 9)
    page = (
        MetricsExposition(
            Service([Version(plain, 3, 2), Version(tagged)]),
            book,
            MetricsSettings(),
            cpu=proc(tmp_path),
            pool_total_bytes=lambda: 256 * MIB,
            pool_used_bytes=lambda: MIB,
            worker_restarts=lambda: {"gpu0": 0, "cpu": 3},
            arena_used_bytes=lambda: {"server": MIB},
        )
        .render()
        .decode()
    )
    assert heads(page) == HEADS
    p = 'model="plain",version="1"'
    t = '_a="quo\\"te\\\\back\\nline",_team="vision",model="tagged",version="3"'
    failure = "nv_inference_request_failure{"
    t_failure = failure + '_a="quo\\"te\\\\back\\nline",_team="vision",model="tagged",reason='
    expected = {
        f"nv_inference_request_success{{{p}}}": "2",
        f"nv_inference_request_success{{{t}}}": "0",
        failure + 'model="plain",reason="REJECTED",version="1"}': "0",
        failure + 'model="plain",reason="CANCELED",version="1"}': "1",
        failure + 'model="plain",reason="BACKEND",version="1"}': "0",
        failure + 'model="plain",reason="OTHER",version="1"}': "0",
        t_failure + '"REJECTED",version="3"}': "0",
        t_failure + '"CANCELED",version="3"}': "0",
        t_failure + '"BACKEND",version="3"}': "0",
        t_failure + '"OTHER",version="3"}': "0",
        f"nv_inference_count{{{p}}}": "5",
        f"nv_inference_count{{{t}}}": "0",
        f"nv_inference_exec_count{{{p}}}": "1",
        f"nv_inference_exec_count{{{t}}}": "0",
        f"nv_inference_request_duration_us{{{p}}}": "77",
        f"nv_inference_request_duration_us{{{t}}}": "0",
        f"nv_inference_queue_duration_us{{{p}}}": "15",
        f"nv_inference_queue_duration_us{{{t}}}": "0",
        f"nv_inference_compute_input_duration_us{{{p}}}": "5",
        f"nv_inference_compute_input_duration_us{{{t}}}": "0",
        f"nv_inference_compute_infer_duration_us{{{p}}}": "34",
        f"nv_inference_compute_infer_duration_us{{{t}}}": "0",
        f"nv_inference_compute_output_duration_us{{{p}}}": "3",
        f"nv_inference_compute_output_duration_us{{{t}}}": "0",
        f"nv_inference_pending_request_count{{{p}}}": "2",
        f"nv_inference_pending_request_count{{{t}}}": "0",
        f"nv_model_load_duration_secs{{{p}}}": "1.5",
        f"nv_model_load_duration_secs{{{t}}}": "0",
        "nv_pinned_memory_pool_total_bytes": str(256 * MIB),
        "nv_pinned_memory_pool_used_bytes": str(MIB),
        "nv_cpu_utilization": "0",
        "nv_cpu_memory_total_bytes": str(2 * MIB),
        "nv_cpu_memory_used_bytes": str(MIB),
        f"tensorfarm_instance_busy_seconds_total{{{p}}}": "2.2e-05",
        f"tensorfarm_instance_busy_seconds_total{{{t}}}": "0",
        f"tensorfarm_instances{{{p}}}": "2",
        f"tensorfarm_instances{{{t}}}": "0",
        f"tensorfarm_requests_in_flight{{{p}}}": "3",
        f"tensorfarm_requests_in_flight{{{t}}}": "0",
        'tensorfarm_worker_restarts_total{worker="cpu"}': "3",
        'tensorfarm_worker_restarts_total{worker="gpu0"}': "0",
        'tensorfarm_arena_used_bytes{arena="server"}': str(MIB),
    }
    assert list(series(page).items()) == list(expected.items())


def test_the_page_parses_back() -> None:
    book = StatisticsBook(summaries=True, histograms=True)
    version = book.open("m", 1, {"t": 'a"b\\c\nd'}, decoupled=True)
    version.batch_done(Times(), 1, [Request()], 1, 40_000, 1)
    version.first_response_sent(0, 150_000_000)
    families = {family.name: family for family in text_string_to_metric_families(render([version], book))}
    # The parser itself puts _total behind the names of a counter's samples.
    success = families["nv_inference_request_success"]
    assert (success.type, success.samples[0].value) == ("counter", 1)
    assert success.samples[0].labels == {"_t": 'a"b\\c\nd', "model": "m", "version": "1"}
    summary = families["nv_inference_request_summary_us"]
    assert summary.type == "summary"
    assert {sample.labels.get("quantile") for sample in summary.samples} == {None, "0.5", "0.9", "0.95", "0.99", "0.999"}
    histogram = families["nv_inference_first_response_histogram_ms"]
    buckets = [(sample.labels["le"], sample.value) for sample in histogram.samples if sample.name.endswith("_bucket")]
    assert buckets == [("100", 0), ("500", 1), ("2000", 1), ("5000", 1), ("+Inf", 1)]


def test_no_model_no_series() -> None:
    assert render([], StatisticsBook()) == ""


def test_failures_stay_after_unload_and_go_on_after_reload() -> None:
    book = StatisticsBook()
    version = book.open("m", 1)
    version.request_failed(FailureReason.OTHER, 0, 1)
    page = render([], book)
    assert names(page) == {"nv_inference_request_failure"}
    assert series(page)['nv_inference_request_failure{model="m",reason="OTHER",version="1"}'] == "1"
    again = book.open("m", 1)
    again.request_failed(FailureReason.OTHER, 0, 1)
    found = series(render([again], book))
    assert found['nv_inference_request_failure{model="m",reason="OTHER",version="1"}'] == "2"
    assert found['nv_inference_request_success{model="m",version="1"}'] == "0"


def test_without_counter_latencies_counters_stand_still() -> None:
    book = StatisticsBook()
    version = book.open("m", 1)
    version.batch_done(Times(), 1, [Request()], 1, 40_000, 1)
    version.request_failed(FailureReason.BACKEND, 0, 1)
    version.pending_count = 4
    page = render([version], book, MetricsSettings(counter_latencies=False))
    assert not [name for name in names(page) if name.endswith("duration_us")]
    found = {name: value for name, value in series(page).items() if name.startswith("nv_")}
    assert found.pop('nv_inference_pending_request_count{model="m",version="1"}') == "4"
    assert len(found) == 8 and set(found.values()) == {"0"}
    assert version.as_json("m", 1)["inference_stats"]["success"]["count"] == 1


def test_summaries() -> None:
    book = StatisticsBook(summaries=True)
    used, idle = book.open("a", 1), book.open("b", 1)
    used.batch_done(Times(), 1, [Request()], 1, 40_000, 1)
    page = render([used, idle], book, MetricsSettings(summary_latencies=True, quantiles=(0.5, 0.9)))
    assert SUMMARY_HEADS in heads(page)
    lines = [line for line in page.splitlines() if line.startswith("nv_inference_queue_summary_us")]
    assert lines == [
        'nv_inference_queue_summary_us_count{model="a",version="1"} 1',
        'nv_inference_queue_summary_us_sum{model="a",version="1"} 7',
        'nv_inference_queue_summary_us{model="a",version="1",quantile="0.5"} 7',
        'nv_inference_queue_summary_us{model="a",version="1",quantile="0.9"} 7',
        'nv_inference_queue_summary_us_count{model="b",version="1"} 0',
        'nv_inference_queue_summary_us_sum{model="b",version="1"} 0',
        'nv_inference_queue_summary_us{model="b",version="1",quantile="0.5"} Nan',
        'nv_inference_queue_summary_us{model="b",version="1",quantile="0.9"} Nan',
    ]


def test_cached_models_have_cache_series_and_no_request_summary() -> None:
    book = StatisticsBook(summaries=True)
    version, other = book.open("m", 1), book.open("n", 1)
    version.caching = True
    version.cache_hit(0, 0, 0, 15_053)
    version.cache_hit(0, 0, 0, 15_000)
    page = render([version, other], book)
    assert CACHE_HEADS in heads(page)
    found = series(page)
    assert found['nv_cache_hit_duration_per_model{model="m",version="1"}'] == "30"
    assert found['nv_cache_hit_summary_per_model_sum{model="m",version="1"}'] == "30"
    assert found['nv_cache_miss_summary_per_model_count{model="m",version="1"}'] == "0"
    assert 'nv_cache_hit_summary_per_model_count{model="n",version="1"}' not in found
    assert 'nv_cache_num_hits_per_model{model="n",version="1"}' not in found
    assert 'nv_inference_request_summary_us_count{model="m",version="1"}' not in found
    assert found['nv_inference_request_summary_us_count{model="n",version="1"}'] == "0"
    assert found['nv_inference_queue_summary_us_count{model="m",version="1"}'] == "2"


def test_further_sources_come_last() -> None:
    gpu = Family("nv_gpu_utilization", "gauge", "GPU utilization rate [0.0 - 1.0)")
    gpu.add({"gpu_uuid": "GPU-1"}, math.nan)
    book = StatisticsBook()
    page = MetricsExposition(Service(), book, MetricsSettings(), arena_used_bytes=lambda: {"a": 1}, sources=[lambda: [gpu]]).render()
    assert page.decode().splitlines()[-1] == 'nv_gpu_utilization{gpu_uuid="GPU-1"} Nan'


def test_versions_with_the_same_labels_are_one_series() -> None:
    """Those of an ensemble."""
    book = StatisticsBook()
    versions = [book.open("e", 1) for _ in range(2)]
    for count, statistics in enumerate(versions, start=2):
        for _ in range(count):
            statistics.request_succeeded(0, 5_000, 1, 0, 0, 0, 0)
        statistics.request_failed(FailureReason.OTHER, 0, 1)
    page = render(versions, book)
    found = [line for line in page.splitlines() if line.startswith("nv_inference_request_success{")]
    assert found == ['nv_inference_request_success{model="e",version="1"} 5']
    assert series(page)['nv_inference_request_duration_us{model="e",version="1"}'] == "25"
    assert series(page)['nv_inference_request_failure{model="e",reason="OTHER",version="1"}'] == "2"


def test_what_lazy_loading_has_done() -> None:
    book = StatisticsBook()
    page = MetricsExposition(Service(), book, MetricsSettings(), lazy=lambda: (5, 60, 55)).render().decode()
    for name, kind, value in (
        ("resident_models", "gauge", 5),
        ("lazy_loads_total", "counter", 60),
        ("lazy_evictions_total", "counter", 55),
    ):
        assert f"# TYPE tensorfarm_{name} {kind}\ntensorfarm_{name} {value}\n" in page
    assert "lazy" not in MetricsExposition(Service(), book, MetricsSettings()).render().decode(), "elsewhere it says nothing"


def test_what_was_refused_because_there_was_too_much() -> None:
    book = StatisticsBook()
    admission = Admission(AdmissionLimits(byte_size=10))
    page = MetricsExposition(Service(), book, MetricsSettings(), admission=admission).render().decode()
    assert "tensorfarm_requests_refused_total" not in page and "tensorfarm_requests_held_bytes 0\n" in page
    admission.hold(11)
    for _ in range(2):
        with pytest.raises(Overloaded):
            admission.check_bytes(1)
    page = MetricsExposition(Service(), book, MetricsSettings(), admission=admission).render().decode()
    assert series(page)['tensorfarm_requests_refused_total{model="",reason="BYTES"}'] == "2"
    assert series(page)["tensorfarm_requests_held_bytes"] == "11"
