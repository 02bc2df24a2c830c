"""The metrics page, made from our counters when it is asked for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from .admission import Admission
from .batch_metrics import Used, batch_families, use_families
from .host_cpu import HostCpu
from .latency import Summary
from .metrics_settings import MetricsSettings
from .prometheus_text import Family, Sample, exposition
from .statistics import FailureReason, LatencySummaries, StatisticsBook, VersionStatistics


class Service(Protocol):
    """The service as far as the page is concerned."""

    def counted(self) -> Sequence[Used]: ...


Read = Callable[[VersionStatistics], int]

_COUNTERS: tuple[tuple[str, str, Read], ...] = (
    (
        "nv_inference_count",
        "Number of inferences performed (does not include cached requests)",
        lambda version: version.inference_count,
    ),
    (
        "nv_inference_exec_count",
        "Number of model executions performed (does not include cached requests)",
        lambda version: version.execution_count,
    ),
)

_DURATIONS: tuple[tuple[str, str, Read], ...] = (
    (
        "nv_inference_request_duration_us",
        "Cumulative inference request duration in microseconds (includes cached requests)",
        lambda version: version.success_ns // 1000,
    ),
    (
        "nv_inference_queue_duration_us",
        "Cumulative inference queuing duration in microseconds (includes cached requests)",
        lambda version: version.queue_ns // 1000,
    ),
    (
        "nv_inference_compute_input_duration_us",
        "Cumulative compute input duration in microseconds (does not include cached requests)",
        lambda version: version.compute_input_ns // 1000,
    ),
    (
        "nv_inference_compute_infer_duration_us",
        "Cumulative compute inference duration in microseconds (does not include cached requests)",
        lambda version: version.compute_infer_ns // 1000,
    ),
    (
        "nv_inference_compute_output_duration_us",
        "Cumulative inference compute output duration in microseconds (does not include cached requests)",
        lambda version: version.compute_output_ns // 1000,
    ),
)

_CACHE: tuple[tuple[str, str, Read], ...] = (
    ("nv_cache_num_hits_per_model", "Number of cache hits per model", lambda version: version.cache_hit_count),
    (
        "nv_cache_hit_duration_per_model",
        "Total cache hit duration per model, in microseconds",
        lambda version: version.cache_hit_ns // 1000,
    ),
    ("nv_cache_num_misses_per_model", "Number of cache misses per model", lambda version: version.cache_miss_count),
    (
        "nv_cache_miss_duration_per_model",
        "Total cache miss (insert+lookup) duration per model, in microseconds",
        lambda version: version.cache_miss_ns // 1000,
    ),
)

_SUMMARIES: tuple[tuple[str, str, Callable[[LatencySummaries], Summary]], ...] = (
    (
        "nv_inference_request_summary_us",
        "Summary of inference request duration in microseconds (includes cached requests)",
        lambda summaries: summaries.request,
    ),
    (
        "nv_inference_queue_summary_us",
        "Summary of inference queuing duration in microseconds (includes cached requests)",
        lambda summaries: summaries.queue,
    ),
    (
        "nv_inference_compute_input_summary_us",
        "Cumulative compute input duration in microseconds (does not include cached requests)",
        lambda summaries: summaries.compute_input,
    ),
    (
        "nv_inference_compute_infer_summary_us",
        "Cumulative compute inference duration in microseconds (does not include cached requests)",
        lambda summaries: summaries.compute_infer,
    ),
    (
        "nv_inference_compute_output_summary_us",
        "Cumulative inference compute output duration in microseconds (does not include cached requests)",
        lambda summaries: summaries.compute_output,
    ),
)

_CACHE_SUMMARIES: tuple[tuple[str, str, Callable[[LatencySummaries], Summary]], ...] = (
    (
        "nv_cache_hit_summary_per_model",
        "Summary of cache hit counts/durations per model, in microseconds.",
        lambda summaries: summaries.cache_hit,
    ),
    (
        "nv_cache_miss_summary_per_model",
        "Summary of cache miss counts/durations per model, in microseconds.",
        lambda summaries: summaries.cache_miss,
    ),
)


class MetricsExposition:
    """Writes the metrics page.

    ``pool_total_bytes`` and ``pool_used_bytes`` tell of the server's request arena (the protocol's
    pinned memory pool), ``worker_restarts`` counts restarts by worker name, ``arena_used_bytes``
    maps the name of each arena to its bytes in use, ``lazy`` gives, with lazy loading, how many models are in memory, have been
    loaded, have left, ``admission`` refuses requests, ``held_elsewhere`` are bytes that front ends hold for them. ``sources``
    give further families (GPUs, metrics that models define); they come last. Durations are truncated to whole µs once, at their
    total.
    """

    def __init__(
        self,
        service: Service,
        book: StatisticsBook,
        settings: MetricsSettings,
        *,
        cpu: HostCpu | None = None,
        pool_total_bytes: Callable[[], int] | None = None,
        pool_used_bytes: Callable[[], int] | None = None,
        worker_restarts: Callable[[], Mapping[str, int]] | None = None,
        arena_used_bytes: Callable[[], Mapping[str, int]] | None = None,
        lazy: Callable[[], tuple[int, int, int]] | None = None,
        admission: Admission | None = None,
        held_elsewhere: Callable[[], int] = lambda: 0,
        sources: Sequence[Callable[[], Iterable[Family]]] = (),
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._service = service
        self._book = book
        self._settings = settings
        self._cpu = cpu
        self._pool = (("total", pool_total_bytes), ("used", pool_used_bytes))
        self._worker_restarts = worker_restarts
        self._arena_used_bytes = arena_used_bytes
        self._lazy = lazy
        self._admission = admission
        self._held_elsewhere = held_elsewhere
        self._sources = sources
        self._clock_ns = clock_ns

    def render(self) -> bytes:
        """The page as of now."""
        families = {family.name: family for family in self._own()}
        for source in self._sources:
            for family in source():
                # a name appears once on the page, whoever adds series to it
                families.setdefault(family.name, Family(family.name, family.kind, family.help_text)).samples.extend(family.samples)
        return exposition(families.values())

    def kinds(self) -> dict[str, str]:
        """Names and kinds of the page's own families: others may add series to them, but cannot have the names for other kinds."""
        return {family.name: family.kind for family in self._own()}

    def _own(self) -> list[Family]:
        counted = self._service.counted()
        versions = _by_label([version.statistics.total() for version in counted])
        families = self._counters(versions)
        families += self._gauges(versions)
        families += self._host()
        families += self._distributions(versions)
        families += batch_families(versions)
        families += use_families(counted, versions)
        families += self._farm()
        return families

    def _counters(self, versions: Sequence[VersionStatistics]) -> list[Family]:
        counting = self._settings.counter_latencies
        success = Family("nv_inference_request_success", "counter", "Number of successful inference requests, all batch sizes")
        failure = Family("nv_inference_request_failure", "counter", "Number of failed inference requests, all batch sizes")
        for version in versions:
            success.add(version.labels, version.success_count if counting else 0)
        for pairs, counts in sorted(self._book.failures.items(), key=lambda item: dict(item[0])["model"]):
            for reason in FailureReason:
                labels = dict(sorted([*pairs, ("reason", reason.name)]))
                failure.add(labels, counts[reason] if counting else 0)
        families = [success, failure]
        for name, help_text, read in _COUNTERS:
            samples = [Sample(version.labels, read(version) if counting else 0) for version in versions]
            families.append(Family(name, "counter", help_text, samples))
        if counting:
            caching = [version for version in versions if version.caching]
            for table, members in ((_DURATIONS, versions), (_CACHE, caching)):
                for name, help_text, read in table:
                    families.append(Family(name, "counter", help_text, [Sample(version.labels, read(version)) for version in members]))
        return families

    def _gauges(self, versions: Sequence[VersionStatistics]) -> list[Family]:
        pending_help = "Instantaneous number of pending requests awaiting execution per-model."
        pending = [Sample(version.labels, version.pending_count) for version in versions]
        load = [Sample(version.labels, version.load_duration_ns / 1e9) for version in versions]
        families = [
            Family("nv_inference_pending_request_count", "gauge", pending_help, pending),
            Family("nv_model_load_duration_secs", "gauge", "Model load time in seconds", load),
        ]
        for which, read in self._pool:
            name, help_text = f"nv_pinned_memory_pool_{which}_bytes", f"Pinned memory pool {which} memory size, in bytes"
            families.append(Family(name, "gauge", help_text, [Sample({}, read())] if read else []))
        return families

    def _host(self) -> list[Family]:
        utilization = self._cpu.utilization() if self._cpu else None
        memory = self._cpu.memory() if self._cpu else None
        families = []
        if utilization is not None:
            families.append(Family("nv_cpu_utilization", "gauge", "CPU utilization rate [0.0 - 1.0]", [Sample({}, utilization)]))
        if memory is not None:
            total, used = memory
            families.append(Family("nv_cpu_memory_total_bytes", "gauge", "CPU total memory (RAM), in bytes", [Sample({}, total)]))
            families.append(Family("nv_cpu_memory_used_bytes", "gauge", "CPU used memory (RAM), in bytes", [Sample({}, used)]))
        return families

    def _distributions(self, versions: Sequence[VersionStatistics]) -> list[Family]:
        now_ns = self._clock_ns()
        help_text = "Duration from request to first response in milliseconds"
        first_response = Family("nv_inference_first_response_histogram_ms", "histogram", help_text)
        for version in versions:
            if version.first_response is not None:
                first_response.add_histogram(version.labels, version.first_response)
        families = [first_response]
        plain = [version for version in versions if not version.caching]
        caching = [version for version in versions if version.caching]
        # What a miss adds to a request's duration comes later, so where there is a cache that summary would be wrong.
        request, *others = _SUMMARIES
        for table, members in (((request,), plain), (others, versions), (_CACHE_SUMMARIES, caching)):
            for name, help_text, read in table:
                family = Family(name, "summary", help_text)
                for version in members:
                    if version.summaries is not None:
                        family.add_summary(version.labels, read(version.summaries), self._settings.quantiles, now_ns)
                families.append(family)
        return families

    def _farm(self) -> list[Family]:
        restarts = self._worker_restarts() if self._worker_restarts else {}
        arenas = self._arena_used_bytes() if self._arena_used_bytes else {}
        return [
            Family(
                "tensorfarm_worker_restarts_total",
                "counter",
                "Times a worker process was started again after it had died",
                [Sample({"worker": worker}, count) for worker, count in sorted(restarts.items())],
            ),
            Family(
                "tensorfarm_arena_used_bytes",
                "gauge",
                "Bytes of an arena's shared memory in use",
                [Sample({"arena": arena}, byte_size) for arena, byte_size in sorted(arenas.items())],
            ),
            *(_admission(self._admission, self._held_elsewhere()) if self._admission else ()),
            *(_lazy_loading(*self._lazy()) if self._lazy else ()),
        ]


def _admission(admission: Admission, held_elsewhere: int) -> Iterable[Family]:
    refused = Family(
        "tensorfarm_requests_refused_total",
        "counter",
        "Requests refused because too much was in flight: REQUESTS of all models, MODEL_REQUESTS of this one, BYTES held for requests",
    )
    for (model, reason), count in sorted(admission.refused.items()):
        refused.add({"model": model, "reason": reason}, count)
    yield refused
    help_text = "Bytes of memory held for request bodies, and for replies that clients have not taken yet"
    yield Family("tensorfarm_requests_held_bytes", "gauge", help_text, [Sample({}, admission.byte_size + held_elsewhere)])


def _lazy_loading(resident: int, loads: int, evictions: int) -> Iterable[Family]:
    for name, kind, help_text, value in (
        ("resident_models", "gauge", "Models in memory, on their way there or on their way out", resident),
        ("lazy_loads_total", "counter", "Models loaded because they were asked", loads),
        ("lazy_evictions_total", "counter", "Models that left memory to make room", evictions),
    ):
        yield Family(f"tensorfarm_{name}", kind, help_text, [Sample({}, value)])


def _by_label(versions: Sequence[VersionStatistics]) -> list[VersionStatistics]:
    """One of each set of labels: the versions of an ensemble have the same, and are counted together."""
    found: dict[tuple[tuple[str, str], ...], VersionStatistics] = {}
    for version in versions:
        labels = tuple(version.labels.items())
        found[labels] = version if labels not in found else found[labels].joined(version)
    return list(found.values())
