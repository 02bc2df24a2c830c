"""A model's waiting requests: priority levels, queue policies, deadlines. No clock, no I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from ...workers.contract.status import unavailable
from .deadlines import Deadlines
from .request import Request

_FEW_BLANKS = 32


@dataclass(frozen=True, slots=True)
class QueuePolicy:
    """How long and how many requests of one priority level may wait.

    Source: ``ModelQueuePolicy``. Sizes and times of 0 mean without limit.
    """

    max_queue_size: int = 0
    default_timeout_us: int = 0
    allow_timeout_override: bool = False
    delay_when_expired: bool = False

    def timeout_us(self, wanted_us: int) -> int:
        """The time a request may wait; its own wish counts only where it is shorter than a set default."""
        if self.allow_timeout_override and 0 < wanted_us < self.default_timeout_us:
            return wanted_us
        return self.default_timeout_us


@dataclass(slots=True)
class _Level:
    policy: QueuePolicy
    waiting: deque[Request] = field(default_factory=deque)
    delayed: deque[Request] = field(default_factory=deque)
    size: int = 0
    limited: bool = field(init=False)

    def __post_init__(self) -> None:
        self.limited = self.policy != QueuePolicy()


class RequestQueue:
    """Requests in the order they shall run: by level (1 first), then arrival, expired ones last.

    Requests that left early (cancelled, expired) stay in their deque as blanks, skipped when met.
    """

    def __init__(
        self, policy: QueuePolicy, level_count: int = 0, default_level: int = 0, overrides: dict[int, QueuePolicy] | None = None
    ) -> None:
        overrides = overrides or {}
        self._levels = [_Level(overrides.get(number, policy)) for number in range(1, max(1, level_count) + 1)]
        self._default_level = min(max(1, default_level), len(self._levels))
        self._waiting: set[int] = set()
        self._deadlines: Deadlines[Request] = Deadlines(self._expires)
        self._orders = 0
        self.limited = bool(level_count) or any(level.limited for level in self._levels)

    def __len__(self) -> int:
        return len(self._waiting)

    def _level_of(self, request: Request) -> _Level:
        number = request.priority if 1 <= request.priority <= len(self._levels) else self._default_level
        return self._levels[number - 1]

    def push(self, request: Request, now_ns: int) -> None:
        """Add a request that has just arrived. Raises StatusError UNAVAILABLE where its level is full."""
        level = self._level_of(request)
        policy = level.policy
        if policy.max_queue_size and level.size >= policy.max_queue_size:
            raise unavailable(f"{request.label}Exceeds maximum queue size")
        self._orders += 1
        request.order = self._orders
        request.queued_ns = now_ns
        if level.limited:
            timeout_us = policy.timeout_us(request.timeout_us)
            if timeout_us:
                request.deadline_ns = now_ns + timeout_us * 1000
                self._deadlines.add(request.deadline_ns, request)
        level.waiting.append(request)
        level.size += 1
        self._waiting.add(request.order)

    def push_front(self, requests: list[Request]) -> None:
        """Put requests back that had left for an instance which died: they are next again, in this order."""
        for request in reversed(requests):
            level = self._level_of(request)
            level.waiting.appendleft(request)
            level.size += 1
            self._waiting.add(request.order)
            if request.deadline_ns:
                self._deadlines.add(request.deadline_ns, request)

    def discard(self, request: Request) -> bool:
        """Take a request out, wherever it stands; False where it does not wait here."""
        if request.order not in self._waiting:
            return False
        self._waiting.remove(request.order)
        level = self._level_of(request)
        level.size -= 1
        self._drop_heads(level)
        if len(level.waiting) + len(level.delayed) > 2 * level.size + _FEW_BLANKS:
            # Behind one that waits for long, blanks would keep their requests' bodies.
            level.waiting = deque(one for one in level.waiting if one.order in self._waiting)
            level.delayed = deque(one for one in level.delayed if one.order in self._waiting)
        return True

    def holds(self, request: Request) -> bool:
        """Does a request wait here?"""
        return request.order in self._waiting

    def take(self, requests: list[Request]) -> None:
        """Take out requests that were the first of ``scan``."""
        waiting = self._waiting
        for request in requests:
            waiting.remove(request.order)
            self._level_of(request).size -= 1
        for level in self._levels:
            self._drop_heads(level)

    def take_out(self, requests: list[Request]) -> None:
        """Take out any requests of ``scan``: slower than ``take``, but in its midst nothing may be left of one that is put back later."""
        for request in requests:
            self._waiting.remove(request.order)
            level = self._level_of(request)
            level.size -= 1
            (level.waiting if request in level.waiting else level.delayed).remove(request)
        for level in self._levels:
            self._drop_heads(level)

    def _drop_heads(self, level: _Level) -> None:
        """Drop the blanks at the heads at once, so that a request which is put back later cannot meet its own."""
        waiting = self._waiting
        for lane in (level.waiting, level.delayed):
            while lane and lane[0].order not in waiting:
                lane.popleft()

    def scan(self) -> Iterator[Request]:
        """The waiting requests, next one first."""
        waiting = self._waiting
        for level in self._levels:
            for lane in (level.waiting, level.delayed):
                for request in lane:
                    if request.order in waiting:
                        yield request

    def expire(self, now_ns: int) -> list[Request]:
        """Take out the requests whose time is over; those of a delaying level only lose their place."""
        expired = []
        for request in self._deadlines.due(now_ns):
            if request.order not in self._waiting or not request.deadline_ns:
                continue  # it was put back, and has two entries
            level = self._level_of(request)
            if level.policy.delay_when_expired:
                level.waiting.remove(request)
                level.delayed.append(request)
                request.deadline_ns = 0
            else:
                self.discard(request)
                expired.append(request)
        return expired

    def next_deadline_ns(self) -> int | None:
        """When ``expire`` will next have something to do."""
        return self._deadlines.next_ns()

    def _expires(self, at_ns: int, request: Request) -> bool:
        return request.order in self._waiting and request.deadline_ns == at_ns
