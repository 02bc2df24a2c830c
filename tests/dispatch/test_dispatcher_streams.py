"""Requests that are answered one response at a time, before and after their batch has left its instance."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tensorfarm.server.dispatch.batching import BatchPolicy
from tensorfarm.server.dispatch.dispatcher import Dispatcher
from tensorfarm.server.dispatch.instance import PlannedBatch
from tensorfarm.server.dispatch.request import EndMark, Request, Response
from tensorfarm.server.dispatch.scheduler import Scheduler
from tensorfarm.shm.placement import Inline, Lease
from tensorfarm.workers.contract.messages import Done, Fault, Respond, Result, Tensor
from tensorfarm.workers.contract.status import Code, StatusError, unavailable

from .test_dispatcher import DIED, Bench

FOUR = BatchPolicy(4, frozenset({4}))


class StreamBench(Bench):
    """A bench whose workers speak as those of Python models do; ``recalled`` are the requests that they are told to forget.

    ``lent`` and ``returned`` are the offsets of the leases that outputs lie in.
    """

    def __init__(self) -> None:
        super().__init__()
        self.recalled: list[tuple[PlannedBatch, int]] = []
        self.lent: list[int] = []
        self.returned: list[int] = []
        self._offsets = itertools.count()
        self.dispatcher = Dispatcher(
            self.sent.append,
            self.soon.append,
            self._set_alarm,
            lambda: self.now_ns,
            recall=lambda batch, index: self.recalled.append((batch, index)),
        )

    arena_number = 3

    def give_back(self, leases: list[Any]) -> None:
        self.returned += [lease.offset for lease in leases]

    def result(self, fault: Fault | None = None) -> Result:
        """One output in the worker's arena, or a fault."""
        if fault is not None:
            return Result([], {}, fault)
        self.lent.append(next(self._offsets))
        return Result([Tensor("OUT", "INT8", (1,), Lease(3, self.lent[-1], 1)), Tensor("SMALL", "INT8", (1,), Inline(memoryview(b"a")))])

    def respond(self, batch: PlannedBatch, index: int, final: bool = False, end: bool = False, fault: Fault | None = None) -> None:
        """The model sends a response; ``end``: the end alone."""
        result = None if end else self.result(fault)
        self.dispatcher.respond(Respond(batch.number, index, result, final or end), self)
        self.turn()

    def done(self, batch: PlannedBatch, results: list[Result | None], failed: list[int] | None = None) -> None:
        """The batch leaves its instance."""
        if batch in self.sent:
            self.sent.remove(batch)
        now = self.now_ns
        self.dispatcher.batch_done(Done(batch.number, results, now, now, now, now + 1000, failed or []), self)
        self.turn()

    def release_all(self) -> None:
        for response in self.responses:
            response.release()

    def over(self, scheduler: Scheduler) -> None:
        """Nothing is counted, kept or lent any more."""
        self.release_all()
        assert self.dispatcher.in_flight == scheduler.in_flight == 0
        assert scheduler.statistics.pending_count == 0
        assert scheduler.idle and not scheduler.streaming and not self.dispatcher._batches
        assert sorted(self.returned) == self.lent


def kinds(responses: list[Response]) -> list[str]:
    return ["end" if type(one) is EndMark else "error" if one.error else "final" if one.final else "part" for one in responses]


def running(bench: StreamBench, count: int = 1, **fields: Any) -> tuple[Scheduler, PlannedBatch]:
    scheduler = bench.scheduler(FOUR, **fields)
    bench.submit(scheduler, *[bench.request() for _ in range(count)])
    return scheduler, bench.sent[0]


def test_responses_before_and_after_the_batch_has_left() -> None:
    bench = StreamBench()
    scheduler, batch = running(bench)
    finished: list[int] = []
    batch.requests[0].on_finish = lambda: finished.append(len(bench.responses))
    bench.respond(batch, 0)
    assert (kinds(bench.responses), bench.dispatcher.in_flight) == (["part"], 1)
    bench.done(batch, [None])
    assert scheduler.in_flight == 1 and not scheduler.instances[0].batches and not scheduler.idle
    bench.respond(batch, 0)
    bench.respond(batch, 0, final=True)
    assert kinds(bench.responses) == ["part", "part", "final"]
    assert finished == [2], "what the request holds goes once, before its last response"
    bench.respond(batch, 0, final=True)
    assert len(bench.responses) == 3, "what comes after the end is nobody's"
    bench.over(scheduler)
    assert scheduler.statistics.success_count == 1 and scheduler.statistics.fail_count == 0


def test_the_end_may_come_alone_and_before_the_batch_has_left() -> None:
    bench = StreamBench()
    scheduler, batch = running(bench, 2)
    bench.respond(batch, 1, end=True)
    assert kinds(bench.responses) == ["end"] and bench.dispatcher.in_flight == scheduler.in_flight == 1
    bench.done(batch, [None, None])
    bench.respond(batch, 0, end=True)
    assert kinds(bench.responses) == ["end", "end"]
    bench.over(scheduler)


def test_an_instance_is_free_while_its_streams_go_on() -> None:
    bench = StreamBench()
    scheduler, first = running(bench)
    scheduler.instances[0].execution_ns = 10**9
    bench.done(first, [None])
    scheduler.instances[0].execution_ns = 10**9
    bench.submit(scheduler, bench.request())
    (second,) = bench.sent
    bench.respond(second, 0, final=True)
    bench.done(second, [None])
    assert bench.answered() == second.requests
    bench.respond(first, 0, final=True)
    bench.over(scheduler)


def test_a_batch_of_both_kinds() -> None:
    bench = StreamBench()
    scheduler, batch = running(bench, 3)
    bench.done(batch, [bench.result(), None, bench.result(Fault(Code.NOT_FOUND, "no"))])
    assert bench.answered() == [batch.requests[0], batch.requests[2]]
    assert bench.responses[1].error is not None and bench.responses[1].error.code is Code.NOT_FOUND
    assert scheduler.in_flight == bench.dispatcher.in_flight == 1
    bench.respond(batch, 1, final=True)
    bench.over(scheduler)
    assert (scheduler.statistics.success_count, scheduler.statistics.fail_count) == (3, 0), "the model's own error counts as success"


def test_what_is_named_as_failed_counts_as_failed() -> None:
    bench = StreamBench()
    scheduler, batch = running(bench, 2)
    bench.respond(batch, 0, final=True)
    fault = Fault(Code.INTERNAL, "raised")
    bench.done(batch, [bench.result(fault), bench.result(fault)], failed=[0, 1])
    assert kinds(bench.responses) == ["final", "error"], "the first has had its answer"
    bench.over(scheduler)
    statistics = scheduler.statistics
    assert (statistics.success_count, statistics.fail_count, statistics.inference_count, statistics.execution_count) == (0, 2, 0, 1)


def test_an_error_after_responses() -> None:
    bench = StreamBench()
    scheduler, batch = running(bench)
    bench.respond(batch, 0)
    bench.respond(batch, 0, final=True, fault=Fault(Code.INTERNAL, "later"))
    bench.done(batch, [None])
    assert kinds(bench.responses) == ["part", "error"]
    bench.over(scheduler)


def test_a_result_of_a_request_that_was_answered_is_given_back() -> None:
    bench = StreamBench()
    scheduler, batch = running(bench)
    bench.respond(batch, 0, final=True)
    bench.done(batch, [bench.result()])
    assert kinds(bench.responses) == ["final"] and bench.returned == [1]
    bench.over(scheduler)


@pytest.mark.parametrize(("batch", "index"), [(99, 0), (0, 7), (0, -1)])
def test_what_belongs_to_no_request_is_given_back(batch: int, index: int) -> None:
    bench = StreamBench()
    scheduler, known = running(bench)
    bench.dispatcher.respond(Respond(batch or known.number, index, bench.result(), True), bench)
    assert bench.responses == [] and bench.returned == [0]
    bench.done(known, [bench.result()])
    bench.over(scheduler)


@pytest.mark.parametrize("left", [False, True], ids=["while it runs", "after its batch has left"])
def test_death_in_mid_stream(left: bool) -> None:
    bench = StreamBench()
    scheduler, batch = running(bench, 3)
    bench.respond(batch, 0)
    bench.respond(batch, 1, final=True)
    if left:
        bench.done(batch, [None, None, None])
    bench.dispatcher.instance_down(scheduler, scheduler.instances[0], DIED)
    bench.turn()
    assert kinds(bench.responses) == ["part", "final", "error", "error"]
    assert bench.answered()[2:] == [batch.requests[0], batch.requests[2]]
    bench.respond(batch, 0)
    assert len(bench.responses) == 4
    bench.over(scheduler)
    statistics = scheduler.statistics
    assert (statistics.success_count, statistics.fail_count) == ((3, 0) if left else (0, 2))


def test_a_running_request_that_nobody_waits_for_is_recalled() -> None:
    bench = StreamBench()
    scheduler, batch = running(bench, 2)
    bench.dispatcher.cancel(scheduler, batch.requests[1])
    assert bench.recalled == [(batch, 1)] and bench.responses == [] and batch.requests[1].cancelled
    bench.done(batch, [None, None])
    bench.dispatcher.cancel(scheduler, batch.requests[0])
    assert bench.recalled == [(batch, 1), (batch, 0)]
    bench.respond(batch, 0, end=True)
    bench.respond(batch, 1, end=True)
    bench.dispatcher.cancel(scheduler, batch.requests[0])
    assert len(bench.recalled) == 2, "it has ended"
    bench.over(scheduler)


def test_ordered_streams() -> None:
    bench = StreamBench()
    scheduler = bench.scheduler(BatchPolicy(preserve_ordering=True), instances=2)
    first, second = bench.request(), bench.request()
    bench.submit(scheduler, first, second)
    by_request = {batch.requests[0]: batch for batch in bench.sent}
    bench.respond(by_request[second], 0)
    bench.respond(by_request[second], 0, end=True)
    bench.done(by_request[second], [None])
    assert bench.responses == []
    bench.respond(by_request[first], 0)
    assert kinds(bench.responses) == ["part"]
    bench.respond(by_request[first], 0, final=True)
    assert kinds(bench.responses) == ["part", "final", "part", "end"]
    assert bench.answered() == [first, first, second, second]
    bench.done(by_request[first], [None])
    bench.over(scheduler)


def test_abandoned_streams() -> None:
    bench = StreamBench()
    scheduler, batch = running(bench)
    bench.respond(batch, 0)
    bench.done(batch, [None])
    bench.submit(scheduler, bench.request())
    bench.dispatcher.abandon([scheduler], unavailable("the end"))
    assert sorted(kinds(bench.responses)) == ["error", "error", "part"]
    bench.over(scheduler)


def test_the_first_of_several_responses_is_timed() -> None:
    bench = StreamBench()
    scheduler, batch = running(bench)
    bench.now_ns += 5000
    bench.respond(batch, 0)
    bench.now_ns += 5000
    bench.respond(batch, 0, final=True)
    assert batch.requests[0].begun
    bench.done(batch, [None])
    bench.over(scheduler)


# calls of models


def test_a_call_that_would_wait_for_its_own_caller_fails() -> None:
    bench = StreamBench()
    scheduler, batch = running(bench)
    call = bench.request(caller=batch.number)
    bench.dispatcher.submit(scheduler, call)
    bench.turn()
    (response,) = bench.responses
    assert response.request is call and response.error is not None and "would wait for ever" in response.error.message
    staged = [one for one in bench.sent if one is not batch]
    bench.done(batch, [bench.result()])
    for one in staged:
        bench.done(one, [bench.result()])
    assert bench.answered() == [call, *batch.requests]
    bench.over(scheduler)


def test_a_call_is_not_staged_behind_its_own_caller() -> None:
    """The other instance, busy with something else for now, can run it."""
    bench = StreamBench()
    scheduler = bench.scheduler(instances=2)
    bench.submit(scheduler, bench.request(), bench.request())
    caller, other = bench.sent
    call = bench.request(caller=caller.number)
    bench.dispatcher.submit(scheduler, call)
    bench.turn()
    assert not bench.responses and bench.sent == [caller, other]
    bench.done(other, [bench.result()])
    assert bench.sent[-1].requests == [call] and bench.sent[-1].instance is other.instance
    bench.done(bench.sent[-1], [bench.result()])
    bench.done(caller, [bench.result()])
    assert kinds(bench.responses) == ["final"] * 3
    bench.over(scheduler)


def test_a_circle_through_another_model_is_cut_at_the_call_that_closes_it() -> None:
    bench = StreamBench()
    one, other = bench.scheduler(), bench.scheduler()
    other._numbers = itertools.count(100)
    for scheduler in (one, other):
        scheduler.instances[0].execution_ns = 10**9
    bench.submit(one, bench.request())
    there, back = bench.request(caller=1), bench.request(caller=100)
    bench.dispatcher.submit(other, there)
    bench.turn()
    assert bench.responses == []
    bench.dispatcher.submit(one, back)
    bench.turn()
    assert bench.answered() == [back]
    for batch in list(bench.sent)[::-1]:
        bench.done(batch, [bench.result()])
    assert len(bench.responses) == 3
    bench.over(one)
    assert other.idle


def test_what_an_instance_waited_for_does_not_count_once_it_has_died() -> None:
    bench = StreamBench()
    one, other = bench.scheduler(), bench.scheduler()
    other._numbers = itertools.count(100)
    bench.submit(one, bench.request())
    there = bench.request(caller=1)
    bench.dispatcher.submit(other, there)
    bench.turn()
    instance = one.instances[0]
    bench.dispatcher.instance_down(one, instance, DIED)
    bench.dispatcher.instance_up(one, instance)
    bench.sent.pop(0)
    back = bench.request(caller=100)
    bench.dispatcher.submit(one, back)
    bench.turn()
    assert back not in bench.answered()
    for batch in list(bench.sent)[::-1]:
        bench.done(batch, [bench.result()])
    assert bench.responses[-1].error is None and len(bench.responses) == 3
    bench.over(one)


def test_a_refused_call_is_not_waited_for() -> None:
    bench = StreamBench()
    scheduler = bench.scheduler()
    scheduler.stopping = True
    with pytest.raises(StatusError):
        bench.dispatcher.submit(scheduler, bench.request(caller=1))
    assert bench.dispatcher._waits._waits == {}
    bench.over(scheduler)


class Streams(RuleBasedStateMachine):
    """Whatever the order of responses, ends, deaths and cancels: every request ends once, every lease comes back once."""

    @initialize(size=st.integers(1, 3), ordered=st.booleans())
    def begin(self, size: int, ordered: bool) -> None:
        self.bench = StreamBench()
        self.scheduler = self.bench.scheduler(BatchPolicy(size, frozenset({size}), 0, ordered), instances=2)
        self.instances = list(self.scheduler.instances)
        self.accepted: list[Request] = []
        self.finished: list[Request] = []
        self.recalls = 0
        # what the models still know: the batches that have left, and who in them has not ended
        self.streams: dict[PlannedBatch, set[int]] = {}
        self.gone: list[PlannedBatch] = []

    @rule(count=st.integers(1, 3))
    def arrive(self, count: int) -> None:
        for _ in range(count):
            request = self.bench.request()
            request.on_finish = lambda request=request: self.finished.append(request)  # type: ignore[misc]
            self.accepted.append(request)
            self.bench.dispatcher.submit(self.scheduler, request)
        self.bench.turn()

    def _open(self) -> list[tuple[PlannedBatch, int]]:
        """The requests a model may respond to now: those of running batches and of streams."""
        running = [instance.batches[0] for instance in self.instances if instance.batches]
        opened = [(batch, index) for batch in running for index in range(len(batch.requests)) if index not in batch.answered]
        return opened + [(batch, index) for batch, indices in self.streams.items() for index in indices]

    @precondition(lambda self: self._open())
    @rule(pick=st.integers(0, 1000), kind=st.sampled_from(["part", "final", "end", "fault"]))
    def respond(self, pick: int, kind: str) -> None:
        opened = self._open()
        batch, index = opened[pick % len(opened)]
        fault = Fault(Code.INTERNAL, "no") if kind == "fault" else None
        self.bench.respond(batch, index, final=kind != "part", end=kind == "end", fault=fault)
        if kind != "part" and batch in self.streams:
            self.streams[batch].discard(index)

    @precondition(lambda self: self.bench.sent)
    @rule(pick=st.integers(0, 1000), choices=st.lists(st.sampled_from(["none", "result", "fault"]), min_size=3, max_size=3))
    def done(self, pick: int, choices: list[str]) -> None:
        firsts = [instance.batches[0] for instance in self.instances if instance.batches]
        batch = firsts[pick % len(firsts)]
        fault = Fault(Code.INTERNAL, "no")
        made = {"none": lambda: None, "result": self.bench.result, "fault": lambda: self.bench.result(fault)}
        results: list[Result | None] = [made[choice]() for choice in choices[: len(batch.requests)]]  # type: ignore[operator]
        self.streams[batch] = {index for index, result in enumerate(results) if result is None and index not in batch.answered}
        self.bench.done(batch, results, [index for index, choice in enumerate(choices[: len(results)]) if choice == "fault"])
        self.gone.append(batch)

    @precondition(lambda self: self.gone)
    @rule(pick=st.integers(0, 1000))
    def speak_late(self, pick: int) -> None:
        """A response to a request that has ended, or whose instance has died."""
        batch = self.gone[pick % len(self.gone)]
        ended = [index for index in range(len(batch.requests)) if index not in self.streams.get(batch, ())]
        if ended:
            before = len(self.bench.responses)
            self.bench.respond(batch, ended[0], final=True)
            assert len(self.bench.responses) == before

    @precondition(lambda self: self.scheduler.instances)
    @rule(pick=st.integers(0, 1))
    def die(self, pick: int) -> None:
        instance = self.scheduler.instances[pick % len(self.scheduler.instances)]
        for batch in list(instance.batches):
            self.bench.sent.remove(batch)
            self.gone.append(batch)
        self.streams = {batch: indices for batch, indices in self.streams.items() if batch.instance is not instance}
        self.bench.dispatcher.instance_down(self.scheduler, instance, DIED)
        self.bench.turn()

    @rule()
    def revive(self) -> None:
        for instance in self.instances:
            if not instance.live:
                self.bench.dispatcher.instance_up(self.scheduler, instance)
        self.bench.turn()

    @precondition(lambda self: self.accepted)
    @rule(pick=st.integers(0, 1000))
    def cancel(self, pick: int) -> None:
        request = self.accepted[pick % len(self.accepted)]
        before = len(self.bench.recalled)
        waits = self.scheduler.queue.holds(request)
        ended = request in self.finished or any(one.request is request and one.final for one in self._held())
        self.bench.dispatcher.cancel(self.scheduler, request)
        self.bench.turn()
        assert len(self.bench.recalled) - before == (not waits and not ended)

    def _held(self) -> list[Response]:
        order = self.scheduler.order
        return [] if order is None else [response for held in order._held.values() for response in held]

    @invariant()
    def consistent(self) -> None:
        if not hasattr(self, "bench"):
            return
        responses = [*self.bench.responses, *self._held()]
        ends = [id(response.request) for response in responses if response.final]
        assert len(ends) == len(set(ends))
        assert len(ends) + self.scheduler.in_flight == len(self.accepted)
        assert self.bench.dispatcher.in_flight == self.scheduler.in_flight
        assert self.scheduler.statistics.pending_count == len(self.scheduler.queue)
        delivered = [response.request for response in self.bench.responses if response.final]
        assert [id(request) for request in self.finished] == [id(request) for request in delivered]
        ended: set[int] = set()
        for response in self.bench.responses:
            assert id(response.request) not in ended, "a response after the last one"
            if response.final:
                ended.add(id(response.request))
        if self.scheduler.order is not None:
            patient = [request for request in delivered if not request.cancelled]
            assert patient == [request for request in self.accepted if not request.cancelled][: len(patient)]

    def teardown(self) -> None:
        if not hasattr(self, "bench"):
            return
        self.revive()
        while self.bench.sent or self._open():
            for batch, index in self._open():
                self.bench.respond(batch, index, end=True)
            self.streams.clear()
            for batch in list(self.bench.sent):
                if len(batch.answered) == len(batch.requests):
                    self.bench.done(batch, [None] * len(batch.requests))
        assert len([response for response in self.bench.responses if response.final]) == len(self.accepted)
        self.bench.over(self.scheduler)


Streams.TestCase.settings = settings(max_examples=120, stateful_step_count=50, deadline=None)
TestStreams = Streams.TestCase
