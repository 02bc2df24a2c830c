"""Requests that are carried to the real dispatcher and back."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

import msgspec
import pytest

from tensorfarm.server.dispatch.batching import BatchPolicy, BatchScheduler
from tensorfarm.server.dispatch.carried import Carried
from tensorfarm.server.dispatch.dispatcher import Dispatcher
from tensorfarm.server.dispatch.instance import Instance, PlannedBatch
from tensorfarm.server.dispatch.queue import QueuePolicy, RequestQueue
from tensorfarm.server.dispatch.request import Request, Response
from tensorfarm.shm.placement import Span
from tensorfarm.workers.contract.messages import Done, RequestContext, Result, Tensor, WantedOutput

from .carried_bench import FAR, OTHER, Bench, places, small, wanted


class Dispatched(Bench):
    """With the real dispatcher and a scheduler behind; ``sent`` are the batches that its instance has."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[PlannedBatch] = []
        soon: list[Callable[[], None]] = []
        self.dispatcher = Dispatcher(self.sent.append, soon.append, lambda at_ns: None, lambda: self.now_ns, view=self.mover.memory.view)
        self.soon = soon
        self.scheduler = BatchScheduler(BatchPolicy(), RequestQueue(QueuePolicy()), None, itertools.count(1), self.statistics)
        self.dispatcher.instance_up(self.scheduler, Instance(1, "m_0"))
        self.carried = Carried(
            self.mover,
            lambda location: False,
            lambda location: False,
            partial(self.dispatcher.submit, self.scheduler),
            partial(self.dispatcher.cancel, self.scheduler),
            self.statistics,
            self.dispatcher,
            model="m",
        )

    def turn(self) -> None:
        while self.soon:
            self.soon.pop(0)()

    def done(self, *outputs: Tensor) -> None:
        batch = self.sent.pop(0)
        self.dispatcher.batch_done(Done(batch.number, [Result(list(outputs))], 1, 2, 3, 4, failed=[]), self.memory)
        self.turn()


@pytest.mark.parametrize("passed_on", [False, True])
def test_a_request_is_carried_to_a_scheduler_and_back(passed_on: bool) -> None:
    bench = Dispatched()
    request = bench.request(Span(FAR, 0, 8), outputs=(wanted(OTHER), WantedOutput("Z")))
    request.body = msgspec.structs.replace(request.body, context=RequestContext(lends=True))
    bench.carried.submit(request)
    bench.turn()
    assert (bench.dispatcher.in_flight, bench.statistics.pending_count, bench.sent) == (1, 1, [])
    bench.mover.finish_fetch()
    bench.turn()
    assert (bench.dispatcher.in_flight, bench.scheduler.in_flight, bench.carried.in_flight) == (1, 1, 0)
    (copy,) = places(bench.sent[0].requests[0])
    made = Tensor("Y", "UINT8", (8,), copy) if passed_on else bench.output()
    bench.done(made, bench.output("Z"))
    assert (bench.dispatcher.in_flight, bench.scheduler.in_flight, bench.carried.in_flight) == (1, 0, 1)
    assert not bench.heard and bench.mover.puts[0].places == [made.place]
    bench.mover.finish_put()
    (response,) = bench.responses
    assert [tensor.place for tensor in response.outputs][0] == Span(OTHER, 0, 8)
    assert bool(bench.finished) is not passed_on
    response.release()
    assert (bench.finished, bench.dispatcher.in_flight) == ([request], 0)
    bench.check_empty()


def test_a_request_cancelled_in_the_queue_gives_its_copies_back() -> None:
    bench = Dispatched()
    first, second = bench.submit(small()), bench.submit(Span(FAR, 0, 8), outputs=(wanted(OTHER),))
    bench.mover.finish_fetch()
    bench.carried.cancel(second)
    assert [type(one) for one in bench.heard] == [Request, Response] and bench.heard[0] is second
    bench.turn()
    bench.done()
    assert bench.finished == [second, first] and bench.dispatcher.in_flight == 0
    bench.check_empty()
