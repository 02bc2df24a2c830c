"""Metrics that say how models are used: how large batches get and why no larger, how busy instances are, what is in flight."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from .dispatch.batching import Cut
from .prometheus_text import Family
from .statistics import VersionStatistics

_CUTS_HELP = (
    "Batches by what ended them: FULL no room for the next request, PREFERRED a preferred size was reached, DELAY the oldest request had "
    "waited as long as it may, SHAPE the next request could not join, DEADLINE requests timed out of it, END nothing else waited"
)


class Used(Protocol):
    """A model version as far as these are concerned. ``instance_count`` are the instances that can take batches at this moment."""

    @property
    def statistics(self) -> VersionStatistics: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def instance_count(self) -> int: ...


def batch_families(versions: Iterable[VersionStatistics]) -> Iterator[Family]:
    """What batches are like, of models that batch; ``versions`` are statistics with what came before them."""
    sizes = Family("tensorfarm_batch_size", "histogram", "Items in each batch that was executed, warm-up included")
    cuts = Family("tensorfarm_batch_cut_total", "counter", _CUTS_HELP)
    for version in versions:
        if version.max_batch_size:
            _add_sizes(sizes, version)
            for cut in Cut:
                cuts.add({**version.labels, "reason": cut.name}, version.cuts[cut])
    yield sizes
    yield cuts


def size_bounds(max_batch_size: int) -> list[int]:
    """The powers of two below the largest batch, and that."""
    return [1 << power for power in range((max_batch_size - 1).bit_length())] + [max_batch_size]


def _add_sizes(family: Family, version: VersionStatistics) -> None:
    counts = [(size, row.count) for size, row in version.batches.items()]
    executions = sum([count for _, count in counts])
    family.add(version.labels, executions, "_count")
    family.add(version.labels, sum([size * count for size, count in counts]), "_sum")
    for bound in size_bounds(version.max_batch_size):
        family.add({**version.labels, "le": str(bound)}, sum([count for size, count in counts if size <= bound]), "_bucket")
    family.add({**version.labels, "le": "+Inf"}, executions, "_bucket")


def use_families(versions: Sequence[Used], totals: Iterable[VersionStatistics]) -> Iterator[Family]:
    """How much of what there is for a model is in use; ``totals`` are statistics with what came before them, one of each set of labels."""
    busy = Family(
        "tensorfarm_instance_busy_seconds_total",
        "counter",
        "Time that instances spent on batches, added up; its rate over tensorfarm_instances is the share of them that is busy [0.0 - 1.0]",
    )
    for total in totals:
        busy.add(total.labels, sum([row.input_ns + row.infer_ns + row.output_ns for row in total.batches.values()]) / 1e9)
    yield busy
    for name, help_text, counts in (
        ("instances", "Model instances that can take batches", _added_up(versions, [one.instance_count for one in versions])),
        ("requests_in_flight", "Requests that wait or run", _added_up(versions, [one.in_flight for one in versions])),
    ):
        family = Family(f"tensorfarm_{name}", "gauge", help_text)
        for labels, count in counts.items():
            family.add(dict(labels), count)
        yield family


def _added_up(versions: Sequence[Used], counts: Iterable[int]) -> Mapping[tuple[tuple[str, str], ...], int]:
    """Counts of those with the same labels together: a version that is replaced is there twice."""
    found: dict[tuple[tuple[str, str], ...], int] = {}
    for version, count in zip(versions, counts, strict=True):
        labels = tuple(version.statistics.labels.items())
        found[labels] = found.get(labels, 0) + count
    return found
