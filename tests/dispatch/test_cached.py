"""What stands in front of a cached version, with a store and threads that answer when the test says so."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from tensorfarm.server.dispatch.cached import SHORT_BYTE_SIZE, Cached, Caching
from tensorfarm.server.dispatch.forwarding import Flow
from tensorfarm.server.dispatch.request import EndMark, Request, Response
from tensorfarm.server.dispatch.response_cache import Entry, Found, Inserted, LocalCache
from tensorfarm.server.latency import Summary
from tensorfarm.server.statistics import FailureReason, LatencySummaries, VersionStatistics
from tensorfarm.shm.placement import Inline, Lease, Span
from tensorfarm.workers.contract.messages import Done, RequestBody, RequestContext, Tensor, WantedOutput
from tensorfarm.workers.contract.status import Code, StatusError, internal, unavailable

TIMES = Done(0, [], 1, 2, 3, 4)


class LateStore:
    """A store that answers when it is told to."""

    shared = True
    largest_byte_size = 1 << 30

    def __init__(self) -> None:
        self.inner = LocalCache(1 << 30)
        self.waiting: list[Callable[[], None]] = []

    def look_up(self, key: bytes, found: Found) -> None:
        self.waiting.append(lambda: self.inner.look_up(key, found))

    def insert(self, key: bytes, entry: Entry, inserted: Inserted) -> None:
        self.waiting.append(lambda: self.inner.insert(key, entry, inserted))


class Bench:
    """A cached version, and what lies behind it as lists."""

    def __init__(self, store: Any = None, **fields: Any) -> None:
        self.now_ns = 1_000
        self.store = LocalCache(1 << 30) if store is None else store
        self.statistics = VersionStatistics(summaries=LatencySummaries())
        self.flow = Flow()
        self.behind: list[Request] = []
        self.withdrawn: list[Request] = []
        self.work: list[tuple[Callable[[], Any], Callable[[Any], None]]] = []
        self.refusal: StatusError | None = None
        self.responses: list[Response] = []
        self.finished: list[Request] = []
        self.arena = bytearray(1 << 20)
        self.cached = self.front(b"1", **fields)

    def front(self, identity: bytes, **fields: Any) -> Cached:
        caching = Caching(self.store, self._view, lambda work, done: self.work.append((work, done)), self.flow)
        return Cached(
            identity, caching, self._enter, self.withdrawn.append, self.statistics, output_count=2, clock_ns=lambda: self.now_ns, **fields
        )

    def _view(self, lease: Lease) -> memoryview:
        if lease.arena == 9:
            raise unavailable("gone")
        return memoryview(self.arena)[lease.offset : lease.offset + lease.byte_size]

    def _enter(self, request: Request) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.behind.append(request)

    def request(self, content: bytes = bytes(8), **fields: Any) -> Request:
        body = RequestBody(
            fields.pop("id", ""),
            1,
            fields.pop("inputs", [Tensor("X", "UINT8", (1, len(content)), Inline(memoryview(content)))]),
            fields.pop("outputs", []),
            fields.pop("parameters", {}),
            fields.pop("context", None),
        )
        request = Request(body, self.now_ns, self.responses.append, **fields)
        request.on_finish = lambda: self.finished.append(request)
        return request

    def submit(self, content: bytes = bytes(8), **fields: Any) -> Request:
        request = self.request(content, **fields)
        self.now_ns += 10
        self.cached.submit(request)
        return request

    def answer(self, *outputs: Tensor, error: StatusError | None = None, final: bool = True, **fields: Any) -> Request:
        """What lies behind answers the first request that it has."""
        request = self.behind.pop(0) if final else self.behind[0]
        self.now_ns += 100
        if request.on_execution is not None:
            request.on_execution(TIMES)
        if final and request.on_finish is not None:
            on_finish, request.on_finish = request.on_finish, None
            on_finish()
        request.on_response(Response(request, list(outputs), {"p": 1}, error, final, **fields))
        return request

    def do_work(self) -> None:
        """The threads do what they have been given."""
        work, self.work = self.work, []
        for job, done in work:
            done(job())

    def counts(self) -> tuple[int, int]:
        return self.statistics.cache_hit_count, self.statistics.cache_miss_count


def output(content: bytes = b"answer", name: str = "Y") -> Tensor:
    return Tensor(name, "UINT8", (1, len(content)), Inline(memoryview(content)))


def said(response: Response) -> list[tuple[str, tuple[int, ...], bytes]]:
    return [(one.name, one.shape, bytes(response.read(one))) for one in response.outputs]


def test_the_second_of_two_equal_requests_does_not_reach_the_model() -> None:
    bench = Bench()
    bench.submit(id="a")
    first = bench.answer(output())
    second = bench.submit(id="b")
    assert bench.behind == []
    one, two = bench.responses
    assert said(one) == said(two) == [("Y", (1, 6), b"answer")]
    assert (one.request, two.request) == (first, second)
    assert two.final
    assert bench.finished == [first, second]
    assert (one.parameters, two.parameters) == ({"p": 1}, {})  # parameters are not kept
    assert bench.counts() == (1, 1)


def test_an_answer_outlives_the_memory_it_came_in() -> None:
    bench = Bench()
    arena = bytearray(b"answer")
    released: list[object] = []
    bench.submit()
    leased = Tensor("Y", "UINT8", (1, 6), Lease(1, 0, 6))
    bench.answer(leased, arena_view=lambda lease: memoryview(arena), on_release=released.append)
    bench.responses[0].release()
    assert released == [[leased.place]]
    arena[:] = b"others"
    bench.submit()
    assert said(bench.responses[1]) == [("Y", (1, 6), b"answer")]
    bench.responses[1].release()
    assert said(bench.responses[1]) == [("Y", (1, 6), b"answer")]


def test_a_hit_is_no_inference() -> None:
    bench = Bench()
    bench.submit()
    bench.answer(output())
    before = (bench.statistics.success_count, bench.statistics.success_ns, bench.statistics.queue_ns)
    request = bench.request()
    request.start_ns -= 50
    bench.cached.submit(request)
    statistics = bench.statistics
    assert (statistics.success_count, statistics.success_ns, statistics.queue_ns) == (before[0] + 1, before[1] + 50, before[2])
    assert (statistics.inference_count, statistics.execution_count, statistics.pending_count) == (0, 0, 0)
    assert statistics.summaries is not None
    assert _count(statistics.summaries.cache_hit) == _count(statistics.summaries.cache_miss) == 1
    assert _count(statistics.summaries.queue) == 1


def _count(summary: Summary) -> int:
    return summary.count


def test_a_miss_takes_as_long_as_its_lookup_and_its_insertion() -> None:
    bench = Bench(LateStore())
    bench.submit()
    bench.now_ns += 30
    bench.store.waiting.pop()()
    bench.answer(output())
    assert len(bench.responses) == 1  # nobody waits for the insertion
    bench.now_ns += 7
    bench.store.waiting.pop()()
    assert (bench.statistics.cache_miss_count, bench.statistics.cache_miss_ns, bench.statistics.success_ns) == (1, 37, 37)


@pytest.mark.parametrize(
    "other",
    [
        {"outputs": [WantedOutput("Y")]},
        {"parameters": {"a": 1}},
        {"inputs": [Tensor("X", "UINT8", (8, 1), Inline(memoryview(bytes(8))))]},
        {"inputs": [Tensor("X", "INT8", (1, 8), Inline(memoryview(bytes(8))))]},
    ],
)
def test_other_requests_are_other_requests(other: dict[str, Any]) -> None:
    bench = Bench()
    bench.submit()
    bench.answer(output())
    bench.submit(**other)
    assert len(bench.behind) == 1


def test_another_load_of_the_model_has_answers_of_its_own() -> None:
    bench = Bench()
    bench.submit()
    bench.answer(output())
    bench.cached = bench.front(b"2")
    bench.submit()
    assert len(bench.behind) == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"inputs": [Tensor("X", "UINT8", (1, 8), Span(1, 0, 8))]},
        {"inputs": [Tensor("X", "UINT8", (1, 8), Lease(9, 0, 8))]},  # of a worker that has gone
        {"outputs": [WantedOutput("Y", Span(1, 0, 8))]},
        {"context": RequestContext(7)},
    ],
)
@pytest.mark.parametrize("ordered", [False, True])
def test_what_cannot_be_cached_passes_by(fields: dict[str, Any], ordered: bool) -> None:
    bench = Bench(ordered=ordered)
    for _ in range(2):
        bench.submit(**fields)
        bench.answer(output())
    assert len(bench.responses) == 2
    assert bench.counts() == (0, 0)
    assert len(bench.store) == 0


def test_failed_answers_are_not_kept() -> None:
    bench = Bench()
    for _ in range(2):
        bench.submit()
        bench.answer(error=internal("bad"))
    assert [response.error and response.error.message for response in bench.responses] == ["bad", "bad"]
    assert bench.counts() == (0, 2)
    assert len(bench.store) == 0


def test_a_request_that_never_ran_has_missed_nothing() -> None:
    bench = Bench()
    bench.submit()
    request = bench.behind.pop()
    request.on_response(Response(request, [], error=unavailable("Request timeout expired")))
    assert bench.counts() == (0, 0)


def test_a_failed_ensemble_is_no_miss() -> None:
    bench = Bench(ensemble=True)
    bench.submit()
    assert bench.behind[0].on_execution is None
    bench.answer(error=internal("bad"))
    assert bench.counts() == (0, 0)


def test_equal_requests_at_once_all_run_and_one_answer_is_kept() -> None:
    bench = Bench()
    bench.submit()
    bench.submit()
    bench.answer(output(b"first"))
    bench.answer(output(b"second"))
    bench.submit()
    assert [said(response)[0][2] for response in bench.responses] == [b"first", b"second", b"first"]
    assert bench.counts() == (1, 1)  # as in the original


def test_an_answer_larger_than_the_cache_is_a_miss_each_time() -> None:
    bench = Bench(LocalCache(1500))
    for _ in range(2):
        bench.submit()
        bench.answer(output(bytes(1000)))
    assert bench.counts() == (0, 2)
    assert len(bench.store) == 0


def test_a_response_by_a_sender_is_kept_at_its_end() -> None:
    bench = Bench()
    bench.submit()
    request = bench.answer(output(), final=False)
    assert len(bench.store) == 0
    bench.behind.clear()
    request.on_response(EndMark(request, []))
    assert len(bench.store) == 1
    bench.submit()
    assert [type(response) for response in bench.responses] == [Response, EndMark, Response]
    assert bench.responses[2].final


def test_several_responses_are_never_kept() -> None:
    bench = Bench()
    bench.submit()
    bench.answer(output(), final=False)
    bench.answer(output())
    assert len(bench.responses) == 2
    assert len(bench.store) == 0


def test_what_refuses_a_request_at_once_is_told_at_once() -> None:
    bench = Bench()
    bench.refusal = unavailable("Exceeds maximum queue size")
    request = bench.request()
    respond = request.on_response
    with pytest.raises(StatusError, match="Exceeds maximum"):
        bench.cached.submit(request)
    assert request.on_response == respond
    assert request.on_execution is None
    assert (bench.responses, bench.finished, bench.cached.in_flight, bench.statistics.fail_count) == ([], [], 0, 0)


# what takes its time


def test_a_refusal_after_the_lookup_is_an_answer() -> None:
    bench = Bench(LateStore())
    bench.refusal = unavailable("Exceeds maximum queue size")
    request = bench.submit()
    assert (bench.cached.in_flight, bench.statistics.pending_count) == (1, 1)
    bench.store.waiting.pop()()
    assert [response.error for response in bench.responses] == [bench.refusal]
    assert bench.finished == [request]
    assert (bench.cached.in_flight, bench.statistics.pending_count) == (0, 0)
    assert bench.statistics.failures[FailureReason.REJECTED] == 1


def test_a_large_request_is_named_in_a_thread() -> None:
    bench = Bench()
    large = bytes(SHORT_BYTE_SIZE + 1)
    bench.submit(large)
    assert (len(bench.work), bench.behind, bench.statistics.pending_count) == (1, [], 1)
    bench.do_work()
    assert (len(bench.behind), bench.statistics.pending_count) == (1, 0)
    bench.answer(output())
    bench.submit(large)
    bench.do_work()
    assert said(bench.responses[1]) == [("Y", (1, 6), b"answer")]
    assert bench.cached.in_flight == 0


def test_a_large_answer_is_copied_in_a_thread_before_it_goes_out() -> None:
    bench = Bench()
    large = bytes(range(256)) * 2048
    bench.submit()
    bench.answer(output(large), output(b"", "Z"))
    assert (bench.responses, bench.cached.in_flight) == ([], 1)
    bench.do_work()
    bench.submit()
    first, second = bench.responses
    assert said(first) == said(second) == [("Y", (1, len(large)), large), ("Z", (1, 0), b"")]
    assert second.read(second.outputs[0]).readonly
    assert bench.cached.in_flight == 0


def test_the_end_of_an_answer_does_not_overtake_it_while_it_is_copied() -> None:
    bench = Bench()
    large = bytes(range(256)) * 2048
    bench.submit()
    request = bench.answer(output(large), final=False)
    bench.behind.clear()
    request.on_response(EndMark(request, []))
    assert (bench.responses, bench.cached.in_flight) == ([], 1)
    bench.do_work()
    assert [type(response) for response in bench.responses] == [Response, EndMark]
    bench.submit()
    assert said(bench.responses[2]) == [("Y", (1, len(large)), large)]
    assert bench.counts() == (1, 1)


def test_a_second_response_does_not_take_the_place_of_one_that_is_copied() -> None:
    bench = Bench()
    bench.submit()
    bench.answer(output(bytes(SHORT_BYTE_SIZE + 1)), final=False)
    bench.answer(output(b"second"))
    bench.do_work()
    assert [said(response)[0][1] for response in bench.responses] == [(1, SHORT_BYTE_SIZE + 1), (1, 6)]
    assert len(bench.store) == 0
    assert bench.cached.in_flight == 0


def test_the_end_comes_though_a_receiver_fails() -> None:
    for found in (True, False):
        bench = Bench(LateStore())
        request = bench.request()
        request.on_response = _fail
        if found:
            bench.submit()
            bench.store.waiting.pop()()
            bench.answer(output())
            bench.store.waiting.pop()()
        bench.cached.submit(request)
        told: list[str] = []
        bench.cached.stop(lambda told=told: told.append("stop"))  # type: ignore[misc]
        bench.cached.when_idle(lambda told=told: told.append("idle"))  # type: ignore[misc]
        if found:
            with pytest.raises(ZeroDivisionError):
                bench.store.waiting.pop()()
        else:
            bench.refusal = unavailable("full")
            with pytest.raises(ZeroDivisionError):
                bench.store.waiting.pop()()
        assert told == ["stop", "idle"]
    bench = Bench()
    request = bench.request()
    request.on_response = _fail
    bench.cached.submit(request)
    bench.answer(output(bytes(SHORT_BYTE_SIZE + 1)))
    bench.cached.when_idle(lambda: told.append("copied"))
    with pytest.raises(ZeroDivisionError):
        bench.do_work()
    assert told[2:] == ["copied"]


def test_doors_know_how_many_wait_here() -> None:
    """What has not reached the model yet, or has left it, is in flight all the same: counted once, by whoever has it."""
    bench = Bench(LateStore())
    first, second = bench.submit(), bench.submit(b"2")
    bench.submit(bytes(SHORT_BYTE_SIZE + 1))
    assert bench.flow.in_flight == 3
    bench.cached.cancel(second)
    bench.store.waiting.pop(0)()
    assert bench.behind == [first]
    assert bench.flow.in_flight == 1
    bench.answer(output(bytes(SHORT_BYTE_SIZE + 1)))
    assert bench.flow.in_flight == 2
    bench.do_work()
    assert bench.flow.in_flight == 1
    bench.cached.abandon(unavailable("Server is stopping"))
    assert bench.flow.in_flight == 0


@pytest.mark.parametrize("size", [8, SHORT_BYTE_SIZE + 1])
def test_cancelling_works_while_a_request_waits(size: int) -> None:
    bench = Bench(LateStore())
    request = bench.submit(bytes(size))
    bench.cached.cancel(request)
    assert [response.error and response.error.code for response in bench.responses] == [Code.CANCELLED]
    assert bench.finished == [request]
    assert request.cancelled
    assert bench.statistics.failures[FailureReason.CANCELED] == 1
    assert (bench.cached.in_flight, bench.statistics.pending_count) == (0, 0)
    bench.do_work()
    for answer in bench.store.waiting:
        answer()
    assert bench.behind == []
    assert len(bench.responses) == 1


def test_cancelling_later_reaches_what_lies_behind() -> None:
    bench = Bench()
    request = bench.submit()
    bench.cached.cancel(request)
    assert bench.withdrawn == [request]


def test_the_end_waits_for_what_waits() -> None:
    bench = Bench(LateStore())
    told: list[str] = []
    request = bench.submit()
    bench.cached.stop(lambda: told.append("stop"))
    bench.cached.when_idle(lambda: told.append("idle"))
    with pytest.raises(StatusError, match="Server is stopping"):
        bench.submit()
    assert told == []
    bench.store.waiting.pop(0)()
    assert told == ["stop", "idle"]
    assert bench.behind == [request]
    bench.answer(output())
    assert bench.store.waiting == []  # nobody would ask for it
    assert bench.counts() == (0, 1)
    bench.cached.stop(lambda: told.append("stop again"))
    bench.cached.when_idle(lambda: told.append("idle again"))
    assert told[2:] == ["stop again", "idle again"]


def test_what_waits_at_the_very_end_is_answered() -> None:
    bench = Bench(LateStore(), ordered=True)
    requests = [bench.submit(b"%d" % number) for number in range(3)]
    bench.cached.abandon(unavailable("Server is stopping"))
    assert [response.request for response in bench.responses] == requests
    assert bench.finished == requests
    assert bench.cached.in_flight == 0


# order


def test_hits_keep_their_place_where_responses_are_ordered() -> None:
    bench = Bench(ordered=True)
    bench.submit(b"known")
    bench.answer(output(b"old"))
    waiting = bench.submit(b"new")
    hit = bench.submit(b"known")
    uncached = bench.submit(context=RequestContext(7))
    assert len(bench.responses) == 1
    assert bench.behind == [waiting, uncached]
    bench.behind.reverse()
    bench.answer(output(b"uncached"))
    assert len(bench.responses) == 1
    bench.answer(output(b"fresh"))
    assert [said(response)[0][2] for response in bench.responses] == [b"old", b"fresh", b"old", b"uncached"]
    assert [response.request for response in bench.responses[1:]] == [waiting, hit, uncached]


def test_lookups_that_overtake_each_other_do_not_change_the_order() -> None:
    bench = Bench(LateStore(), ordered=True)
    first, second = bench.submit(b"1"), bench.submit(b"2")
    for answer in reversed(bench.store.waiting):
        answer()
    assert bench.behind == [second, first]
    bench.answer(output(b"two"))
    bench.answer(output(b"one"))
    assert [response.request for response in bench.responses] == [first, second]


def test_a_receiver_that_fails_costs_nobody_else_an_answer() -> None:
    bench = Bench(ordered=True)
    bench.submit(b"1")
    broken = bench.request(b"2")
    broken.on_response = _fail
    bench.cached.submit(broken)
    last = bench.submit(b"3")
    bench.behind.reverse()
    bench.answer(output(b"three"))
    bench.answer(output(b"two"))
    with pytest.raises(ZeroDivisionError):
        bench.answer(output(b"one"))
    assert [said(response)[0][2] for response in bench.responses] == [b"one", b"three"]
    assert bench.responses[-1].request is last


def _fail(response: Response) -> None:
    raise ZeroDivisionError


def test_requests_leave_no_circles() -> None:
    bench = Bench(LateStore())
    gc.collect()
    gc.disable()
    try:
        gone = []
        for content in (b"1", b"1", bytes(SHORT_BYTE_SIZE + 1)):
            request = bench.submit(content)
            bench.do_work()
            gone.append(weakref.ref(_token(request)))
            bench.store.waiting.pop(0)()
            if bench.behind:
                bench.answer(output())
                bench.store.waiting.pop(0)()
            del request
            bench.responses.clear()
            bench.finished.clear()
        assert [ref() for ref in gone] == [None, None, None]
    finally:
        gc.enable()


class _Token:
    pass


def _token(request: Request) -> _Token:
    """Something that lives as long as a request: requests have slots and take no weak references."""
    token = _Token()
    request.body.parameters["token"] = token  # type: ignore[assignment]
    return token
