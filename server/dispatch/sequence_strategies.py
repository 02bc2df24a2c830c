"""The two ways in which the sequences of an instance share its batches: a row for each, or those first that have waited longest."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

from ...workers.contract.messages import RequestBody, RequestContext
from ..statistics import VersionStatistics
from .batching import BatchPolicy, Cut, Grouping, form
from .delay_hooks import NO_HOOKS, DelayHooks
from .instance import PlannedBatch
from .request import Request, Response
from .sequence import Lane, Slot
from .sequence_scheduler import SequencePolicy, SequenceScheduler


class DirectScheduler(SequenceScheduler):
    """Each sequence has a row of its own in its instance's batches; rows without a request just now are filled.

    A batch waits for ``delay_ns`` while fewer than ``utilization`` of the places have a request.
    """

    def __init__(
        self,
        policy: SequencePolicy,
        grouping: Grouping | None,
        numbers: Iterator[int],
        statistics: VersionStatistics,
        warn: Callable[[str], None],
        delay_ns: int = 0,
        utilization: float = 0.0,
        hooks: DelayHooks = NO_HOOKS,
    ) -> None:
        super().__init__(policy, numbers, statistics, warn, hooks)
        # A row's next request needs what the one before it leaves behind.
        self.staging = False
        self._grouping = grouping
        self._delay_ns = delay_ns
        self._utilization = utilization

    def _form(self, lane: Lane, now_ns: int) -> tuple[list[Slot], Cut] | int:
        slots = [slot for slot in lane.slots if slot.sequence is not None and slot.sequence.ready]
        oldest_ns = min(_next(slot).queued_ns for slot in slots)
        overdue = now_ns - oldest_ns >= self._delay_ns
        full = len(slots) == len(lane.slots)
        if not full and not overdue and len(slots) < self._utilization * len(lane.slots):
            return oldest_ns + self._delay_ns
        cut = Cut.FULL if full else Cut.DELAY if self._delay_ns and overdue else Cut.END
        if self._grouping is not None:
            group = self._grouping(_next(slots[0]))
            alike = [slot for slot in slots if self._grouping(_next(slot)) == group]
            if len(alike) < len(slots):
                slots, cut = alike, Cut.SHAPE
        return slots, cut

    def _enough(self, lane: Lane) -> bool:
        queued_count = sum(len(slot.sequence.waiting) for slot in lane.slots if slot.sequence is not None)
        backlog_count = sum(len(sequence.waiting) for sequence in self._backlog)
        return queued_count >= self._hooks.queued_count and backlog_count >= self._hooks.backlog_count

    def _bound(self, lane: Lane, formed: tuple[list[Slot], Cut]) -> PlannedBatch:
        rows = [slot.index for slot in formed[0]]
        # One whose request is of another shape has its row all the same.
        count = 1 + max(slot.index for slot in lane.slots if slot.sequence is not None and slot.sequence.ready)
        batch = super()._bound(lane, formed)
        assert batch.bodies is not None
        if count == len(rows):
            return batch
        placed = dict(zip(rows, zip(batch.requests, batch.bodies, strict=True), strict=True))
        empty = self._filler(batch.requests[0].body)
        fillers = [row for row in range(count) if row not in placed]
        for row in fillers:
            placed[row] = (Request(empty, 0, _nobody), empty)
        batch.requests = [placed[row][0] for row in range(count)]
        batch.bodies = [placed[row][1] for row in range(count)]
        batch.fillers = frozenset(fillers)
        batch.answered.update(fillers)
        return batch

    def _filler(self, like: RequestBody) -> RequestBody:
        """What stands in a row without a request: tensors like those of a real one, and controls that say so."""
        controls = self.policy.controls.tensors(0, False, 0)
        return RequestBody("", 1, [*like.inputs, *controls], [], {}, RequestContext())


def _next(slot: Slot) -> Request:
    assert slot.sequence is not None
    return slot.sequence.waiting[0]


def _nobody(response: Response) -> None:
    response.release()


class OldestScheduler(SequenceScheduler):
    """A dynamic batch of sequences at each instance, at most one request of each at a time, those first that have waited longest.

    Ordering is a matter of each instance by itself, as in the original, and an instance answers in the order in which it is given work.
    """

    def __init__(
        self,
        policy: SequencePolicy,
        batching: BatchPolicy,
        grouping: Grouping | None,
        numbers: Iterator[int],
        statistics: VersionStatistics,
        warn: Callable[[str], None],
        hooks: DelayHooks = NO_HOOKS,
    ) -> None:
        super().__init__(policy, numbers, statistics, warn, hooks)
        self._batching = batching
        self._grouping = grouping

    def _form(self, lane: Lane, now_ns: int) -> tuple[list[Slot], Cut] | int:
        waiting = [sequence.waiting[0] for sequence in itertools.islice(lane.ready, self._batching.max_batch_size)]
        requests, cut, wake_ns = form(self._batching, self._grouping, waiting, now_ns, lambda request: self._of[request].ready_ns)
        if not requests:
            assert wake_ns is not None
            return wake_ns
        return [slot for request in requests if (slot := self._of[request].slot) is not None], cut

    def _enough(self, lane: Lane) -> bool:
        return len(lane.ready) >= self._hooks.queued_count
