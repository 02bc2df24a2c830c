from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorfarm.server.latency import SLOT_COUNT, SLOT_NS, Histogram, Summary


def test_small_values_are_exact() -> None:
    summary = Summary()
    for value in (30, 10, 20, 255):
        summary.observe(value, 0)
    assert summary.quantiles([0.0, 0.25, 0.5, 0.75, 1.0], 0) == [10, 10, 20, 30, 255]
    assert (summary.count, summary.sum) == (4, 315)


@given(st.lists(st.integers(0, 10**10), min_size=1, max_size=200), st.floats(0, 1))
def test_quantiles_are_exact_in_rank_and_close_in_value(values: list[int], rank: float) -> None:
    summary = Summary()
    for value in values:
        summary.observe(value, 5)
    true = sorted(values)[max(1, math.ceil(rank * len(values))) - 1]
    assert summary.quantiles([rank], 5)[0] == pytest.approx(true, rel=0.004)


def test_empty_summary_has_no_quantiles() -> None:
    assert math.isnan(Summary().quantiles([0.5], 10**15)[0])


def test_quantiles_forget_what_is_old_and_totals_do_not() -> None:
    summary = Summary()
    summary.observe(100, 0)
    summary.observe(200, SLOT_NS)
    assert summary.quantiles([0.5], (SLOT_COUNT - 1) * SLOT_NS) == [100]
    assert summary.quantiles([0.5], SLOT_COUNT * SLOT_NS) == [200]
    assert math.isnan(summary.quantiles([0.5], 1000 * SLOT_NS)[0])
    assert (summary.count, summary.sum) == (2, 300)
    summary.observe(7, 1001 * SLOT_NS)
    assert summary.quantiles([0.5], 1001 * SLOT_NS) == [7]


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 200)), min_size=1, max_size=60))
def test_the_window_is_five_slots(steps: list[tuple[int, int]]) -> None:
    summary = Summary()
    seen: list[tuple[int, int]] = []
    slot = 0
    for gap, value in steps:
        slot += gap // 6
        summary.observe(value, slot * SLOT_NS + gap)
        seen.append((slot, value))
    recent = [value for at, value in seen if at > slot - SLOT_COUNT]
    assert summary.quantiles([0.0, 1.0], slot * SLOT_NS) == [min(recent), max(recent)]


def test_a_value_below_zero_counts_as_zero() -> None:
    summary = Summary()
    summary.observe(-5000, 0)
    assert (summary.count, summary.sum, summary.quantiles([0.5], 0)) == (1, 0, [0])


def test_an_observation_that_comes_late_goes_to_the_current_slot() -> None:
    summary = Summary()
    summary.observe(1, 10 * SLOT_NS)
    summary.observe(2, 9 * SLOT_NS)
    assert summary.quantiles([1.0], 10 * SLOT_NS) == [2]


def test_memory_is_bounded() -> None:
    summary = Summary()
    for value in range(0, 10**9, 99_991):
        summary.observe(value, 0)
    assert sum(len(slot) for slot in summary._slots) < 256 + 128 * 24


def test_histogram_buckets_include_their_bound() -> None:
    histogram = Histogram([100, 500, 2000])
    for value in (0, 100, 101, 2000, 2001):
        histogram.observe(value)
    assert histogram.cumulative() == [2, 3, 4]
    assert (histogram.count, histogram.sum) == (5, 4202)
