"""The scheduler of one model version: decides which requests form the next batch of which instance.

Sans-IO: events are method calls, ``decide`` returns what is to be done, the clock is an argument.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ...workers.contract.signature import Signature
from ...workers.contract.status import StatusError, unavailable
from ..statistics import VersionStatistics
from .instance import Instance, PlannedBatch
from .ordering import ResponseOrder
from .queue import QueuePolicy, RequestQueue
from .request import Request

MAX_ATTEMPTS = 2
"""How many workers a request may see die while it waits at them, before it is held to be the cause."""


@dataclass(frozen=True, slots=True)
class BatchPolicy:
    """When pending requests become a batch. ``max_batch_size`` 1 means that requests are never joined.

    Source: ``ModelDynamicBatching``.
    """

    max_batch_size: int = 1
    preferred_sizes: frozenset[int] = frozenset()
    max_queue_delay_ns: int = 0
    preserve_ordering: bool = False


@dataclass(slots=True)
class Decision:
    """What to do now: send ``batches``, answer ``expired`` with errors, ask again at ``wake_ns``."""

    batches: list[PlannedBatch] = field(default_factory=list)
    expired: list[tuple[Request, StatusError]] = field(default_factory=list)
    wake_ns: int | None = None


class Scheduler:
    """Queue, instances and outstanding batches of one model version.

    ``streaming`` are batches that have left their instance and of which requests wait for their last response. ``staging``:
    instances get work ahead of time; those of a model with a queue policy, or that calls others, only when they are idle.
    """

    def __init__(
        self,
        batch_policy: BatchPolicy,
        queue: RequestQueue,
        grouping: Callable[[Request], Hashable] | None,
        numbers: Iterator[int],
        statistics: VersionStatistics,
    ) -> None:
        self.policy = batch_policy
        self.queue = queue
        self.instances: list[Instance] = []
        self.outstanding: dict[int, PlannedBatch] = {}
        self.streaming: dict[int, PlannedBatch] = {}
        self.statistics = statistics
        self.stopping = False
        # A staged request could no longer be overtaken or time out.
        self.staging = not queue.limited
        self.order = ResponseOrder() if batch_policy.preserve_ordering else None
        self._grouping = grouping
        self._numbers = numbers
        self._largest_preferred = max(batch_policy.preferred_sizes, default=batch_policy.max_batch_size)
        self._suspended: StatusError | None = None

    @property
    def idle(self) -> bool:
        """Nothing waits, nothing runs, and nothing that ran has responses to come."""
        return not self.outstanding and not len(self.queue) and not self.streaming

    @property
    def in_flight(self) -> int:
        """Requests waiting, running or with responses to come."""
        running = sum(len(batch.requests) - len(batch.answered) for batch in self.outstanding.values())
        return len(self.queue) + running + sum(batch.open_count for batch in self.streaming.values())

    def submit(self, request: Request, now_ns: int) -> None:
        """Take a validated request in. Raises StatusError UNAVAILABLE: stopping, suspended or full."""
        if self.stopping:
            raise unavailable(f"{request.label}Server is stopping, scheduler for model has stopped accepting new inference requests")
        if self._suspended is not None:
            raise StatusError(self._suspended.code, f"{request.label}{self._suspended.message}")
        self.queue.push(request, now_ns)

    def suspend(self, error: StatusError | None) -> None:
        """Refuse requests with ``error`` until called with None: no instance is to be expected soon."""
        self._suspended = error

    def cancel(self, request: Request) -> bool:
        """Take a request out of the queue; False where it already runs or is done."""
        return self.queue.discard(request)

    def instance_up(self, instance: Instance) -> None:
        """An instance can take batches."""
        instance.live = True
        if instance not in self.instances and not instance.leaving:
            self.instances.append(instance)

    def instance_leaves(self, instance: Instance) -> None:
        """An instance gets no more batches."""
        instance.leaving = True
        if instance in self.instances:
            self.instances.remove(instance)

    def free(self, instance: Instance) -> bool:
        """Does an instance run nothing, and has nothing that ran on it responses to come?"""
        return not instance.batches and not any(batch.instance is instance for batch in self.streaming.values())

    def instance_down(self, instance: Instance) -> list[Request]:
        """An instance is gone. Returns the requests that were running and are lost.

        What was only staged at it goes back to the head of the queue, unless it has seen too many
        instances die: then it counts as lost too.
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
        self.queue.push_front([request for request in staged if not request.cancelled])
        return lost + [request for request in staged if request.cancelled]

    def streams_down(self, instance: Instance) -> list[Request]:
        """An instance is gone, and with it the responses that were still to come of batches which had left it."""
        lost = []
        for batch in [batch for batch in self.streaming.values() if batch.instance is instance]:
            del self.streaming[batch.number]
            lost += [request for index, request in enumerate(batch.requests) if index not in batch.answered]
        return lost

    def find(self, request: Request) -> tuple[PlannedBatch, int] | None:
        """The batch that a request which has left the queue is in, and its index there, if it waits for anything."""
        for batch in (*self.outstanding.values(), *self.streaming.values()):
            if request in batch.requests:
                index = batch.requests.index(request)
                return None if index in batch.answered else (batch, index)
        return None

    def done(self, batch: PlannedBatch, execution_ns: int) -> None:
        """A batch has been answered; its instance has a credit again."""
        del self.outstanding[batch.number]
        batches = batch.instance.batches
        if batches and batches[0] is batch:
            batches.popleft()
        else:
            batches.remove(batch)
        batch.instance.learn(execution_ns)

    def decide(self, now_ns: int) -> Decision:
        """Form every batch that should go now, and name the requests whose time is over."""
        decision = Decision()
        queue = self.queue
        for request in queue.expire(now_ns):
            decision.expired.append((request, unavailable("Request timeout expired")))
        if self._suspended is not None:
            for request in list(queue.scan()):
                queue.discard(request)
                decision.expired.append((request, StatusError(self._suspended.code, request.label + self._suspended.message)))
        wake_ns: int | None = None
        while len(queue):
            instance = self._free_instance()
            if instance is None:
                break
            requests, wake_ns = self._form(now_ns)
            if not requests:
                break
            queue.take(requests)
            batch = PlannedBatch(next(self._numbers), self, instance, requests)
            instance.batches.append(batch)
            self.outstanding[batch.number] = batch
            decision.batches.append(batch)
        deadline_ns = queue.next_deadline_ns()
        if deadline_ns is not None and (wake_ns is None or deadline_ns < wake_ns):
            wake_ns = deadline_ns
        decision.wake_ns = wake_ns
        return decision

    def _free_instance(self) -> Instance | None:
        best = None
        for instance in self.instances:
            if instance.credits(self.staging) > 0 and (best is None or len(instance.batches) < len(best.batches)):
                best = instance
        return best

    def _form(self, now_ns: int) -> tuple[list[Request], int | None]:
        """The next batch, or none and the time at which waiting for a larger one ends."""
        policy = self.policy
        taken: list[Request] = []
        total = 0
        preferred_count = 0
        oldest_ns = now_ns
        group: Hashable = None
        complete = False
        for request in self.queue.scan():
            size = request.body.batch_size
            if taken:
                if total + size > policy.max_batch_size or (self._grouping is not None and self._grouping(request) != group):
                    complete = True
                    break
            elif self._grouping is not None:
                group = self._grouping(request)
            taken.append(request)
            total += size
            oldest_ns = min(oldest_ns, request.queued_ns)
            if total in policy.preferred_sizes:
                preferred_count = len(taken)
            if total >= policy.max_batch_size:
                complete = True
                break
        delay_ns = policy.max_queue_delay_ns
        overdue = delay_ns > 0 and now_ns - oldest_ns >= delay_ns
        if preferred_count and not overdue:
            return taken[:preferred_count], None
        if complete or overdue or delay_ns == 0 or total >= self._largest_preferred:
            return taken, None
        return [], oldest_ns + delay_ns


def grouping_of(signature: Signature) -> Callable[[Request], Hashable] | None:
    """What must be equal for two requests of a model to share a batch; None where anything may.

    The shapes of variable inputs (without the batch dim) and, with optional inputs, which are there.
    """
    variable = frozenset(spec.name for spec in signature.inputs.values() if spec.variable and not spec.allow_ragged_batch)
    optional = any(spec.optional for spec in signature.inputs.values())
    if not variable and not optional:
        return None

    def group(request: Request) -> Hashable:
        tensors = request.body.inputs
        # Clients may list inputs in any order.
        key = {tensor.name: tensor.shape[1:] if tensor.name in variable else () for tensor in tensors}
        return tuple(sorted(key.items()))

    return group


def scheduler_of(config: Any, signature: Signature, numbers: Iterator[int], statistics: VersionStatistics) -> Scheduler:
    """The scheduler that a final ``ModelConfig`` asks for: dynamic batching, or one request at a time."""
    batching = config.dynamic_batching if config.HasField("dynamic_batching") else None
    if batching is None:
        return Scheduler(BatchPolicy(), RequestQueue(QueuePolicy()), None, numbers, statistics)
    queue = RequestQueue(
        _queue_policy(batching.default_queue_policy),
        batching.priority_levels,
        batching.default_priority_level,
        {level: _queue_policy(policy) for level, policy in batching.priority_queue_policy.items()},
    )
    if not signature.batching:
        return Scheduler(BatchPolicy(preserve_ordering=batching.preserve_ordering), queue, None, numbers, statistics)
    policy = BatchPolicy(
        max_batch_size=config.max_batch_size,
        preferred_sizes=frozenset(batching.preferred_batch_size),
        max_queue_delay_ns=batching.max_queue_delay_microseconds * 1000,
        preserve_ordering=batching.preserve_ordering,
    )
    return Scheduler(policy, queue, grouping_of(signature), numbers, statistics)


def _queue_policy(message: Any) -> QueuePolicy:
    return QueuePolicy(
        max_queue_size=message.max_queue_size,
        default_timeout_us=message.default_timeout_microseconds,
        allow_timeout_override=message.allow_timeout_override,
        delay_when_expired=message.timeout_action == 1,
    )
