"""Latency distributions for the metrics page: sliding quantiles and cumulative buckets."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence

SLOT_NS = 12_000_000_000
SLOT_COUNT = 5
MANTISSA_BITS = 8


def _cell(value: int) -> int:
    """The cell of a value: exact below 256, then 128 cells to each doubling (0.4 % off at most)."""
    shift = value.bit_length() - MANTISSA_BITS
    return value if shift <= 0 else shift << MANTISSA_BITS | value >> shift


def _middle(cell: int) -> int:
    shift = cell >> MANTISSA_BITS
    return ((cell & 255) << shift) + ((1 << shift) - 1) // 2


class Summary:
    """Count and sum of all observations, quantiles of those of the last minute.

    The minute is five slots of 12 s, the oldest dropped as a new one begins, so quantiles look back
    48 to 60 s. Memory is bounded whatever the rate. Values are integers (µs), one below zero taken as zero.
    """

    __slots__ = ("_epoch", "_slots", "count", "sum")

    def __init__(self) -> None:
        self.count = 0
        self.sum = 0
        self._epoch = 0
        self._slots: list[dict[int, int]] = [{} for _ in range(SLOT_COUNT)]

    def observe(self, value: int, now_ns: int) -> None:
        """Add one value, at a CLOCK_MONOTONIC time."""
        if value < 0:
            value = 0
        self.count += 1
        self.sum += value
        if now_ns // SLOT_NS > self._epoch:
            self._turn(now_ns // SLOT_NS)
        slot = self._slots[self._epoch % SLOT_COUNT]
        cell = _cell(value)
        slot[cell] = slot.get(cell, 0) + 1

    def _turn(self, epoch: int) -> None:
        for stale in range(max(self._epoch + 1, epoch - SLOT_COUNT + 1), epoch + 1):
            self._slots[stale % SLOT_COUNT].clear()
        self._epoch = epoch

    def quantiles(self, wanted: Iterable[float], now_ns: int) -> list[float]:
        """The values at the wanted ranks (0 to 1), NaN where nothing was observed lately."""
        if now_ns // SLOT_NS > self._epoch:
            self._turn(now_ns // SLOT_NS)
        merged: dict[int, int] = {}
        for slot in self._slots:
            for cell, count in slot.items():
                merged[cell] = merged.get(cell, 0) + count
        cells = sorted(merged)
        reached = []
        total = 0
        for cell in cells:
            total += merged[cell]
            reached.append(total)
        return [float(_middle(cells[bisect_left(reached, max(1, math.ceil(rank * total)))])) if total else math.nan for rank in wanted]


class Histogram:
    """Observations counted into buckets by upper bound, for ever."""

    __slots__ = ("_counts", "bounds", "count", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.count = 0
        self.sum = 0.0
        self._counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        """Add one value; a bucket includes its upper bound."""
        self.count += 1
        self.sum += value
        self._counts[bisect_left(self.bounds, value)] += 1

    def cumulative(self) -> list[int]:
        """Observations at or below each bound, in the bounds' order."""
        counts = []
        total = 0
        for count in self._counts[:-1]:
            total += count
            counts.append(total)
        return counts
