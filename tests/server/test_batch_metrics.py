from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tensorfarm.server.batch_metrics import batch_families, size_bounds, use_families
from tensorfarm.server.dispatch.batching import Cut
from tensorfarm.server.prometheus_text import Family, exposition
from tensorfarm.server.statistics import StatisticsBook, VersionStatistics


@dataclass
class Version:
    statistics: VersionStatistics
    in_flight: int
    instance_count: int


def samples(families: Iterable[Family]) -> dict[tuple[str, str], float]:
    """Values by the sample's name and the label that is not the version's."""
    found = {}
    for family in text_string_to_metric_families(exposition(families).decode()):
        for sample in family.samples:
            assert (sample.labels["model"], sample.labels["version"]) == ("m", "1")
            (more,) = [value for label, value in sample.labels.items() if label not in ("model", "version")] or [""]
            found[sample.name, more] = sample.value
    return found


@pytest.mark.parametrize(("largest", "bounds"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8]), (9, [1, 2, 4, 8, 9])])
def test_bounds_of_batch_sizes(largest: int, bounds: list[int]) -> None:
    assert size_bounds(largest) == bounds


def test_sizes_and_what_ended_batches() -> None:
    version = StatisticsBook().open("m", 1, max_batch_size=6)
    for size in (1, 3, 3, 4, 6):
        version.execution_done(size, 1, 1, 1, 0)
    version.cuts[Cut.FULL] = 2
    version.cuts[Cut.SHAPE] = 3
    found = samples(batch_families([version]))
    name = "tensorfarm_batch_size"
    assert (found[f"{name}_count", ""], found[f"{name}_sum", ""]) == (5, 17)
    assert [found[f"{name}_bucket", bound] for bound in ("1", "2", "4", "6", "+Inf")] == [1, 1, 4, 5, 5]
    assert {cut.name: found["tensorfarm_batch_cut_total", cut.name] for cut in Cut} == {
        **{cut.name: 0 for cut in Cut},
        "FULL": 2,
        "SHAPE": 3,
    }


def test_what_forms_no_batches_has_no_sizes() -> None:
    version = StatisticsBook().open("m", 1)
    version.execution_done(1, 1, 1, 1, 0)
    assert exposition(batch_families([version])) == b""


def test_they_go_on_over_reloads() -> None:
    book = StatisticsBook()
    loads = [book.open("m", 1, max_batch_size=4) for _ in range(4)]
    for number, load in enumerate(loads):
        if number:
            load.follow(loads[number - 1])
            loads[number - 1].closed = number != 2
        load.execution_done(4 if number == 2 else 2, 1_000_000_000, 0, 0, 0)
        load.cuts[Cut.END] += 1
    last = loads[-1]
    found = samples(batch_families([last.total()]))
    assert [found["tensorfarm_batch_size_bucket", bound] for bound in ("1", "2", "4")] == [0, 3, 4]
    assert found["tensorfarm_batch_cut_total", "END"] == 4
    busy = samples(use_families([], [last.total()]))
    assert busy["tensorfarm_instance_busy_seconds_total", ""] == 4
    assert [row["batch_size"] for row in last.as_json("m", 1)["batch_stats"]] == [2], "the statistics are those of one load"


def test_a_version_that_is_replaced_counts_with_what_replaces_it() -> None:
    book = StatisticsBook()
    versions = [Version(book.open("m", 1), 3, 2), Version(book.open("m", 1), 4, 1)]
    found = samples(use_families(versions, []))
    assert found == {("tensorfarm_instances", ""): 3, ("tensorfarm_requests_in_flight", ""): 7}
