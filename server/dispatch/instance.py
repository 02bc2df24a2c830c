"""A model instance as dispatch sees it: something with credits for batches."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ...workers.contract.messages import RequestBody

if TYPE_CHECKING:
    from .request import Request
    from .scheduler import Scheduler

TINY_NS = 1_000_000
SLOW_NS = 20_000_000


@dataclass(slots=True, eq=False)
class PlannedBatch:
    """A batch bound to an instance; ``number`` is unique in the server's life.

    Of requests that are answered one response at a time: ``answered`` are the indices of those that have had their last,
    and once the batch has run, ``open_count`` is how many have not. ``fillers`` are indices that stand for no request: the places
    of sequences that have none just now; they are among the ``answered``. ``bodies`` are what the instance gets, where that is
    not the requests' own.
    """

    number: int
    scheduler: Scheduler
    instance: Instance
    requests: list[Request]
    answered: set[int] = field(default_factory=set)
    open_count: int = 0
    fillers: frozenset[int] = frozenset()
    bodies: list[RequestBody] | None = None


@dataclass(slots=True, eq=False)
class Instance:
    """One instance: ``batches`` are those bound to it and not yet answered, the first of them running.

    ``execution_ns`` is a moving average of what a batch takes, 0 before the first; it decides how many wait at the worker. One that
    is ``leaving`` finishes what it has and gets nothing more. ``device`` is the GPU whose memory it reaches, -1 for none.
    """

    number: int
    name: str
    live: bool = False
    leaving: bool = False
    execution_ns: int = 0
    batches: deque[PlannedBatch] = field(default_factory=deque)
    device: int = -1

    def credits(self, staging: bool) -> int:
        """How many more batches it may be given.

        A tiny model gets two beside the running one, so that it never waits for the round trip; a
        slow one none, because a request bound early to a busy instance cannot go to one that is
        free sooner. One that has not run anything yet may be slow.
        """
        depth = 1
        if staging and 0 < self.execution_ns < SLOW_NS:
            depth = 3 if self.execution_ns < TINY_NS else 2
        return depth - len(self.batches)

    def learn(self, execution_ns: int) -> None:
        """Take a measured execution into the average (weight 1/8); the first one is the average."""
        self.execution_ns += (execution_ns - self.execution_ns) >> 3 if self.execution_ns else max(execution_ns, 1)
