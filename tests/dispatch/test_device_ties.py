"""Requests that use a GPU's memory run on that GPU, and hold up nobody else."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tensorfarm.server.dispatch.batching import BatchPolicy
from tensorfarm.server.dispatch.instance import Instance, PlannedBatch
from tensorfarm.server.dispatch.queue import QueuePolicy, RequestQueue
from tensorfarm.server.dispatch.scheduler import Scheduler

from .test_dispatcher import DIED, Bench

US = 1000


class TiedBench(Bench):
    """Instances by their GPU."""

    def model(
        self, *devices: int, policy: BatchPolicy | None = None, queue: RequestQueue | None = None, execution_ns: int = 10**9
    ) -> Scheduler:
        scheduler = self.scheduler(policy, queue, instances=0)
        for number, device in enumerate(devices):
            self.dispatcher.instance_up(scheduler, Instance(number, f"m_{number}", execution_ns=execution_ns, device=device))
        self.turn()
        return scheduler

    def ask(self, scheduler: Scheduler, *devices: int) -> None:
        self.submit(scheduler, *[self.request(device=device) for device in devices])

    def ran(self) -> list[tuple[int, list[int]]]:
        """What runs: the GPU of each batch, and those its requests want."""
        return [(batch.instance.device, [request.device for request in batch.requests]) for batch in self.sent]


def test_each_goes_to_its_gpu() -> None:
    bench = TiedBench()
    scheduler = bench.model(0, 1, policy=BatchPolicy(8, frozenset({8})))
    bench.ask(scheduler, 1, 0, 1, -1)
    assert bench.ran() == [(0, [0, -1]), (1, [1, 1])]


def test_those_behind_one_that_waits_for_its_gpu_pass_it() -> None:
    bench = TiedBench()
    scheduler = bench.model(0, 1)
    bench.ask(scheduler, 0, 0, -1)
    assert bench.ran() == [(0, [0]), (1, [-1])]
    bench.finish(bench.sent[1])
    bench.ask(scheduler, -1)
    assert bench.ran() == [(0, [0]), (1, [-1])]
    bench.finish(bench.sent[0])
    assert bench.ran() == [(1, [-1]), (0, [0])]


def test_a_batch_of_a_gpu_waits_for_more_by_itself() -> None:
    bench = TiedBench()
    scheduler = bench.model(0, 1, policy=BatchPolicy(2, frozenset({2}), max_queue_delay_ns=100 * US))
    bench.ask(scheduler, 0, 1, 1)
    assert bench.ran() == [(1, [1, 1])]
    bench.advance(100 * US)
    assert bench.ran() == [(1, [1, 1]), (0, [0])]


def test_one_that_is_put_back_runs_once() -> None:
    """It left from the midst of the queue, where nothing of it may have stayed."""
    bench = TiedBench()
    scheduler = bench.model(0, 1, execution_ns=1000)
    bench.ask(scheduler, 0, 0, 0, 0, 1, 1)
    assert sorted(bench.ran()) == [(0, [0])] * 3 + [(1, [1])] * 2
    gpu = scheduler.instances[1]
    running, staged = [batch for batch in bench.sent if batch.instance is gpu]
    bench.sent[:] = [batch for batch in bench.sent if batch.instance is not gpu]
    bench.dispatcher.instance_down(scheduler, gpu, DIED)
    bench.turn()
    assert bench.answered() == running.requests
    bench.dispatcher.instance_up(scheduler, gpu)
    bench.turn()
    while bench.sent:
        bench.finish(bench.sent[0])
    assert len(bench.responses) == 6 and bench.answered().count(staged.requests[0]) == 1
    assert not list(scheduler.waiting()) and scheduler.idle


def test_one_whose_worker_comes_back_is_waited_for() -> None:
    bench = TiedBench()
    scheduler = bench.model(0, 1)
    gpu = scheduler.instances[1]
    bench.dispatcher.instance_down(scheduler, gpu, DIED)
    bench.ask(scheduler, 1)
    assert bench.ran() == []
    bench.dispatcher.instance_up(scheduler, gpu)
    bench.turn()
    assert bench.ran() == [(1, [1])]


def test_time_outs_hold_while_a_gpu_is_busy() -> None:
    bench = TiedBench()
    scheduler = bench.model(0, 1, queue=RequestQueue(QueuePolicy(default_timeout_us=50)))
    bench.ask(scheduler, 0, 0)
    bench.advance(60 * US)
    assert [response.error is not None for response in bench.responses] == [True]
    bench.ask(scheduler, 1)
    assert bench.ran() == [(0, [0]), (1, [1])]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(0, 2), min_size=1, max_size=4),
    st.lists(st.tuples(st.sampled_from(["ask", "finish", "cancel"]), st.integers(-1, 2)), max_size=40),
    st.integers(1, 4),
)
def test_nobody_runs_elsewhere_and_nobody_is_forgotten(devices: list[int], steps: list[tuple[str, int]], most: int) -> None:
    bench = TiedBench()
    scheduler = bench.model(*devices, policy=BatchPolicy(most, frozenset({most})))
    asked = []

    def check(batch: PlannedBatch) -> None:
        for request in batch.requests:
            assert request.device in (-1, batch.instance.device) or request.device not in devices

    for step, number in steps:
        if step == "ask":
            asked.append(bench.request(device=number))
            bench.submit(scheduler, asked[-1])
        elif step == "finish" and bench.sent:
            bench.finish(bench.sent[number % len(bench.sent)])
        elif step == "cancel" and asked:
            bench.dispatcher.cancel(scheduler, asked[number % len(asked)])
            bench.turn()
        for batch in bench.sent:
            check(batch)
    while bench.sent:
        check(bench.sent[0])
        bench.finish(bench.sent[0])
    assert len({id(response.request) for response in bench.responses}) == len(bench.responses) == len(asked)
    assert scheduler.idle and not list(scheduler.waiting())


def test_the_last_instance_of_a_gpu_stays_for_what_only_it_can_run() -> None:
    """And for nothing else; what is given up does not keep it."""
    bench = TiedBench()
    scheduler = bench.model(0, 1)
    bench.ask(scheduler, 1, 1, 1, 0)
    leaving = next(instance for instance in scheduler.instances if instance.device == 1)
    free: list[bool] = []
    bench.dispatcher.when_free(scheduler, leaving, lambda: free.append(True))
    bench.turn()
    bench.ask(scheduler, -1)
    first, _ = sorted(bench.sent, key=lambda batch: -batch.instance.device)
    bench.finish(first)
    assert sorted(bench.ran()) == [(0, [0]), (1, [1])] and not free
    last = next(request for request in scheduler.waiting() if request.device == 1)
    bench.finish(next(batch for batch in bench.sent if batch.instance is leaving))
    assert last in [request for batch in bench.sent for request in batch.requests] and not free
    bench.finish(next(batch for batch in bench.sent if batch.instance is leaving))
    assert free == [True] and bench.ran() == [(0, [0])]
    bench.finish(bench.sent[0])
    assert bench.ran() == [(0, [-1])]


def test_an_instance_that_leaves_goes_when_those_that_wait_for_it_give_up() -> None:
    bench = TiedBench()
    scheduler = bench.model(0, 1)
    bench.ask(scheduler, 1, 1)
    (leaving,) = [batch.instance for batch in bench.sent]
    free: list[bool] = []
    bench.dispatcher.when_free(scheduler, leaving, lambda: free.append(True))
    bench.dispatcher.cancel(scheduler, next(iter(scheduler.waiting())))
    bench.turn()
    assert not free
    bench.finish(bench.sent[0])
    assert free == [True]


def test_what_waits_for_a_gpu_that_will_not_be_back_is_refused() -> None:
    bench = TiedBench()
    scheduler = bench.model(0, 1)
    gpu = scheduler.instances[1]
    bench.ask(scheduler, 0, 0)
    bench.dispatcher.instance_down(scheduler, gpu, DIED)
    bench.ask(scheduler, 1, -1)
    bench.dispatcher.refuse_stranded(scheduler, DIED)
    bench.turn()
    (refused,) = bench.responses
    assert refused.request.device == 1 and refused.error is not None and refused.error.message.endswith(DIED.message)
    for _ in range(3):
        bench.finish(bench.sent[0])
    assert len(bench.responses) == 4 and scheduler.idle


def test_while_the_last_instance_of_a_gpu_is_busy_nobody_else_runs_what_is_its() -> None:
    """And it gets nothing else, not even when nothing that is its waits any more."""
    bench = TiedBench()
    scheduler = bench.model(0, 1)
    bench.ask(scheduler, 1, 1)
    leaving = bench.sent[0].instance
    bench.dispatcher.when_free(scheduler, leaving, lambda: None)
    bench.turn()
    assert bench.ran() == [(1, [1])]
    bench.finish(bench.sent[0])
    assert bench.ran() == [(1, [1])]
    bench.ask(scheduler, 0, -1, -1)
    bench.finish(next(batch for batch in bench.sent if batch.instance is leaving))
    assert bench.ran() == [(0, [0])]
    while bench.sent:
        assert bench.sent[0].instance is not leaving
        bench.finish(bench.sent[0])
    assert len(bench.responses) == 5 and scheduler.idle
