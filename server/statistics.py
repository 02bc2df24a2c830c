"""What is counted about each model version, for the statistics endpoints and the metrics page."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol

from .latency import Histogram, Summary

FIRST_RESPONSE_BOUNDS_MS = (100.0, 500.0, 2000.0, 5000.0)


class FailureReason(enum.IntEnum):
    """Why a request failed, as the ``reason`` label of the failure counter names it."""

    REJECTED = 0
    CANCELED = 1
    BACKEND = 2
    OTHER = 3


class ExecutionTimes(Protocol):
    """The four times of one execution, CLOCK_MONOTONIC nanoseconds; ``Done`` messages have them."""

    @property
    def compute_start_ns(self) -> int: ...
    @property
    def input_end_ns(self) -> int: ...
    @property
    def output_start_ns(self) -> int: ...
    @property
    def compute_end_ns(self) -> int: ...


class WarmUp(Protocol):
    """A warm-up sample that was run: how often, as how many requests for one item, and the summed durations of the executions."""

    @property
    def batch_size(self) -> int: ...
    @property
    def execution_count(self) -> int: ...
    @property
    def input_ns(self) -> int: ...
    @property
    def infer_ns(self) -> int: ...
    @property
    def output_ns(self) -> int: ...


class Timed(Protocol):
    """When a request began and when it entered the queue, CLOCK_MONOTONIC nanoseconds."""

    start_ns: int
    queued_ns: int


@dataclass(slots=True)
class BatchRow:
    """Executions of one batch size, their durations added once each."""

    count: int = 0
    input_ns: int = 0
    infer_ns: int = 0
    output_ns: int = 0


@dataclass(slots=True)
class LatencySummaries:
    """Summaries of request latencies in µs, kept only where they are asked for."""

    request: Summary = field(default_factory=Summary)
    queue: Summary = field(default_factory=Summary)
    compute_input: Summary = field(default_factory=Summary)
    compute_infer: Summary = field(default_factory=Summary)
    compute_output: Summary = field(default_factory=Summary)
    cache_hit: Summary = field(default_factory=Summary)
    cache_miss: Summary = field(default_factory=Summary)

    def observe(self, request_ns: int, queue_ns: int, input_ns: int, infer_ns: int, output_ns: int, now_ns: int) -> None:
        """Add one successful request."""
        self.request.observe(request_ns // 1000, now_ns)
        self.queue.observe(queue_ns // 1000, now_ns)
        self.compute_input.observe(input_ns // 1000, now_ns)
        self.compute_infer.observe(infer_ns // 1000, now_ns)
        self.compute_output.observe(output_ns // 1000, now_ns)


@dataclass(slots=True, eq=False)
class VersionStatistics:
    """Counters of one loaded model version. Durations are nanoseconds; loop thread only.

    ``failures`` counts by FailureReason and outlives the version: the book that opened these
    statistics hands the same list to the next load. Everything else begins at zero with a load.
    ``pending_count`` is kept by the dispatcher: +1 when a request is queued, -1 when its batch is sent
    to an instance or it leaves the queue any other way. ``cuts`` counts batches by why they ended (`dispatch.batching.Cut`).
    ``earlier`` are those of the load that it replaced, for what goes on counting over loads; ``closed`` ones change no more.
    """

    labels: dict[str, str] = field(default_factory=dict)
    failures: list[int] = field(default_factory=lambda: [0] * len(FailureReason))
    summaries: LatencySummaries | None = None
    first_response: Histogram | None = None
    caching: bool = False
    pending_count: int = 0
    load_duration_ns: int = 0
    last_inference_ms: int = 0
    inference_count: int = 0
    execution_count: int = 0
    success_count: int = 0
    success_ns: int = 0
    fail_count: int = 0
    fail_ns: int = 0
    queue_ns: int = 0
    compute_input_ns: int = 0
    compute_infer_ns: int = 0
    compute_output_ns: int = 0
    cache_hit_count: int = 0
    cache_hit_ns: int = 0
    cache_miss_count: int = 0
    cache_miss_ns: int = 0
    batches: dict[int, BatchRow] = field(default_factory=dict)
    cuts: list[int] = field(default_factory=lambda: [0] * 6)
    earlier: VersionStatistics | None = None
    closed: bool = False
    max_batch_size: int = 0

    def follow(self, replaced: VersionStatistics) -> None:
        """Go on where the statistics of the load that is replaced will end."""
        self.earlier = replaced
        self.summaries, self.first_response = replaced.summaries or self.summaries, replaced.first_response or self.first_response
        # All of them, because loads may end in any order, long after others have replaced them.
        one = replaced
        while (earlier := one.earlier) is not None:
            if earlier.closed:
                # Nobody looks at what was replaced by itself any more, so it can hold the sum.
                for name in _SUMMED:
                    setattr(one, name, getattr(one, name) + getattr(earlier, name))
                one.cuts = [sum(pair) for pair in zip(one.cuts, earlier.cuts, strict=True)]
                one.batches = _rows_together(one.batches, earlier.batches)
                one.earlier = earlier.earlier
            else:
                one = earlier

    def total(self) -> VersionStatistics:
        """Together with the loads that it replaced."""
        return self if self.earlier is None else self.joined(self.earlier.total())

    def batch_done(
        self, times: ExecutionTimes, batch_size: int, succeeded: Sequence[Timed], inference_count: int, end_ns: int, now_ms: int
    ) -> None:
        """Count one execution and those of its requests that succeeded.

        ``batch_size`` is the execution's, ``inference_count`` the summed batch size of ``succeeded``.
        An execution counts even where every request of it failed. ``end_ns`` is when the requests
        were answered (CLOCK_MONOTONIC), ``now_ms`` the wall clock in milliseconds.
        """
        compute_start_ns = times.compute_start_ns
        input_end_ns = times.input_end_ns
        output_start_ns = times.output_start_ns
        input_ns = input_end_ns - compute_start_ns
        infer_ns = output_start_ns - input_end_ns
        output_ns = times.compute_end_ns - output_start_ns
        self.execution_done(batch_size, input_ns, infer_ns, output_ns, now_ms)
        if not succeeded:
            return
        start_ns = queued_ns = 0
        for request in succeeded:
            start_ns += request.start_ns
            queued_ns += request.queued_ns
        count = len(succeeded)
        self.inference_count += inference_count
        self.success_count += count
        self.success_ns += count * end_ns - start_ns
        self.queue_ns += count * compute_start_ns - queued_ns
        self.compute_input_ns += count * input_ns
        self.compute_infer_ns += count * infer_ns
        self.compute_output_ns += count * output_ns
        if self.summaries is not None:
            for request in succeeded:
                queue_ns = compute_start_ns - request.queued_ns
                self.summaries.observe(end_ns - request.start_ns, queue_ns, input_ns, infer_ns, output_ns, end_ns)

    def execution_done(self, batch_size: int, input_ns: int, infer_ns: int, output_ns: int, now_ms: int) -> None:
        """Count one execution by its durations, apart from its requests."""
        self.last_inference_ms = now_ms
        self.execution_count += 1
        row = self.batches.get(batch_size)
        if row is None:
            row = self.batches[batch_size] = BatchRow()
        row.count += 1
        row.input_ns += input_ns
        row.infer_ns += infer_ns
        row.output_ns += output_ns

    def request_succeeded(
        self, start_ns: int, end_ns: int, batch_size: int, queue_ns: int, input_ns: int, infer_ns: int, output_ns: int
    ) -> None:
        """Count one request that succeeded, by its durations (ensembles, decoupled models)."""
        self.inference_count += batch_size
        self.success_count += 1
        self.success_ns += end_ns - start_ns
        self.queue_ns += queue_ns
        self.compute_input_ns += input_ns
        self.compute_infer_ns += infer_ns
        self.compute_output_ns += output_ns
        if self.summaries is not None:
            self.summaries.observe(end_ns - start_ns, queue_ns, input_ns, infer_ns, output_ns, end_ns)

    def execution_prolonged(self, batch_size: int, times: ExecutionTimes) -> None:
        """Add the durations of a part of a request that was counted before they were known (ensembles)."""
        input_ns = times.input_end_ns - times.compute_start_ns
        infer_ns = times.output_start_ns - times.input_end_ns
        output_ns = times.compute_end_ns - times.output_start_ns
        row = self.batches.setdefault(batch_size, BatchRow())
        row.input_ns += input_ns
        row.infer_ns += infer_ns
        row.output_ns += output_ns
        self.compute_input_ns += input_ns
        self.compute_infer_ns += infer_ns
        self.compute_output_ns += output_ns

    def warmed_up(self, sample: WarmUp, now_ms: int) -> None:
        """Count the executions of a warm-up sample, and their requests, which did not wait for anything."""
        row = self.batches.setdefault(sample.batch_size, BatchRow())
        row.count += sample.execution_count
        row.input_ns += sample.input_ns
        row.infer_ns += sample.infer_ns
        row.output_ns += sample.output_ns
        size = sample.batch_size
        self.last_inference_ms = now_ms
        self.execution_count += sample.execution_count
        self.inference_count += size * sample.execution_count
        self.success_count += size * sample.execution_count
        self.success_ns += size * (sample.input_ns + sample.infer_ns + sample.output_ns)
        self.compute_input_ns += size * sample.input_ns
        self.compute_infer_ns += size * sample.infer_ns
        self.compute_output_ns += size * sample.output_ns

    def cache_hit(self, start_ns: int, queued_ns: int, lookup_ns: int, end_ns: int) -> None:
        """Count one request that was answered from the cache; its lookup began at ``lookup_ns`` and ended at ``end_ns``."""
        self.success_count += 1
        self.success_ns += end_ns - start_ns
        self.queue_ns += lookup_ns - queued_ns
        self.cache_hit_count += 1
        self.cache_hit_ns += end_ns - lookup_ns
        if self.summaries is not None:
            self.summaries.queue.observe((lookup_ns - queued_ns) // 1000, end_ns)
            self.summaries.cache_hit.observe((end_ns - lookup_ns) // 1000, end_ns)

    def cache_missed(self, duration_ns: int, now_ns: int) -> None:
        """Count one request that was not found in the cache; what looking it up and keeping its answer took belongs to its duration."""
        self.success_ns += duration_ns
        self.cache_miss_count += 1
        self.cache_miss_ns += duration_ns
        if self.summaries is not None:
            self.summaries.cache_miss.observe(duration_ns // 1000, now_ns)

    def request_failed(self, reason: FailureReason, start_ns: int, end_ns: int) -> None:
        """Count one request that was accepted and then failed."""
        self.fail_count += 1
        self.fail_ns += end_ns - start_ns
        self.failures[reason] += 1

    def first_response_sent(self, start_ns: int, now_ns: int) -> None:
        """Note how long the first response of a decoupled model's request took."""
        if self.first_response is not None:
            self.first_response.observe((now_ns - start_ns) // 1_000_000)

    def joined(self, other: VersionStatistics) -> VersionStatistics:
        """Both together, for a page that has them under one label; the distributions are those of the first."""
        sums = {name: getattr(self, name) + getattr(other, name) for name in _SUMMED}
        both = VersionStatistics(self.labels, self.failures, self.summaries, self.first_response, self.caching, **sums)
        both.load_duration_ns, both.max_batch_size = self.load_duration_ns, self.max_batch_size
        both.cuts = [sum(pair) for pair in zip(self.cuts, other.cuts, strict=True)]
        both.batches = _rows_together(self.batches, other.batches)
        return both

    def as_json(self, name: str, version: int | str) -> dict[str, Any]:
        """The ``model_stats`` entry of the statistics extension, members in the protocol's order."""
        computed = self.success_count - self.cache_hit_count
        return {
            "name": name,
            "version": str(version),
            "last_inference": self.last_inference_ms,
            "inference_count": self.inference_count,
            "execution_count": self.execution_count,
            "inference_stats": {
                "success": _duration(self.success_count, self.success_ns),
                "fail": _duration(self.fail_count, self.fail_ns),
                "queue": _duration(self.success_count, self.queue_ns),
                "compute_input": _duration(computed, self.compute_input_ns),
                "compute_infer": _duration(computed, self.compute_infer_ns),
                "compute_output": _duration(computed, self.compute_output_ns),
                "cache_hit": _duration(self.cache_hit_count, self.cache_hit_ns),
                "cache_miss": _duration(self.cache_miss_count, self.cache_miss_ns),
            },
            "response_stats": {},
            "batch_stats": [
                {
                    "batch_size": batch_size,
                    "compute_input": _duration(row.count, row.input_ns),
                    "compute_infer": _duration(row.count, row.infer_ns),
                    "compute_output": _duration(row.count, row.output_ns),
                }
                for batch_size, row in sorted(self.batches.items())
            ],
            "memory_usage": [],
        }


_SUMMED = tuple(
    one.name
    for one in fields(VersionStatistics)
    if one.type == "int" and one.name not in ("last_inference_ms", "load_duration_ns", "max_batch_size")
)


def _rows_together(one: Mapping[int, BatchRow], other: Mapping[int, BatchRow]) -> dict[int, BatchRow]:
    both = {size: replace(row) for size, row in one.items()}
    for size, row in other.items():
        known = both.setdefault(size, BatchRow())
        known.count += row.count
        known.input_ns += row.input_ns
        known.infer_ns += row.infer_ns
        known.output_ns += row.output_ns
    return both


def _duration(count: int, ns: int) -> dict[str, int]:
    return {"count": count, "ns": ns}


class StatisticsBook:
    """Opens the statistics of model versions and keeps what outlives an unload: failure counts by label set."""

    def __init__(self, *, summaries: bool = False, histograms: bool = False) -> None:
        self.failures: dict[tuple[tuple[str, str], ...], list[int]] = {}
        self._summaries = summaries
        self._histograms = histograms

    def open(
        self,
        name: str,
        version: int | str,
        metric_tags: Mapping[str, str] | None = None,
        *,
        decoupled: bool = False,
        namespace: str = "",
        first_response_bounds_ms: Sequence[float] = FIRST_RESPONSE_BOUNDS_MS,
        max_batch_size: int = 0,
    ) -> VersionStatistics:
        """Fresh statistics for a version that is being loaded.

        ``metric_tags`` are the configuration's: each becomes a label with ``_`` before its name. ``namespace`` is a label where it is
        not empty.
        Only decoupled models have a first-response histogram. ``max_batch_size`` is 0 for what forms no batches.
        """
        labels = {f"_{tag}": value for tag, value in (metric_tags or {}).items()}
        labels |= {"model": name, "version": str(version)} | ({"namespace": namespace} if namespace else {})
        labels = dict(sorted(labels.items()))
        return VersionStatistics(
            labels=labels,
            failures=self.failures.setdefault(tuple(labels.items()), [0] * len(FailureReason)),
            summaries=LatencySummaries() if self._summaries else None,
            first_response=Histogram(first_response_bounds_ms) if self._histograms and decoupled else None,
            max_batch_size=max_batch_size,
        )
