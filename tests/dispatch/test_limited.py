"""Schedulers whose instances share resources, through the dispatcher: who runs beside whom, and that every request has its end."""

from __future__ import annotations

import itertools

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tensorfarm.server.dispatch.batching import BatchPolicy, BatchScheduler
from tensorfarm.server.dispatch.dispatcher import Dispatcher
from tensorfarm.server.dispatch.instance import Instance, PlannedBatch
from tensorfarm.server.dispatch.queue import QueuePolicy, RequestQueue
from tensorfarm.server.dispatch.rate_limiter import Pool, RateLimiter
from tensorfarm.server.dispatch.request import Request
from tensorfarm.server.dispatch.scheduler import Scheduler
from tensorfarm.server.statistics import VersionStatistics

from .test_dispatcher import DIED, Bench


class LimitedBench(Bench):
    """A bench with a rate limiter. Models are named by letters."""

    def __init__(self) -> None:
        super().__init__()
        self.limiter = RateLimiter()
        self.dispatcher = Dispatcher(
            *(self.sent.append, self.soon.append, self._set_alarm, lambda: self.now_ns, self._stay_awake), limiter=self.limiter
        )
        self.models: dict[str, Scheduler] = {}
        self._numbers = itertools.count(1)
        self._batch_numbers = itertools.count(1)

    def model(self, name: str, priority: int = 0, instances: int = 1, policy: BatchPolicy | None = None, **needs: int) -> Scheduler:
        scheduler = BatchScheduler(policy or BatchPolicy(), RequestQueue(QueuePolicy()), None, self._batch_numbers, VersionStatistics())
        scheduler.limited = True
        self.models[name] = scheduler
        for _ in range(instances):
            instance = Instance(next(self._numbers), name)
            self.limiter.register(instance, {Pool(0, resource): count for resource, count in needs.items()}, priority)
            self.dispatcher.instance_up(scheduler, instance)
        self.turn()
        return scheduler

    def ask(self, names: str, caller: PlannedBatch | None = None) -> None:
        """A request to each of these models, all in one turn."""
        for name in names:
            self.dispatcher.submit(self.models[name], self.request(caller=0 if caller is None else caller.number))
        self.turn()
        self.turn()

    @property
    def running(self) -> str:
        """The models that run, in the order in which they began."""
        return "".join(batch.instance.name for batch in self.sent)

    def end(self, name: str) -> None:
        self.finish(self.batch(name))

    def batch(self, name: str) -> PlannedBatch:
        return next(batch for batch in self.sent if batch.instance.name == name)

    def one_by_one(self, count: int) -> str:
        """The models in the order in which they run, where only one at a time can."""
        order = ""
        for _ in range(count):
            [batch] = self.sent
            order += batch.instance.name
            self.finish(batch)
        return order


def test_what_shares_a_resource_never_runs_together() -> None:
    bench = LimitedBench()
    for name in "abc":
        bench.model(name, R=1)
    bench.model("d", S=1)
    bench.model("e")
    bench.ask("abcde")
    assert bench.running == "ade"
    bench.end("a")
    assert bench.running == "deb"
    bench.end("b")
    assert bench.running == "dec"


def test_turns_by_priority() -> None:
    bench = LimitedBench()
    bench.model("a", priority=1, R=1)
    bench.model("b", priority=2, R=1)
    bench.ask("a" * 20 + "b" * 20)
    order = bench.one_by_one(18)
    assert (order.count("a"), order.count("b")) == (12, 6)
    assert "bb" not in order and "aaa" not in order


def test_idle_instances_take_turns_as_well() -> None:
    bench = LimitedBench()
    scheduler = bench.model("a", instances=2)
    numbers = []
    for _ in range(4):
        bench.ask("a")
        numbers.append(bench.sent[0].instance.number)
        bench.end("a")
    assert numbers == [1, 2, 1, 2] and scheduler.idle


def test_nothing_is_staged() -> None:
    bench = LimitedBench()
    bench.model("a", instances=2)
    bench.ask("aaaa")
    assert bench.running == "aa"


def test_those_that_wait_share_a_batch_in_the_end() -> None:
    bench = LimitedBench()
    bench.model("a", R=1)
    bench.model("b", policy=BatchPolicy(4, frozenset({4})), R=1)
    bench.ask("abb")
    bench.ask("b")
    bench.end("a")
    assert [len(batch.requests) for batch in bench.sent] == [3]


def test_a_batch_that_waits_for_more_holds_nobody_back() -> None:
    bench = LimitedBench()
    bench.model("a", policy=BatchPolicy(4, frozenset({4}), max_queue_delay_ns=1000), R=1)
    bench.model("b", R=1)
    bench.ask("ab")
    assert bench.running == "b"
    bench.advance(2000)
    assert bench.running == "b"
    bench.end("b")
    assert bench.running == "a"


def test_one_that_gives_up_makes_room() -> None:
    bench = LimitedBench()
    bench.model("a", R=1)
    bench.model("b", R=2)
    bench.model("c", R=1)
    bench.ask("abc")
    assert bench.running == "a"
    bench.dispatcher.cancel(bench.models["b"], next(iter(bench.models["b"].waiting())))
    bench.turn()
    assert bench.running == "ac"


def test_a_dead_instance_gives_back_what_it_held() -> None:
    bench = LimitedBench()
    scheduler = bench.model("a", R=1)
    bench.model("b", R=1)
    bench.ask("ab")
    [batch] = bench.sent
    bench.sent.clear()
    bench.dispatcher.instance_down(scheduler, batch.instance, DIED)
    bench.turn()
    assert bench.running == "b" and [response.error for response in bench.responses] == [DIED]
    bench.dispatcher.instance_up(scheduler, batch.instance)
    bench.ask("a")
    bench.end("b")
    assert bench.running == "a"


def test_a_call_to_one_that_needs_what_its_caller_holds_fails() -> None:
    bench = LimitedBench()
    bench.model("a", R=1)
    bench.model("b", R=1)
    bench.ask("a")
    bench.ask("b", caller=bench.batch("a"))
    [response] = bench.responses
    assert response.error is not None and "would wait for ever" in response.error.message
    bench.end("a")
    assert bench.running == ""


def test_a_call_passes_one_that_waits_for_its_caller() -> None:
    bench = LimitedBench()
    bench.model("a", R=1)
    bench.model("b", R=3)
    bench.model("c", R=1)
    bench.ask("a")
    bench.ask("b")
    bench.ask("c", caller=bench.batch("a"))
    assert bench.running == "ac" and not bench.responses
    bench.end("c")
    bench.end("a")
    assert bench.running == "b"


NEEDS = ({"R": 1}, {"R": 1}, {"R": 3}, {"R": 1, "S": 1}, {"S": 2}, {}, {"T": 0})
AVAILABLE = {"R": 3, "S": 2, "T": 0}


class LimitedStorm(RuleBasedStateMachine):
    """Any interleaving of arrivals, answers, deaths and cancels: resources are never exceeded, and nothing that could run waits."""

    @initialize(shapes=st.lists(st.tuples(st.sampled_from(NEEDS), st.integers(0, 2), st.integers(1, 3)), min_size=2, max_size=6))
    def begin(self, shapes: list[tuple[dict[str, int], int, int]]) -> None:
        self.bench = LimitedBench()
        self.bench.model("!", R=3, S=2)
        self.needs = {"!": {"R": 3, "S": 2}}
        for name, (needs, priority, instances) in zip("abcdef", shapes, strict=False):
            self.bench.model(name, priority, instances, **needs)
            self.needs[name] = needs
        self.names = list(self.needs)
        self.instances = {scheduler: list(scheduler.instances) for scheduler in self.bench.models.values()}
        self.accepted: list[tuple[Scheduler, Request]] = []

    def scheduler(self, pick: int) -> Scheduler:
        return self.bench.models[self.names[pick % len(self.names)]]

    @rule(pick=st.integers(0, 6), count=st.integers(1, 3))
    def arrive(self, pick: int, count: int) -> None:
        scheduler = self.scheduler(pick)
        for _ in range(count):
            self.accepted.append((scheduler, self.bench.request()))
            self.bench.dispatcher.submit(*self.accepted[-1])
        self.bench.turn()

    @precondition(lambda self: self.bench.sent)
    @rule(pick=st.integers(0, 20))
    def answer(self, pick: int) -> None:
        self.bench.finish(self.bench.sent[pick % len(self.bench.sent)])

    @rule(pick=st.integers(0, 20), one=st.integers(0, 2))
    def die(self, pick: int, one: int) -> None:
        scheduler = self.scheduler(pick)
        if scheduler.instances:
            instance = scheduler.instances[one % len(scheduler.instances)]
            for batch in instance.batches:
                self.bench.sent.remove(batch)
            self.bench.dispatcher.instance_down(scheduler, instance, DIED)
            self.bench.turn()

    @rule(pick=st.integers(0, 20))
    def revive(self, pick: int) -> None:
        scheduler = self.scheduler(pick)
        for instance in self.instances[scheduler]:
            if not instance.live:
                self.bench.dispatcher.instance_up(scheduler, instance)
        self.bench.turn()

    @precondition(lambda self: self.accepted)
    @rule(pick=st.integers(0, 1000))
    def cancel(self, pick: int) -> None:
        self.bench.dispatcher.cancel(*self.accepted[pick % len(self.accepted)])
        self.bench.turn()

    def free(self, resource: str) -> int:
        return AVAILABLE[resource] - sum(self.needs[batch.instance.name].get(resource, 0) for batch in self.bench.sent)

    @invariant()
    def consistent(self) -> None:
        if not hasattr(self, "bench"):
            return
        assert all(self.free(resource) >= 0 for resource in AVAILABLE)
        able = {
            name
            for name, scheduler in self.bench.models.items()
            if list(scheduler.waiting()) and any(not instance.batches for instance in scheduler.instances)
        }
        short = {name for name in able if any(count > self.free(resource) for resource, count in self.needs[name].items())}
        for name in able - short:
            # Only for one that waits for the same.
            wanted = {resource for resource, count in self.needs[name].items() if count}
            assert any(wanted & {resource for resource, count in self.needs[other].items() if count} for other in short)
        assert len(self.bench.responses) + self.bench.dispatcher.in_flight == len(self.accepted)

    def teardown(self) -> None:
        if not hasattr(self, "bench"):
            return
        for pick in range(len(self.names)):
            self.revive(pick)
        while self.bench.sent:
            self.bench.finish(self.bench.sent[0])
            self.consistent()
        assert len(self.bench.responses) == len(self.accepted)
        assert all(scheduler.idle for scheduler in self.bench.models.values())


LimitedStorm.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestLimitedStorm = LimitedStorm.TestCase
