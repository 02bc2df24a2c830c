"""The queue in front of a model's instances: levels, lanes of GPUs, and requests that leave it from anywhere."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tensorfarm.server.dispatch.queue import QueuePolicy, RequestQueue
from tensorfarm.server.dispatch.request import Request
from tensorfarm.workers.contract.messages import RequestBody
from tensorfarm.workers.contract.status import StatusError

DEVICES = (-1, 0, 1, 2)
TIMEOUT_US = 5


def request(device: int = -1, priority: int = 0) -> Request:
    return Request(RequestBody("", 1, [], [], {}), 0, lambda response: None, priority=priority, device=device)


def test_the_requests_of_several_gpus_come_by_arrival() -> None:
    queue = RequestQueue(QueuePolicy())
    requests = [request(device) for device in (1, 0, -1, 1, 0)]
    for one in requests:
        queue.push(one, 0)
    assert list(queue.scan()) == requests
    assert list(queue.scan(without={0})) == [requests[0], requests[2], requests[3]]
    assert queue.devices() == {-1, 0, 1}
    queue.take([requests[0], requests[2]])
    assert list(queue.scan()) == [requests[1], requests[3], requests[4]] and queue.devices() == {0, 1}


def test_what_is_put_back_is_next_again_on_its_gpu() -> None:
    queue = RequestQueue(QueuePolicy())
    requests = [request(device) for device in (0, 1, 0, 1)]
    for one in requests:
        queue.push(one, 0)
    queue.take([requests[1], requests[3]])
    queue.push_front([requests[1], requests[3]])
    assert list(queue.scan()) == requests


def test_a_level_has_room_for_so_many_whatever_their_gpus() -> None:
    queue = RequestQueue(QueuePolicy(max_queue_size=2), 2, 1)
    for device in (0, 1):
        queue.push(request(device), 0)
    with pytest.raises(StatusError, match="Exceeds maximum queue size"):
        queue.push(request(2), 0)
    queue.push(request(2, priority=2), 0)


@dataclass
class Line:
    """What one lane is to hold, the plain way."""

    waiting: list[Request] = field(default_factory=list)
    delayed: list[Request] = field(default_factory=list)


class QueueMachine(RuleBasedStateMachine):
    """Against lists, one for each level and GPU, out of which requests are simply removed."""

    delaying = False

    def __init__(self) -> None:
        super().__init__()
        # Its second level has no time-out.
        self.queue = RequestQueue(QueuePolicy(default_timeout_us=TIMEOUT_US, delay_when_expired=self.delaying), 2, 1, {2: QueuePolicy()})
        self.lines = {(level, device): Line() for level in (1, 2) for device in DEVICES}
        self.away: list[list[Request]] = []
        self.now_ns = 0

    def line(self, one: Request) -> Line:
        return self.lines[one.priority, one.device]

    @property
    def present(self) -> list[Request]:
        return [one for line in self.lines.values() for one in (*line.waiting, *line.delayed)]

    @rule(device=st.sampled_from(DEVICES), level=st.sampled_from([1, 2]), count=st.integers(1, 20))
    def push(self, device: int, level: int, count: int) -> None:
        for _ in range(count):
            one = request(device, level)
            self.queue.push(one, self.now_ns)
            self.line(one).waiting.append(one)

    @rule(devices=st.sets(st.sampled_from(DEVICES)), count=st.integers(1, 5))
    def take(self, devices: set[int], count: int) -> None:
        taken = list(self.queue.scan(without=devices))[:count]
        self.queue.take(taken)
        self.away.append(taken)
        for one in taken:
            line = self.line(one)
            assert one is (line.waiting[0] if line.waiting else line.delayed[0])
            (line.waiting or line.delayed).pop(0)

    @precondition(lambda self: self.away)
    @rule(draw=st.data())
    def put_back(self, draw: st.DataObject) -> None:
        back = self.away.pop(draw.draw(st.integers(0, len(self.away) - 1)))
        self.queue.push_front(back)
        for one in reversed(back):
            self.line(one).waiting.insert(0, one)

    @rule(draw=st.data(), count=st.integers(1, 30))
    def discard(self, draw: st.DataObject, count: int) -> None:
        for _ in range(min(count, len(self.present))):
            one = draw.draw(st.sampled_from(self.present))
            assert self.queue.discard(one) and not self.queue.discard(one)
            line = self.line(one)
            (line.waiting if one in line.waiting else line.delayed).remove(one)

    @rule(us=st.integers(0, 4))
    def wait(self, us: int) -> None:
        self.now_ns += us * 1000
        late = [one for one in self.present if one.deadline_ns and one.deadline_ns <= self.now_ns]
        expired = self.queue.expire(self.now_ns)
        assert set(expired) == (set() if self.delaying else set(late))
        for one in sorted(late, key=lambda one: (one.queued_ns, one.order)):
            self.line(one).waiting.remove(one)
            if self.delaying:
                assert not one.deadline_ns
                self.line(one).delayed.append(one)

    @invariant()
    def agrees(self) -> None:
        scanned = list(self.queue.scan())
        assert len(scanned) == len(self.queue) and set(scanned) == set(self.present)
        assert all(self.queue.holds(one) for one in scanned)
        assert [one.priority for one in scanned] == sorted(one.priority for one in scanned)
        assert self.queue.devices() == {one.device for one in scanned}
        for (level, device), line in self.lines.items():
            found = [one for one in scanned if (one.priority, one.device) == (level, device)]
            if not self.delaying:
                assert found == [*line.waiting, *line.delayed]
            else:
                # Those whose time is over at once come in the order of their entries among the deadlines.
                assert found[: len(line.waiting)] == line.waiting and set(found) == {*line.waiting, *line.delayed}
                line.delayed = found[len(line.waiting) :]
        for devices in ({0}, {1, 2}, {-1, 0}, {0, 1, 2}):
            assert list(self.queue.scan(without=devices)) == [one for one in scanned if one.device not in devices]

    @invariant()
    def keeps_few_blanks(self) -> None:
        for level in self.queue._levels:
            assert sum(len(lane) for _, lane in level.lanes()) <= 2 * level.size + 32 + 1
            for _, lane in level.lanes():
                assert all(not line or self.queue.holds(line[0]) for line in (lane.waiting, lane.delayed))


class DelayingQueueMachine(QueueMachine):
    """As above, where those whose time is over only lose their place."""

    delaying = True


TestQueue = QueueMachine.TestCase
TestDelayingQueue = DelayingQueueMachine.TestCase
TestQueue.settings = TestDelayingQueue.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
