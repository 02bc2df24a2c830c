"""What every scheduler of a model version has: its instances, the batches bound to them, and the word on its end.

Sans-IO: events are method calls, ``decide`` returns what is to be done, the clock is an argument. What waits, and which of it runs
next, is the matter of the subclasses: ``batching.BatchScheduler`` and ``sequence_scheduler.SequenceScheduler``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field

from ...workers.contract.status import StatusError, unavailable
from ..statistics import FailureReason, VersionStatistics
from .instance import Instance, PlannedBatch
from .ordering import ResponseOrder
from .request import Request

MAX_ATTEMPTS = 2
"""How many workers a request may see die while it waits at them, before it is held to be the cause."""

Refused = tuple[Request, StatusError, FailureReason]
"""A request that leaves before it runs, and why."""


@dataclass(slots=True)
class Decision:
    """What to do now: send ``batches``, answer ``refused`` with errors, ask again at ``wake_ns``."""

    batches: list[PlannedBatch] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    wake_ns: int | None = None


class Scheduler(ABC):
    """Instances and outstanding batches of one model version.

    ``streaming`` are batches that have left their instance and of which requests wait for their last response. ``staging``:
    instances get work ahead of time. ``limited``: a rate limiter says when which instance runs: ``decide`` leaves the binding to
    whoever asks for ``candidates``. ``ties``: requests can be tied to a GPU. ``draining``: the server is about to end, and nothing is to
    begin that needs further requests. ``in_flight`` counts the requests that are not answered; the dispatcher keeps it.
    """

    ties = False

    def __init__(self, numbers: Iterator[int], statistics: VersionStatistics) -> None:
        self.instances: list[Instance] = []
        self.outstanding: dict[int, PlannedBatch] = {}
        self.streaming: dict[int, PlannedBatch] = {}
        self.statistics = statistics
        self.stopping = False
        self.draining = False
        self.staging = True
        self.limited = False
        self.in_flight = 0
        self.order: ResponseOrder | None = None
        self._numbers = numbers
        self._suspended: StatusError | None = None

    @property
    def idle(self) -> bool:
        """Nothing waits, nothing runs, and nothing that ran has responses to come."""
        return not self.in_flight and not self.outstanding

    # requests

    def submit(self, request: Request, now_ns: int) -> None:
        """Take a validated request in. Raises StatusError, and then nothing has changed."""
        if self._suspended is not None:
            raise self._outage(request)
        self._take_in(request, now_ns)

    @abstractmethod
    def _take_in(self, request: Request, now_ns: int) -> None:
        """Have a request wait. Raises StatusError: stopping, full, or not what this scheduler takes."""

    @abstractmethod
    def cancel(self, request: Request) -> bool:
        """Take a waiting request out; False where it already runs or is done."""

    @abstractmethod
    def holds(self, request: Request) -> bool:
        """Does a request wait here?"""

    @abstractmethod
    def waiting(self) -> Iterable[Request]:
        """Every request that waits."""

    def stranded(self) -> list[Request]:
        """What waits for something that none of the instances which are alive has."""
        return []

    def hosts(self, request: Request) -> Collection[Instance]:
        """The instances that could run a waiting request."""
        return self.instances

    def suspend(self, error: StatusError | None) -> None:
        """Refuse requests with ``error`` until called with None: no instance is to be expected soon."""
        self._suspended = error

    def _outage(self, request: Request) -> StatusError:
        assert self._suspended is not None
        return StatusError(self._suspended.code, f"{request.label}{self._suspended.message}")

    def find(self, request: Request) -> tuple[PlannedBatch, int] | None:
        """The batch that a request which has left the queue is in, and its index there, if it waits for anything."""
        for batch in (*self.outstanding.values(), *self.streaming.values()):
            if request in batch.requests:
                index = batch.requests.index(request)
                return None if index in batch.answered else (batch, index)
        return None

    # instances

    def instance_up(self, instance: Instance) -> None:
        """An instance can take batches."""
        instance.live = True
        if instance not in self.instances and not instance.leaving:
            self.instances.append(instance)

    def instance_leaves(self, instance: Instance) -> None:
        """An instance gets no more batches, but for what only it can run."""
        instance.leaving = True
        if instance in self.instances:
            self.instances.remove(instance)

    def free(self, instance: Instance) -> bool:
        """Does an instance run nothing, and has nothing that ran on it responses to come?"""
        return not instance.batches and not any(batch.instance is instance for batch in self.streaming.values())

    def instance_down(self, instance: Instance) -> list[Request]:
        """An instance is gone. Returns the requests that were running and are lost.

        What was only staged at it waits again, ahead of the others, unless it has seen too many instances die: then it
        counts as lost too.
        """
        instance.live = False
        if instance in self.instances:
            self.instances.remove(instance)
        lost: list[Request] = []
        staged: list[Request] = []
        for position, batch in enumerate(instance.batches):
            del self.outstanding[batch.number]
            for index, request in enumerate(batch.requests):
                if index in batch.answered:
                    continue
                request.attempts += 1
                (lost if position == 0 or request.attempts > MAX_ATTEMPTS else staged).append(request)
        instance.batches.clear()
        lost += [request for request in staged if request.cancelled]
        self._put_back([request for request in staged if not request.cancelled])
        return lost

    @abstractmethod
    def _put_back(self, requests: list[Request]) -> None:
        """Requests that had left for an instance which died wait again, in this order, ahead of the others."""

    def streams_down(self, instance: Instance) -> list[Request]:
        """An instance is gone, and with it the responses that were still to come of batches which had left it."""
        lost = []
        for batch in [batch for batch in self.streaming.values() if batch.instance is instance]:
            del self.streaming[batch.number]
            lost += [request for index, request in enumerate(batch.requests) if index not in batch.answered]
        return lost

    # batches

    @abstractmethod
    def decide(self, now_ns: int) -> Decision:
        """Form every batch that should go now, and name the requests that leave unrun."""

    @abstractmethod
    def candidates(self, now_ns: int) -> list[Instance]:
        """Where ``limited``: the idle instances for which ``bind`` would form a batch now."""

    @abstractmethod
    def bind(self, instance: Instance, now_ns: int) -> PlannedBatch:
        """Where ``limited``: form the batch of a candidate."""

    def _planned(self, instance: Instance, requests: list[Request]) -> PlannedBatch:
        batch = PlannedBatch(next(self._numbers), self, instance, requests)
        instance.batches.append(batch)
        self.outstanding[batch.number] = batch
        return batch

    def done(self, batch: PlannedBatch, execution_ns: int, now_ns: int, again: Collection[int] = ()) -> Collection[int]:
        """A batch has run; its instance has a credit again. Returns which of ``again``, the indices of requests that the model wants
        once more, have another round before them.
        """
        del self.outstanding[batch.number]
        batches = batch.instance.batches
        if batches and batches[0] is batch:
            batches.popleft()
        else:
            batches.remove(batch)
        batch.instance.learn(execution_ns)
        return ()

    def refuse_waiting(self) -> list[Request]:
        """Take out everything that waits."""
        waiting = list(self.waiting())
        for request in waiting:
            self.cancel(request)
        return waiting


def stopping_error(label: str = "") -> StatusError:
    """What a request is told that comes after the end of its version has begun."""
    return unavailable(f"{label}Server is stopping, scheduler for model has stopped accepting new inference requests")
