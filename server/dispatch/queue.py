"""A model's waiting requests: priority levels, queue policies, deadlines. No clock, no I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from heapq import merge
from operator import attrgetter

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
class _Lane:
    """What of a level one GPU alone may run, or any instance. No line begins with a blank."""

    waiting: deque[Request] = field(default_factory=deque)
    delayed: deque[Request] = field(default_factory=deque)

    def __len__(self) -> int:
        return len(self.waiting) + len(self.delayed)

    def drop_heads(self, present: Collection[int]) -> None:
        """Drop the blanks at the heads at once, so that a request which is put back later cannot meet its own."""
        for line in (self.waiting, self.delayed):
            while line and line[0].order not in present:
                line.popleft()

    def drop_blanks(self, present: Collection[int]) -> None:
        """Drop all of them."""
        self.waiting = deque(one for one in self.waiting if one.order in present)
        self.delayed = deque(one for one in self.delayed if one.order in present)


@dataclass(slots=True)
class _Level:
    """Requests of one priority: ``tied`` to GPUs, by their number, and those that are ``free`` to run anywhere."""

    policy: QueuePolicy
    free: _Lane = field(default_factory=_Lane)
    tied: dict[int, _Lane] = field(default_factory=dict)
    size: int = 0
    limited: bool = field(init=False)

    def __post_init__(self) -> None:
        self.limited = self.policy != QueuePolicy()

    def lane(self, device: int) -> _Lane:
        if device < 0:
            return self.free
        lane = self.tied.get(device)
        if lane is None:
            lane = self.tied[device] = _Lane()
        return lane

    def lanes(self) -> list[tuple[int, _Lane]]:
        return [(-1, self.free), *self.tied.items()]


class RequestQueue:
    """Requests in the order they shall run: by level (1 first), then arrival, expired ones last.

    Those of each GPU (``Request.device``, -1 for any) stand in a lane of their own, so that nobody has to walk past those of another.
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
        level.lane(request.device).waiting.append(request)
        level.size += 1
        self._waiting.add(request.order)

    def push_front(self, requests: list[Request]) -> None:
        """Put requests back that had left for an instance which died: they are next again, in this order."""
        for request in reversed(requests):
            level = self._level_of(request)
            level.lane(request.device).waiting.appendleft(request)
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
        level.lane(request.device).drop_heads(self._waiting)
        lanes = level.lanes()
        if sum([len(lane) for _, lane in lanes]) > 2 * level.size + _FEW_BLANKS:
            # Behind one that waits for long, blanks would keep their requests' bodies.
            for _, lane in lanes:
                lane.drop_blanks(self._waiting)
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
            level.free.drop_heads(waiting)
            for lane in level.tied.values():
                lane.drop_heads(waiting)

    def scan(self, without: Collection[int] = ()) -> Iterator[Request]:
        """The waiting requests, next one first, ``without`` those whose ``device`` is one of these."""
        waiting = self._waiting
        for level in self._levels:
            lines: tuple[Iterable[Request], ...] = (level.free.waiting, level.free.delayed)
            if level.tied or without:
                lanes = [lane for device, lane in level.lanes() if lane and device not in without]
                lines = (_by_arrival([lane.waiting for lane in lanes]), _by_arrival([lane.delayed for lane in lanes]))
            for line in lines:
                for request in line:
                    if request.order in waiting:
                        yield request

    def devices(self) -> set[int]:
        """For which GPUs something waits; -1 where something waits for any."""
        return {device for level in self._levels for device, lane in level.lanes() if lane}

    def expire(self, now_ns: int) -> list[Request]:
        """Take out the requests whose time is over; those of a delaying level only lose their place."""
        expired = []
        for request in self._deadlines.due(now_ns):
            if request.order not in self._waiting or not request.deadline_ns:
                continue  # it was put back, and has two entries
            level = self._level_of(request)
            if level.policy.delay_when_expired:
                lane = level.lane(request.device)
                lane.waiting.remove(request)
                lane.drop_heads(self._waiting)
                lane.delayed.append(request)
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


def _by_arrival(lines: list[deque[Request]]) -> Iterable[Request]:
    """Those of several lines; each keeps its own order."""
    return lines[0] if len(lines) == 1 else merge(*lines, key=attrgetter("order"))
