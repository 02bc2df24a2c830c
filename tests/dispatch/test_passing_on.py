"""Outputs that are inputs, passed on where they lie: the request keeps them until its response is released."""

from __future__ import annotations

import pytest

from tensorfarm.server.dispatch.request import Request
from tensorfarm.shm.placement import Lease, Placement
from tensorfarm.workers.contract.messages import RequestBody, RequestContext, Result, Tensor
from tensorfarm.workers.contract.status import Code

from . import ensemble_bench
from .test_dispatcher_streams import StreamBench

INPUT = Lease(0, 4096, 100)
OWN = Lease(3, 0, 50)


class PassingBench(StreamBench):
    """A bench with one request whose ``finished`` tells when it gave up what it holds."""

    def __init__(self, lends: bool = True) -> None:
        super().__init__()
        self.dispatcher._view = lambda lease: memoryview(f"{lease.arena}:{lease.offset}".encode())
        self.finished = 0
        self.served = self.scheduler()
        inputs = [Tensor("IN", "INT8", (100,), INPUT)]
        body = RequestBody("", 1, inputs, [], {}, RequestContext(lends=lends))
        self.submit(self.served, Request(body, 0, self.responses.append, self._finish))

    def _finish(self) -> None:
        self.finished += 1

    def answer(self, *places: Placement) -> None:
        (batch,) = self.sent
        self.lent += [OWN.offset for place in places if place is OWN]
        self.done(batch, [Result([Tensor(f"OUT{index}", "INT8", (1,), place) for index, place in enumerate(places)])])


def test_the_request_is_kept_until_the_response_is_released() -> None:
    bench = PassingBench()
    bench.answer(Lease(0, 4096 + 20, 80), OWN)
    (response,) = bench.responses
    assert response.error is None and bench.finished == 0
    assert bytes(response.read(response.outputs[0])) == b"0:4116"
    response.release()
    response.release()
    assert bench.finished == 1 and bench.returned == [0]
    bench.over(bench.served)


def test_a_response_of_its_own_lets_the_request_go_at_once() -> None:
    bench = PassingBench()
    bench.answer(OWN)
    assert bench.finished == 1
    bench.responses[0].release()
    assert bench.finished == 1 and bench.returned == [0]


@pytest.mark.parametrize(
    ("lends", "place"),
    [
        pytest.param(False, INPUT, id="not lent"),
        pytest.param(True, Lease(0, 4095, 50), id="begins before it"),
        pytest.param(True, Lease(0, 4096, 101), id="ends behind it"),
        pytest.param(True, Lease(7, 4096, 100), id="another arena"),
    ],
)
def test_what_was_not_lent_is_not_shown(lends: bool, place: Lease) -> None:
    """A worker that names other memory shows nobody what lies there."""
    bench = PassingBench(lends)
    bench.answer(OWN, place)
    (response,) = bench.responses
    assert response.error is not None and response.error.code is Code.INTERNAL and not response.outputs
    assert bench.finished == 1 and bench.returned == [0]
    bench.over(bench.served)


def test_an_ensemble_lends_its_steps_nothing() -> None:
    """Its request ends before its response is read, so that no output of a step may lie in what came with the request."""
    config = ensemble_bench.ensemble_config([ensemble_bench.step("a", {"IN": "X"}, {"OUT": "Y"})], ["X"], ["Y"])
    bench = ensemble_bench.Bench(config, ensemble_bench.model("a", ["IN"], ["OUT"]))
    bench.ask(inputs={"X": Tensor("X", "INT32", (4,), INPUT)}, context=RequestContext(5, 1, 9, "t", lends=True))
    assert bench.waiting("a").request.body.context == RequestContext(5, 1, 9, "t", lends=False)
