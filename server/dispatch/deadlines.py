"""Times at which something is due, the next one first."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")

_FEW = 64


class Deadlines(Generic[Item]):
    """A heap of times, each with what is due then. Entries are not taken out: ``holds(at_ns, item)`` says whether one still counts.

    Those that do not are dropped when they come to the top, and all of them whenever the heap has doubled: it never holds more
    than twice as many entries as count, or a few.
    """

    def __init__(self, holds: Callable[[int, Item], bool]) -> None:
        self._holds = holds
        self._heap: list[tuple[int, int, Item]] = []
        self._numbers = itertools.count()
        self._most = _FEW

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, at_ns: int, item: Item) -> None:
        """Something is due at a time."""
        heap = self._heap
        if len(heap) >= self._most:
            # Before it is there: its owner may not hold it yet.
            holds = self._holds
            self._heap = heap = [entry for entry in heap if holds(entry[0], entry[2])]
            heapq.heapify(heap)
            self._most = max(_FEW, 2 * len(heap))
        heapq.heappush(heap, (at_ns, next(self._numbers), item))

    def next_ns(self) -> int | None:
        """The next time that counts."""
        heap = self._heap
        while heap and not self._holds(heap[0][0], heap[0][2]):
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def due(self, now_ns: int) -> list[Item]:
        """Take out what is due by now, in the order of its times."""
        heap = self._heap
        found = []
        while heap and heap[0][0] <= now_ns:
            at_ns, _, item = heapq.heappop(heap)
            if self._holds(at_ns, item):
                found.append(item)
        return found
