"""The scheduling core under a virtual clock: thousands of arrivals, deaths and time-outs, no socket, no sleep."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tensorfarm.server.dispatch.batching import BatchPolicy, BatchScheduler
from tensorfarm.server.dispatch.dispatcher import Dispatcher
from tensorfarm.server.dispatch.instance import Instance, PlannedBatch
from tensorfarm.server.dispatch.queue import QueuePolicy, RequestQueue
from tensorfarm.server.dispatch.request import Request, Response
from tensorfarm.server.dispatch.scheduler import Scheduler
from tensorfarm.server.statistics import VersionStatistics
from tensorfarm.shm.placement import Inline
from tensorfarm.workers.contract.messages import Done, Fault, RequestBody, Result, Tensor
from tensorfarm.workers.contract.status import Code, StatusError, unavailable

DIED = unavailable("the worker died")


class Bench:
    """A dispatcher with its world: a clock that is set by hand, workers that are lists."""

    def __init__(self) -> None:
        self.now_ns = 1_000_000_000
        self.sent: list[PlannedBatch] = []
        self.alarm_ns: int | None = None
        self.soon: list[Callable[[], None]] = []
        self.responses: list[Response] = []
        self.given_back = 0
        self.wakings = 0
        self.dispatcher = Dispatcher(self.sent.append, self.soon.append, self._set_alarm, lambda: self.now_ns, self._stay_awake)

    def _stay_awake(self) -> None:
        self.wakings += 1

    def _set_alarm(self, at_ns: int | None) -> None:
        self.alarm_ns = at_ns

    def turn(self) -> None:
        """The end of the loop's turn."""
        soon = list(self.soon)
        self.soon.clear()
        for call in soon:
            call()

    def scheduler(
        self, policy: BatchPolicy | None = None, queue: RequestQueue | None = None, instances: int = 1, **more: object
    ) -> Scheduler:
        scheduler = BatchScheduler(
            policy or BatchPolicy(),
            RequestQueue(QueuePolicy()) if queue is None else queue,
            more.get("grouping"),
            itertools.count(1),
            VersionStatistics(),
        )
        for number in range(instances):
            self.dispatcher.instance_up(scheduler, Instance(number, f"m_{number}", execution_ns=1000))
        self.turn()
        return scheduler

    def request(self, batch_size: int = 1, width: int = 16, **fields: object) -> Request:
        tensor = Tensor("A", "INT8", (batch_size, width), Inline(memoryview(bytes(batch_size * width))))
        return Request(RequestBody("", batch_size, [tensor], [], {}), self.now_ns, self.responses.append, **fields)

    def submit(self, scheduler: Scheduler, *requests: Request) -> None:
        for request in requests:
            self.dispatcher.submit(scheduler, request)
        self.turn()

    def advance(self, ns: int) -> None:
        """Let time pass; the alarm rings when it should."""
        end_ns = self.now_ns + ns
        while self.alarm_ns is not None and self.alarm_ns <= end_ns:
            self.now_ns = max(self.now_ns, self.alarm_ns)
            self.dispatcher.alarm()
            self.turn()
        self.now_ns = end_ns

    def finish(self, batch: PlannedBatch, fault: Fault | None = None) -> None:
        """The worker answers a batch."""
        self.sent.remove(batch)
        results = [Result([], fault=fault) for _ in batch.requests]
        self.dispatcher.batch_done(Done(batch.number, results, self.now_ns, self.now_ns, self.now_ns, self.now_ns + 1000), self)
        self.turn()

    arena_number = 1

    def view(self, lease: object) -> memoryview:
        raise AssertionError("no output of these tests lies in an arena")

    def give_back(self, leases: list[object]) -> None:
        self.given_back += 1

    def answered(self) -> list[Request]:
        return [response.request for response in self.responses]


def sizes(batches: list[PlannedBatch]) -> list[list[int]]:
    return [[request.body.batch_size for request in batch.requests] for batch in batches]


def test_a_lone_request_goes_at_once() -> None:
    bench = Bench()
    scheduler = bench.scheduler(BatchPolicy(8, frozenset({8})))
    bench.submit(scheduler, bench.request())
    assert sizes(bench.sent) == [[1]]


def test_requests_of_one_turn_share_a_batch_up_to_the_maximum() -> None:
    bench = Bench()
    scheduler = bench.scheduler(BatchPolicy(4, frozenset({4})))
    bench.submit(scheduler, *[bench.request() for _ in range(6)])
    assert sizes(bench.sent) == [[1, 1, 1, 1], [1, 1]]


def test_a_request_that_does_not_fit_begins_the_next_batch() -> None:
    bench = Bench()
    scheduler = bench.scheduler(BatchPolicy(4, frozenset({4})))
    bench.submit(scheduler, bench.request(3), bench.request(2), bench.request(1))
    assert sizes(bench.sent) == [[3], [2, 1]]


def test_without_batching_requests_are_never_joined() -> None:
    bench = Bench()
    scheduler = bench.scheduler()
    bench.submit(scheduler, bench.request(), bench.request())
    assert sizes(bench.sent) == [[1], [1]]


def test_different_shapes_do_not_share_a_batch() -> None:
    bench = Bench()
    scheduler = bench.scheduler(BatchPolicy(8, frozenset({8})), grouping=lambda request: request.body.inputs[0].shape[1:])
    bench.submit(scheduler, bench.request(width=2), bench.request(width=2), bench.request(width=3))
    assert sizes(bench.sent) == [[1, 1], [1]]


def test_a_delay_waits_for_a_preferred_size_and_ends_on_time() -> None:
    bench = Bench()
    scheduler = bench.scheduler(BatchPolicy(8, frozenset({4}), 100_000))
    bench.submit(scheduler, bench.request())
    bench.advance(99_999)
    assert bench.sent == []
    bench.advance(1)
    assert sizes(bench.sent) == [[1]]
    bench.finish(bench.sent[0])
    bench.submit(scheduler, *[bench.request() for _ in range(5)])
    assert sizes(bench.sent) == [[1, 1, 1, 1]]
    bench.advance(100_000)
    assert sizes(bench.sent) == [[1, 1, 1, 1], [1]]


def test_without_a_delay_the_best_preferred_prefix_goes_first() -> None:
    bench = Bench()
    scheduler = bench.scheduler(BatchPolicy(8, frozenset({2, 4})))
    bench.submit(scheduler, *[bench.request() for _ in range(5)])
    assert sizes(bench.sent) == [[1, 1, 1, 1], [1]]


def test_a_slow_model_gets_no_batch_ahead_of_time() -> None:
    bench = Bench()
    scheduler = bench.scheduler()
    scheduler.instances[0].execution_ns = 100_000_000
    bench.submit(scheduler, bench.request(), bench.request())
    assert sizes(bench.sent) == [[1]]


@pytest.mark.parametrize(("count", "execution_ns", "wakings"), [(1, 0, 2), (8, 999_999, 2), (9, 0, 0), (1, 2_000_000, 0)])
def test_the_loop_is_to_stay_awake_for_few_requests_of_tiny_models(count: int, execution_ns: int, wakings: int) -> None:
    bench = Bench()
    scheduler = bench.scheduler(BatchPolicy(max_batch_size=16))
    scheduler.instances[0].execution_ns = execution_ns
    bench.submit(scheduler, *[bench.request() for _ in range(count)])
    bench.turn()
    bench.finish(bench.sent[0])
    assert bench.wakings == wakings


def test_a_full_queue_refuses() -> None:
    bench = Bench()
    scheduler = bench.scheduler(queue=RequestQueue(QueuePolicy(max_queue_size=2)), instances=0)
    bench.submit(scheduler, bench.request(), bench.request())
    with pytest.raises(StatusError, match=r"^\[request id: <id_unknown>\] Exceeds maximum queue size$") as raised:
        bench.submit(scheduler, bench.request())
    assert raised.value.code is Code.UNAVAILABLE
    assert scheduler.statistics.pending_count == 2
    assert scheduler.statistics.fail_count == 0


def test_a_deadline_fires_on_time_though_every_instance_is_busy() -> None:
    bench = Bench()
    scheduler = bench.scheduler(queue=RequestQueue(QueuePolicy(default_timeout_us=500)))
    running, waiting = bench.request(), bench.request()
    bench.submit(scheduler, running, waiting)
    bench.advance(499_999)
    assert bench.responses == []
    bench.advance(1)
    assert bench.answered() == [waiting]
    assert bench.responses[0].error is not None and bench.responses[0].error.message == "Request timeout expired"


@pytest.mark.parametrize(("allowed", "default_us", "wanted_us", "expected_us"), [
    (True, 500, 100, 100), (True, 500, 900, 500), (True, 0, 100, 0), (False, 500, 100, 500), (True, 500, 0, 500),
])  # fmt: skip
def test_a_timeout_counts_only_where_it_may_and_is_shorter(allowed: bool, default_us: int, wanted_us: int, expected_us: int) -> None:
    assert QueuePolicy(0, default_us, allowed).timeout_us(wanted_us) == expected_us


def test_an_expired_request_of_a_delaying_queue_runs_last() -> None:
    bench = Bench()
    scheduler = bench.scheduler(queue=RequestQueue(QueuePolicy(default_timeout_us=100, delay_when_expired=True)))
    busy, late = bench.request(), bench.request()
    bench.submit(scheduler, busy, late)
    bench.advance(100_000)
    fresh = bench.request()
    bench.submit(scheduler, fresh)
    bench.finish(bench.sent[0])
    assert bench.sent[0].requests == [fresh]
    bench.finish(bench.sent[0])
    assert bench.sent[0].requests == [late]


def test_higher_priorities_run_first() -> None:
    bench = Bench()
    scheduler = bench.scheduler(queue=RequestQueue(QueuePolicy(), 3, 2))
    bench.submit(scheduler, bench.request())
    low, unset, high = bench.request(priority=3), bench.request(), bench.request(priority=1)
    bench.submit(scheduler, low, unset, high)
    order = []
    while bench.sent:
        order.append(bench.sent[0].requests[0])
        bench.finish(bench.sent[0])
    assert order[1:] == [high, unset, low]


def test_a_death_costs_the_running_batch_only() -> None:
    bench = Bench()
    scheduler = bench.scheduler()
    first, second, third = requests = [bench.request() for _ in range(3)]
    bench.submit(scheduler, *requests)
    assert len(bench.sent) == 3
    instance = scheduler.instances[0]
    bench.dispatcher.instance_down(scheduler, instance, DIED)
    bench.turn()
    assert bench.answered() == [first] and bench.responses[0].error is DIED
    bench.sent.clear()
    bench.dispatcher.instance_up(scheduler, instance)
    bench.turn()
    assert [batch.requests for batch in bench.sent] == [[second], [third]]


def test_an_answer_of_a_dead_worker_is_ignored() -> None:
    bench = Bench()
    scheduler = bench.scheduler()
    bench.submit(scheduler, bench.request())
    batch = bench.sent[0]
    bench.dispatcher.instance_down(scheduler, scheduler.instances[0], DIED)
    bench.finish(batch)
    assert len(bench.responses) == 1 and bench.responses[0].error is DIED


def test_a_request_that_waited_at_too_many_dying_workers_is_given_up() -> None:
    bench = Bench()
    scheduler = bench.scheduler()
    instance = scheduler.instances[0]
    requests = [bench.request() for _ in range(4)]
    bench.submit(scheduler, *requests)
    for _ in range(3):
        bench.dispatcher.instance_down(scheduler, instance, DIED)
        bench.turn()
        bench.dispatcher.instance_up(scheduler, instance)
        bench.turn()
    assert set(map(id, bench.answered())) == {id(request) for request in requests[:3]}


def test_ordered_responses_leave_as_the_requests_came() -> None:
    bench = Bench()
    scheduler = bench.scheduler(BatchPolicy(preserve_ordering=True), instances=2)
    first, second, third = requests = [bench.request() for _ in range(3)]
    bench.submit(scheduler, *requests)
    by_request = {batch.requests[0]: batch for batch in bench.sent}
    bench.finish(by_request[second])
    assert bench.answered() == []
    bench.finish(by_request[first])
    assert bench.answered() == [first, second]
    bench.finish(by_request[third])
    assert bench.answered() == requests


def test_suspended_refuses_and_fails_what_waits_until_an_instance_is_back() -> None:
    bench = Bench()
    scheduler = bench.scheduler(instances=0)
    waiting = bench.request()
    bench.submit(scheduler, waiting)
    scheduler.suspend(unavailable("crash loop"))
    bench.dispatcher.touch(scheduler)
    bench.turn()
    assert bench.answered() == [waiting]
    with pytest.raises(StatusError, match="crash loop"):
        bench.submit(scheduler, bench.request())
    scheduler.suspend(None)
    bench.submit(scheduler, bench.request())


def failing(response: Response) -> None:
    raise LookupError("a receiver's own fault")


def told(bench: Bench) -> None:
    """A receiver's fault reaches the loop, and costs nobody else anything."""
    with pytest.raises(LookupError):
        bench.turn()


def test_a_receiver_that_fails_at_a_death_costs_nobody_else_an_answer() -> None:
    bench = Bench()
    scheduler = bench.scheduler(BatchPolicy(4, frozenset({4})))
    first, second = bench.request(), bench.request()
    first.on_response = failing
    bench.submit(scheduler, first, second)
    bench.dispatcher.instance_down(scheduler, scheduler.instances[0], DIED)
    assert bench.answered() == [second] and bench.dispatcher.in_flight == 0
    told(bench)


def test_a_receiver_that_fails_at_a_timeout_costs_no_other_model_its_turn() -> None:
    bench = Bench()
    impatient = bench.scheduler(queue=RequestQueue(QueuePolicy(default_timeout_us=1000)), instances=0)
    other = bench.scheduler()
    late = [bench.request(), bench.request()]
    late[0].on_response = failing
    bench.submit(impatient, *late)
    bench.now_ns += 1_000_000
    bench.dispatcher.touch(impatient)
    bench.submit(other, bench.request())
    assert bench.answered() == [late[1]] and len(bench.sent) == 1
    told(bench)


def test_what_a_request_holds_may_fail_to_come_back() -> None:
    """Whoever asked hears the answer all the same."""
    bench = Bench()
    scheduler = bench.scheduler()
    request = bench.request()
    request.on_finish = lambda: failing(Response(request, []))
    bench.submit(scheduler, request)
    with pytest.raises(LookupError):
        bench.finish(bench.sent[0])
    assert bench.answered() == [request]


def test_cancelling_the_last_request_leaves_a_model_idle() -> None:
    bench = Bench()
    scheduler = bench.scheduler(instances=0)
    request = bench.request()
    bench.submit(scheduler, request)
    idle: list[bool] = []
    bench.dispatcher.when_idle(scheduler, lambda: idle.append(scheduler.idle))
    bench.turn()
    assert idle == []
    bench.dispatcher.cancel(scheduler, request)
    bench.turn()
    assert idle == [True]


def test_stopping_takes_nothing_new_and_says_when_it_is_idle() -> None:
    bench = Bench()
    scheduler = bench.scheduler()
    bench.submit(scheduler, bench.request(), bench.request())
    scheduler.stopping = True
    with pytest.raises(StatusError, match="Server is stopping, scheduler for model has stopped accepting new inference requests"):
        bench.submit(scheduler, bench.request())
    idle: list[bool] = []
    bench.dispatcher.when_idle(scheduler, lambda: idle.append(True))
    bench.turn()
    while bench.sent:
        assert idle == []
        bench.finish(bench.sent[0])
    assert idle == [True]


class Storm(RuleBasedStateMachine):
    """Any interleaving of arrivals, cancels, answers, deaths and time ends every request exactly once."""

    @initialize(
        max_batch_size=st.integers(1, 6),
        delay_us=st.sampled_from([0, 0, 50, 400]),
        levels=st.integers(0, 2),
        timeout_us=st.sampled_from([0, 0, 300]),
        queue_size=st.sampled_from([0, 0, 5]),
        delaying=st.booleans(),
        ordered=st.booleans(),
    )
    def begin(
        self, max_batch_size: int, delay_us: int, levels: int, timeout_us: int, queue_size: int, delaying: bool, ordered: bool
    ) -> None:
        self.bench = Bench()
        self.policy = BatchPolicy(max_batch_size, frozenset({max_batch_size}), delay_us * 1000, ordered and not levels)
        queue = RequestQueue(QueuePolicy(queue_size, timeout_us, False, delaying), levels, 1)
        self.scheduler = self.bench.scheduler(self.policy, queue, 2, grouping=lambda request: request.body.inputs[0].shape[1:])
        self.all_instances = list(self.scheduler.instances)
        self.accepted: list[Request] = []
        self.finished: list[Request] = []

    @rule(batch_size=st.integers(1, 6), width=st.sampled_from([1, 2]), priority=st.integers(0, 3), turn=st.booleans())
    def arrive(self, batch_size: int, width: int, priority: int, turn: bool) -> None:
        request = self.bench.request(min(batch_size, self.policy.max_batch_size), width, priority=priority)
        request.on_finish = lambda: self.finished.append(request)
        try:
            self.bench.dispatcher.submit(self.scheduler, request)
        except StatusError as error:
            assert "maximum queue size" in error.message
        else:
            self.accepted.append(request)
        if turn:
            self.bench.turn()

    @precondition(lambda self: self.bench.sent)
    @rule(pick=st.integers(0, 100), failing=st.booleans())
    def answer(self, pick: int, failing: bool) -> None:
        # An instance answers its batches in the order it got them.
        firsts = [instance.batches[0] for instance in self.all_instances if instance.batches]
        self.bench.finish(firsts[pick % len(firsts)], Fault(Code.INTERNAL, "no") if failing else None)

    @precondition(lambda self: self.scheduler.instances)
    @rule(pick=st.integers(0, 1))
    def die(self, pick: int) -> None:
        instance = self.scheduler.instances[pick % len(self.scheduler.instances)]
        for batch in instance.batches:
            self.bench.sent.remove(batch)
        self.bench.dispatcher.instance_down(self.scheduler, instance, DIED)
        self.bench.turn()

    @precondition(lambda self: len(self.scheduler.instances) < 2)
    @rule()
    def revive(self) -> None:
        for instance in self.all_instances:
            if not instance.live:
                self.bench.dispatcher.instance_up(self.scheduler, instance)
        self.bench.turn()

    @precondition(lambda self: self.accepted)
    @rule(pick=st.integers(0, 1000))
    def cancel(self, pick: int) -> None:
        self.bench.dispatcher.cancel(self.scheduler, self.accepted[pick % len(self.accepted)])
        self.bench.turn()

    @rule(us=st.sampled_from([1, 60, 500]))
    def wait(self, us: int) -> None:
        self.bench.advance(us * 1000)

    @invariant()
    def consistent(self) -> None:
        if not hasattr(self, "bench"):
            return
        for batch in self.bench.sent:
            assert sum(request.body.batch_size for request in batch.requests) <= self.policy.max_batch_size
            assert len({request.body.inputs[0].shape[1:] for request in batch.requests}) == 1
        for instance in self.all_instances:
            assert len(instance.batches) <= (1 if self.scheduler.queue.limited else 3)
        assert len(set(map(id, self.bench.answered()))) == len(self.bench.responses)
        held = 0 if self.scheduler.order is None else sum(len(held) for held in self.scheduler.order._held.values())
        assert len(self.bench.responses) + held + self.scheduler.in_flight == len(self.accepted)
        assert self.scheduler.statistics.pending_count == len(self.scheduler.queue)
        assert self.bench.dispatcher.in_flight == self.scheduler.in_flight
        assert sum(level.size for level in self.scheduler.queue._levels) == len(self.scheduler.queue)
        assert [id(request) for request in self.finished] == [id(request) for request in self.bench.answered()]
        if self.scheduler.order is not None:
            patient = [request for request in self.bench.answered() if not request.cancelled]
            assert patient == [request for request in self.accepted if not request.cancelled][: len(patient)]

    def teardown(self) -> None:
        if not hasattr(self, "bench"):
            return
        self.revive()
        self.bench.turn()
        for _ in range(10_000):
            self.bench.advance(1_000_000)
            if not self.bench.sent:
                break
            self.answer(0, False)
        assert self.scheduler.idle
        assert self.scheduler.statistics.pending_count == 0
        assert len(self.bench.responses) == len(self.accepted)
        assert self.scheduler.statistics.success_count + self.scheduler.statistics.fail_count == len(self.accepted)


Storm.TestCase.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
TestStorm = Storm.TestCase
