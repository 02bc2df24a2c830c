"""Instances that leave finish what they have and get nothing more; whoever waits for that is told once."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tensorfarm.server.dispatch.batching import BatchPolicy
from tensorfarm.server.dispatch.instance import Instance
from tensorfarm.server.dispatch.request import Request
from tensorfarm.workers.contract.messages import Done, Respond, Result
from tensorfarm.workers.contract.status import unavailable

from .test_dispatcher import DIED, Bench


def test_one_that_has_nothing_is_free_at_the_end_of_the_turn() -> None:
    bench = Bench()
    scheduler = bench.scheduler(instances=2)
    told: list[str] = []
    bench.dispatcher.when_free(scheduler, scheduler.instances[0], lambda: told.append("free"))
    assert told == []
    bench.turn()
    bench.turn()
    assert told == ["free"] and [instance.number for instance in scheduler.instances] == [1]


def test_it_finishes_what_was_staged_as_well() -> None:
    bench = Bench()
    scheduler = bench.scheduler()
    [instance] = scheduler.instances
    bench.submit(scheduler, bench.request(), bench.request(), bench.request(), bench.request())
    assert len(bench.sent) == 3
    told: list[str] = []
    bench.dispatcher.when_free(scheduler, instance, lambda: told.append("free"))
    bench.turn()
    while bench.sent:
        assert told == []
        bench.finish(bench.sent[0])
    assert told == ["free"] and len(bench.responses) == 3 and len(scheduler.queue) == 1
    bench.dispatcher.instance_up(scheduler, Instance(9, "m_9"))
    bench.turn()
    bench.finish(bench.sent[0])
    assert len(bench.responses) == 4


def test_responses_that_are_still_to_come_count() -> None:
    bench = Bench()
    scheduler = bench.scheduler()
    [instance] = scheduler.instances
    bench.submit(scheduler, bench.request())
    [batch] = bench.sent
    told: list[str] = []
    bench.dispatcher.when_free(scheduler, instance, lambda: told.append("free"))
    bench.dispatcher.batch_done(Done(batch.number, [None], 0, 0, 0, 0, failed=[]), bench)
    bench.turn()
    assert told == [] and not instance.batches
    bench.dispatcher.respond(Respond(batch.number, 0, Result([]), True), bench)
    bench.turn()
    assert told == ["free"]


def test_one_that_dies_while_it_leaves_is_free() -> None:
    bench = Bench()
    scheduler = bench.scheduler(instances=2)
    leaving = scheduler.instances[0]
    bench.submit(scheduler, *[bench.request() for _ in range(4)])
    told: list[str] = []
    bench.dispatcher.when_free(scheduler, leaving, lambda: told.append("free"))
    bench.dispatcher.instance_down(scheduler, leaving, DIED)
    bench.turn()
    assert told == ["free"]
    bench.dispatcher.instance_up(scheduler, leaving)
    bench.turn()
    assert leaving not in scheduler.instances, "its worker is there again, but it is to leave"
    sent = [batch for batch in bench.sent if batch.instance is not leaving]
    while sent:
        bench.finish(sent[0])
        sent = [batch for batch in bench.sent if batch.instance is not leaving]
    assert len(bench.responses) == 4


def test_at_the_servers_end_requests_of_one_that_leaves_are_answered_too() -> None:
    bench = Bench()
    scheduler = bench.scheduler()
    bench.submit(scheduler, bench.request(), bench.request(), bench.request(), bench.request())
    bench.dispatcher.when_free(scheduler, scheduler.instances[0], lambda: None)
    bench.turn()
    bench.dispatcher.abandon([scheduler], unavailable("the end"))
    bench.turn()
    assert len(bench.responses) == 4 and all(response.error is not None for response in bench.responses)
    assert scheduler.idle and bench.dispatcher.in_flight == 0 and scheduler.statistics.pending_count == 0


class _Machine(RuleBasedStateMachine):
    """Instances come, leave and die, requests come and are answered or cancelled."""

    @initialize(batch=st.sampled_from([1, 4]))
    def open(self, batch: int) -> None:
        self.bench = Bench()
        self.scheduler = self.bench.scheduler(BatchPolicy(batch, frozenset({batch})), instances=2)
        self.instances = list(self.scheduler.instances)
        self.given: dict[Instance, set[int]] = {}
        self.told: dict[Instance, int] = {}
        self.requests: list[Request] = []
        self.idle = 0
        self.asked_idle = 0
        self.next = 10

    @rule()
    def come(self) -> None:
        instance = Instance(self.next, f"m_{self.next}")
        self.next += 1
        self.instances.append(instance)
        self.bench.dispatcher.instance_up(self.scheduler, instance)

    @rule(data=st.data(), turn=st.booleans())
    def leave(self, data: st.DataObject, turn: bool) -> None:
        staying = [instance for instance in self.instances if not instance.leaving]
        if staying:
            instance = staying[data.draw(st.integers(0, len(staying) - 1))]
            self.given[instance] = {batch.number for batch in instance.batches}
            self.told[instance] = 0

            def free() -> None:
                assert not instance.batches
                self.told[instance] += 1

            self.bench.dispatcher.when_free(self.scheduler, instance, free)
        if turn:
            self.bench.turn()

    @rule(data=st.data(), returns=st.booleans(), turn=st.booleans())
    def die(self, data: st.DataObject, returns: bool, turn: bool) -> None:
        live = [instance for instance in self.instances if instance.live]
        if live:
            instance = live[data.draw(st.integers(0, len(live) - 1))]
            self.bench.sent[:] = [batch for batch in self.bench.sent if batch.instance is not instance]
            self.bench.dispatcher.instance_down(self.scheduler, instance, DIED)
            if returns:
                self.bench.dispatcher.instance_up(self.scheduler, instance)
        if turn:
            self.bench.turn()

    @rule(count=st.integers(1, 6), turn=st.booleans())
    def submit(self, count: int, turn: bool) -> None:
        for _ in range(count):
            self.requests.append(self.bench.request())
            self.bench.dispatcher.submit(self.scheduler, self.requests[-1])
        if turn:
            self.bench.turn()

    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        # An instance answers its batches in their order.
        first = [batch for batch in self.bench.sent if batch.instance.batches and batch.instance.batches[0] is batch]
        if first:
            self.bench.finish(first[data.draw(st.integers(0, len(first) - 1))])

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        if self.requests:
            self.bench.dispatcher.cancel(self.scheduler, self.requests[data.draw(st.integers(0, len(self.requests) - 1))])

    @rule()
    def wait_for_idleness(self) -> None:
        def idle() -> None:
            assert self.scheduler.idle
            self.idle += 1

        self.asked_idle += 1
        self.bench.dispatcher.when_idle(self.scheduler, idle)

    @invariant()
    def nobody_is_answered_twice_and_leavers_get_nothing(self) -> None:
        answered = self.bench.answered()
        assert len(set(map(id, answered))) == len(answered)
        assert all(count <= 1 for count in self.told.values())
        for instance, given in self.given.items():
            assert instance not in self.scheduler.instances
            assert {batch.number for batch in instance.batches} <= given

    def teardown(self) -> None:
        if not hasattr(self, "bench"):
            return
        self.come()
        self.bench.turn()
        while self.bench.sent:
            [*_, batch] = [batch for batch in self.bench.sent if batch.instance.batches[0] is batch]
            self.bench.finish(batch)
        self.bench.turn()
        assert {id(request) for request in self.bench.answered()} == {id(request) for request in self.requests}
        assert self.idle == self.asked_idle and all(count == 1 for count in self.told.values())
        assert self.scheduler.idle and self.bench.dispatcher.in_flight == 0 and self.scheduler.statistics.pending_count == 0
        assert not self.bench.dispatcher._watchers


_Machine.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestLeaving = _Machine.TestCase
