"""Dynamic batching, and the default of one request at a time: which waiting requests form the next batch.

Source: Triton's dynamic batcher (``ModelDynamicBatching``).
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

from ...workers.contract.signature import Signature
from ...workers.contract.status import unavailable
from ..statistics import FailureReason, VersionStatistics
from .instance import Instance, PlannedBatch
from .ordering import ResponseOrder
from .queue import QueuePolicy, RequestQueue
from .request import Request
from .scheduler import Decision, Scheduler, stopping_error

Grouping = Callable[[Request], Hashable]
"""What must be equal for two requests of a model to share a batch."""


class Cut(enum.IntEnum):
    """Why a batch is no larger than it is.

    FULL: there was room for no more. PREFERRED: it has a preferred size. DELAY: its oldest request had waited as long as it may.
    SHAPE: the next request could not join it. DEADLINE: requests that would have been in it had to leave, their time being over.
    END: nothing else waited.
    """

    FULL = 0
    PREFERRED = 1
    DELAY = 2
    SHAPE = 3
    DEADLINE = 4
    END = 5


@dataclass(frozen=True, slots=True)
class BatchPolicy:
    """When pending requests become a batch. ``max_batch_size`` 1 means that requests are never joined.

    A batch of the ``largest_preferred`` size does not wait for more.
    """

    max_batch_size: int = 1
    preferred_sizes: frozenset[int] = frozenset()
    max_queue_delay_ns: int = 0
    preserve_ordering: bool = False
    largest_preferred: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "largest_preferred", max(self.preferred_sizes, default=self.max_batch_size))


Formed = tuple[list[Request], Cut, int | None]
"""The next batch and why it ends where it does; or, where it is empty, when waiting for a larger one ends, None where nothing waits."""


def form(
    policy: BatchPolicy,
    grouping: Grouping | None,
    waiting: Iterable[Request],
    now_ns: int,
    since_ns: Callable[[Request], int] = attrgetter("queued_ns"),
) -> Formed:
    """The next batch of ``waiting``, which is in the order of service. ``since_ns`` says when a request began to wait."""
    taken: list[Request] = []
    total = 0
    preferred_count = 0
    group: Hashable = None
    cut: Cut | None = None
    max_batch_size = policy.max_batch_size
    preferred_sizes = policy.preferred_sizes
    largest = policy.largest_preferred
    for request in waiting:
        size = request.body.batch_size
        if taken:
            if not preferred_count and total + size > largest:
                # Past the largest preferred size with none met, what there is counts as one.
                preferred_count = len(taken)
            if total + size > max_batch_size:
                cut = Cut.FULL
                break
            if grouping is not None and grouping(request) != group:
                cut = Cut.SHAPE
                break
        elif grouping is not None:
            group = grouping(request)
        taken.append(request)
        total += size
        if total in preferred_sizes:
            preferred_count = len(taken)
        if total >= max_batch_size:
            cut = Cut.FULL
            break
    delay_ns = policy.max_queue_delay_ns
    end_ns = min(map(since_ns, taken)) + delay_ns if delay_ns and taken else None
    overdue = end_ns is not None and now_ns >= end_ns
    if preferred_count and not overdue:
        if cut is None or preferred_count < len(taken):
            return taken[:preferred_count], Cut.PREFERRED, None
        return taken, cut, None
    if cut is None:
        if overdue:
            cut = Cut.DELAY
        elif not delay_ns:
            cut = Cut.END
        elif total >= largest:
            cut = Cut.PREFERRED
        else:
            return [], Cut.DELAY, end_ns
    return taken, cut, None


class BatchScheduler(Scheduler):
    """One queue in front of all instances.

    Instances of a model with a queue policy get work only when they are idle: what is staged could no longer be overtaken or time
    out. Nothing is sent before ``held_count`` requests wait for the first time (the original's test hook). A request that uses a GPU's
    memory waits for an instance on that GPU, and lets those behind it pass meanwhile.
    """

    ties = True

    def __init__(
        self,
        policy: BatchPolicy,
        queue: RequestQueue,
        grouping: Grouping | None,
        numbers: Iterator[int],
        statistics: VersionStatistics,
        held_count: int = 0,
    ) -> None:
        super().__init__(numbers, statistics)
        self.policy = policy
        self.queue = queue
        self.staging = not queue.limited
        self.order = ResponseOrder() if policy.preserve_ordering else None
        self._grouping = grouping
        self._held_count = held_count
        self._expired = False
        self._tied = False
        self._members: set[Instance] = set()
        self._closing: list[Instance] = []

    def _take_in(self, request: Request, now_ns: int) -> None:
        if self.stopping:
            raise stopping_error(request.label)
        self.queue.push(request, now_ns)
        if request.device >= 0:
            self._tied = True

    def instance_up(self, instance: Instance) -> None:
        """As ``Scheduler`` says."""
        super().instance_up(instance)
        self._members.add(instance)

    def instance_leaves(self, instance: Instance) -> None:
        """As ``Scheduler`` says."""
        super().instance_leaves(instance)
        self._members.discard(instance)
        if instance.live and self._only(instance):
            self._closing.append(instance)

    def instance_down(self, instance: Instance) -> list[Request]:
        """As ``Scheduler`` says."""
        if instance in self._closing:
            self._closing.remove(instance)
        return super().instance_down(instance)

    def free(self, instance: Instance) -> bool:
        """As ``Scheduler`` says; one that leaves has not finished while there is what only it can run."""
        return super().free(instance) and not (instance in self._closing and self._only(instance))

    def _only(self, instance: Instance) -> bool:
        """Do requests wait that are tied to an instance's GPU, on which no other will run them?"""
        if not self._tied or instance.device in {member.device for member in self._members}:
            return False
        return instance.device in self.queue.devices()

    def stranded(self) -> list[Request]:
        """What waits for a GPU on which no instance is alive."""
        if not self._tied:
            return []
        alive = {instance.device for instance in (*self.instances, *self._closing)}
        return list(self.queue.scan(without=alive | {-1}))

    def cancel(self, request: Request) -> bool:
        """As ``Scheduler`` says."""
        return self.queue.discard(request)

    def holds(self, request: Request) -> bool:
        """As ``Scheduler`` says."""
        return self.queue.holds(request)

    def waiting(self) -> Iterable[Request]:
        """As ``Scheduler`` says."""
        return self.queue.scan()

    def _put_back(self, requests: list[Request]) -> None:
        self.queue.push_front(requests)
        self._tied = self._tied or any([request.device >= 0 for request in requests])

    def decide(self, now_ns: int) -> Decision:
        """As ``Scheduler`` says."""
        decision = Decision()
        queue = self.queue
        for request in queue.expire(now_ns) if queue.limited else ():
            decision.refused.append((request, unavailable("Request timeout expired"), FailureReason.REJECTED))
        if self._suspended is not None:
            decision.refused += [(request, self._outage(request), FailureReason.REJECTED) for request in self.refuse_waiting()]
        # With nobody left, they are no reason why the next batch is small.
        if decision.refused or self._expired:
            self._expired = len(queue) > 0
        wake_ns: int | None = None
        while len(queue) and not (self._held_count and self._held()):
            if self._tied:
                wake_ns = self._decide_tied(decision, now_ns)
                break
            instance = self._free_instance()
            if instance is None:
                break
            requests, cut, wake_ns = form(self.policy, self._grouping, queue.scan(), now_ns)
            if not requests or self.limited:
                break
            decision.batches.append(self._bound(instance, requests, cut))
        if not len(queue):
            self._tied = False
            self._closing.clear()
        deadline_ns = queue.next_deadline_ns() if queue.limited else None
        if deadline_ns is not None and (wake_ns is None or deadline_ns < wake_ns):
            wake_ns = deadline_ns
        decision.wake_ns = wake_ns
        return decision

    def _decide_tied(self, decision: Decision, now_ns: int) -> int | None:
        """As ``decide``, where not every instance may run every request; returns when to ask again."""
        wake_ns: int | None = None
        passed_over: set[Instance] = set()
        while (instance := self._free_instance(passed_over)) is not None:
            requests, cut, later_ns = form(self.policy, self._grouping, self._waiting_for(instance), now_ns)
            if not requests or self.limited:
                passed_over.add(instance)
                if later_ns is not None:
                    wake_ns = later_ns if wake_ns is None else min(wake_ns, later_ns)
            else:
                decision.batches.append(self._bound(instance, requests, cut))
        self._closing = [instance for instance in self._closing if self._only(instance)]
        return wake_ns

    def _waiting_for(self, instance: Instance) -> Iterator[Request]:
        """What waits that an instance may run, in order. Where no instance is left on a GPU, any may find out what that means."""
        if not self._tied:
            return self.queue.scan()
        if instance in self._closing:
            return self.queue.scan(without=self.queue.devices() - {instance.device})
        return self.queue.scan(without={member.device for member in (*self._members, *self._closing)} - {instance.device, -1})

    def candidates(self, now_ns: int) -> list[Instance]:
        """As ``Scheduler`` says."""
        if not len(self.queue) or self._held():
            return []
        idle = [instance for instance in (*self.instances, *self._closing) if not instance.batches]
        if self._tied:
            return [instance for instance in idle if form(self.policy, self._grouping, self._waiting_for(instance), now_ns)[0]]
        return idle if form(self.policy, self._grouping, self.queue.scan(), now_ns)[0] else []

    def bind(self, instance: Instance, now_ns: int) -> PlannedBatch:
        """As ``Scheduler`` says."""
        requests, cut, _ = form(self.policy, self._grouping, self._waiting_for(instance), now_ns)
        return self._bound(instance, requests, cut)

    def _bound(self, instance: Instance, requests: list[Request], cut: Cut) -> PlannedBatch:
        self.queue.take(requests)
        if self._expired:
            self._expired = False
            if cut in (Cut.END, Cut.DELAY):
                cut = Cut.DEADLINE
        self.statistics.cuts[cut] += 1
        return self._planned(instance, requests)

    def _held(self) -> bool:
        """Is it too early for the first batch?"""
        if self.stopping or len(self.queue) >= self._held_count:
            self._held_count = 0
        return self._held_count > 0

    def _free_instance(self, passed_over: Collection[Instance] = ()) -> Instance | None:
        best = None
        staging = self.staging and not self.limited
        for instance in (*self.instances, *self._closing) if self._closing else self.instances:
            if instance in passed_over:
                continue
            if instance.credits(staging) > 0 and (best is None or len(instance.batches) < len(best.batches)):
                best = instance
        return best


def grouping_of(signature: Signature) -> Grouping | None:
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


def batch_scheduler(
    config: Any, signature: Signature, numbers: Iterator[int], statistics: VersionStatistics, held_count: int
) -> BatchScheduler:
    """The scheduler of a model without sequences: dynamic batching, or one request at a time."""
    batching = config.dynamic_batching if config.HasField("dynamic_batching") else None
    if batching is None:
        return BatchScheduler(BatchPolicy(), RequestQueue(QueuePolicy()), None, numbers, statistics)
    queue = RequestQueue(
        _queue_policy(batching.default_queue_policy),
        batching.priority_levels,
        batching.default_priority_level,
        {level: _queue_policy(policy) for level, policy in batching.priority_queue_policy.items()},
    )
    if not signature.batching:
        policy = BatchPolicy(preserve_ordering=batching.preserve_ordering)
        return BatchScheduler(policy, queue, None, numbers, statistics, held_count)
    policy = BatchPolicy(
        max_batch_size=config.max_batch_size,
        preferred_sizes=frozenset(batching.preferred_batch_size),
        max_queue_delay_ns=batching.max_queue_delay_microseconds * 1000,
        preserve_ordering=batching.preserve_ordering,
    )
    return BatchScheduler(policy, queue, grouping_of(signature), numbers, statistics, held_count)


def _queue_policy(message: Any) -> QueuePolicy:
    return QueuePolicy(
        max_queue_size=message.max_queue_size,
        default_timeout_us=message.default_timeout_microseconds,
        allow_timeout_override=message.allow_timeout_override,
        delay_when_expired=message.timeout_action == 1,
    )
