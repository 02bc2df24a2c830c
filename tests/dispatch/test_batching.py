"""Which requests form the next batch, and why it ends where it does."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorfarm.server.dispatch.batching import BatchPolicy, BatchScheduler, Cut, Formed, form, grouping_of
from tensorfarm.server.dispatch.queue import QueuePolicy, RequestQueue
from tensorfarm.server.dispatch.request import Request
from tensorfarm.shm.placement import Inline
from tensorfarm.workers.contract.configuration import parse_text
from tensorfarm.workers.contract.messages import RequestBody, Tensor
from tensorfarm.workers.contract.signature import signature_of

from .test_dispatcher import Bench

US = 1000


def requests_of(sizes: Sequence[int], widths: Sequence[int] = (), at_ns: Sequence[int] = ()) -> list[Request]:
    made = []
    for index, size in enumerate(sizes):
        width = widths[index] if widths else 1
        tensor = Tensor("X", "INT8", (size, width), Inline(memoryview(bytes(size * width))))
        queued_ns = at_ns[index] if at_ns else 0
        made.append(Request(RequestBody("", size, [tensor], [], {}), 0, lambda response: None, queued_ns=queued_ns))
    return made


def width_of(request: Request) -> tuple[int, ...]:
    return request.body.inputs[0].shape[1:]


def sizes_of(formed: Formed) -> list[int]:
    return [request.body.batch_size for request in formed[0]]


def formed(policy: BatchPolicy, sizes: Sequence[int], now_ns: int = 0, **more: Sequence[int]) -> tuple[list[int], Cut, int | None]:
    result = form(policy, width_of, requests_of(sizes, **more), now_ns)
    return sizes_of(result), result[1], result[2]


def test_nothing_waits() -> None:
    for policy in (BatchPolicy(), BatchPolicy(4), BatchPolicy(4, frozenset({2}), 100)):
        requests, _, wake_ns = form(policy, None, [], 5)
        assert requests == [] and wake_ns is None


@pytest.mark.parametrize(
    ("policy", "sizes", "taken", "cut"),
    [
        (BatchPolicy(), [1], [1], Cut.FULL),
        (BatchPolicy(), [3, 1], [3], Cut.FULL),
        (BatchPolicy(4), [1], [1], Cut.END),
        (BatchPolicy(4), [1, 2], [1, 2], Cut.END),
        (BatchPolicy(4), [1, 2, 1], [1, 2, 1], Cut.FULL),
        (BatchPolicy(4), [3, 2, 1], [3], Cut.FULL),
        (BatchPolicy(4), [6], [6], Cut.FULL),
        (BatchPolicy(8, frozenset({2, 4})), [1], [1], Cut.END),
        (BatchPolicy(8, frozenset({2, 4})), [1, 1], [1, 1], Cut.PREFERRED),
        (BatchPolicy(8, frozenset({2, 4})), [1, 1, 1], [1, 1], Cut.PREFERRED),
        (BatchPolicy(8, frozenset({2, 4})), [1] * 7, [1] * 4, Cut.PREFERRED),
        (BatchPolicy(8, frozenset({2, 4})), [1] * 9, [1] * 4, Cut.PREFERRED),
        (BatchPolicy(8, frozenset({2})), [1, 1, 4, 4], [1, 1], Cut.PREFERRED),
        (BatchPolicy(8, frozenset({4})), [1, 2, 3, 4], [1, 2], Cut.PREFERRED),
        (BatchPolicy(8, frozenset({3})), [2, 2, 3, 6], [2], Cut.PREFERRED),
        (BatchPolicy(8, frozenset({2, 4})), [3, 2, 1], [3], Cut.PREFERRED),
        (BatchPolicy(8, frozenset({2, 4})), [3, 1, 2], [3, 1], Cut.PREFERRED),
        (BatchPolicy(8, frozenset({4})), [5, 4], [5], Cut.FULL),
        (BatchPolicy(8, frozenset({8})), [4, 4, 1], [4, 4], Cut.FULL),
        (BatchPolicy(8, frozenset({4})), [4, 5], [4], Cut.FULL),
    ],
)
def test_where_a_batch_ends(policy: BatchPolicy, sizes: list[int], taken: list[int], cut: Cut) -> None:
    assert formed(policy, sizes) == (taken, cut, None)


def test_another_shape_ends_a_batch() -> None:
    policy = BatchPolicy(8)
    assert formed(policy, [1, 1, 1], widths=[1, 1, 2]) == ([1, 1], Cut.SHAPE, None)
    assert formed(policy, [1, 1, 1], widths=[1, 2, 1]) == ([1], Cut.SHAPE, None)
    assert formed(BatchPolicy(8, frozenset({2})), [1] * 4, widths=[1, 1, 1, 2]) == ([1, 1], Cut.PREFERRED, None)
    assert formed(policy, [8, 1], widths=[1, 2]) == ([8], Cut.FULL, None)
    assert formed(policy, [7, 2], widths=[1, 2])[1] == Cut.FULL, "there was no room for it either"
    result = form(policy, None, requests_of([1, 1], [1, 2]), 0)
    assert (sizes_of(result), result[1]) == ([1, 1], Cut.END), "where shapes do not matter"


def test_a_batch_waits_for_its_delay_from_its_oldest_request_on() -> None:
    policy = BatchPolicy(4, max_queue_delay_ns=100 * US)
    at_ns = [20 * US, 10 * US]
    assert formed(policy, [1, 1], 109 * US, at_ns=at_ns) == ([], Cut.DELAY, 110 * US)
    assert formed(policy, [1, 1], 110 * US, at_ns=at_ns) == ([1, 1], Cut.DELAY, None)
    assert formed(policy, [1, 3], 20 * US, at_ns=at_ns) == ([1, 3], Cut.FULL, None)
    assert formed(policy, [1, 1], 20 * US, at_ns=at_ns, widths=[1, 2]) == ([1], Cut.SHAPE, None)


def test_a_preferred_size_ends_the_wait_and_the_delay_ends_the_preference() -> None:
    policy = BatchPolicy(8, frozenset({2, 4}), 100 * US)
    assert formed(policy, [1], 0) == ([], Cut.DELAY, 100 * US)
    assert formed(policy, [1, 1, 1], 0) == ([1, 1], Cut.PREFERRED, None)
    assert formed(policy, [1] * 5, 99 * US) == ([1] * 4, Cut.PREFERRED, None)
    assert formed(policy, [1] * 5, 100 * US) == ([1] * 5, Cut.DELAY, None)
    assert formed(policy, [3, 2], 0) == ([3], Cut.PREFERRED, None), "past the largest that is preferred"
    assert formed(policy, [3, 2], 100 * US) == ([3, 2], Cut.DELAY, None)
    assert formed(policy, [5], 0) == ([5], Cut.PREFERRED, None), "larger than any that is preferred: no use to wait"


def test_what_requests_wait_from_can_be_given() -> None:
    policy = BatchPolicy(4, max_queue_delay_ns=100)
    one = requests_of([1])
    assert form(policy, None, one, 50, lambda request: 40) == ([], Cut.DELAY, 140)
    assert form(policy, None, one, 140, lambda request: 40) == (one, Cut.DELAY, None)


@given(
    sizes=st.lists(st.integers(1, 5), max_size=12),
    widths=st.lists(st.integers(1, 2), min_size=12, max_size=12),
    at_ns=st.lists(st.integers(0, 50), min_size=12, max_size=12),
    max_batch_size=st.integers(1, 8),
    preferred=st.frozensets(st.integers(1, 8), max_size=3),
    delay_ns=st.sampled_from([0, 0, 20]),
    now_ns=st.integers(50, 80),
)
def test_whatever_waits(
    sizes: list[int],
    widths: list[int],
    at_ns: list[int],
    max_batch_size: int,
    preferred: frozenset[int],
    delay_ns: int,
    now_ns: int,
) -> None:
    """A batch is a beginning of what waits, of one shape and no larger than allowed; its reason holds; nothing waits without a time."""
    policy = BatchPolicy(max_batch_size, frozenset(size for size in preferred if size <= max_batch_size), delay_ns)
    waiting = requests_of(sizes, widths, at_ns)
    taken, cut, wake_ns = form(policy, width_of, waiting, now_ns)
    assert taken == waiting[: len(taken)]
    if not waiting:
        return
    if not taken:
        assert delay_ns and wake_ns is not None and now_ns < wake_ns <= now_ns + delay_ns
        fitting, reason, _ = form(BatchPolicy(max_batch_size), width_of, waiting, now_ns)
        assert reason == Cut.END and wake_ns == min(request.queued_ns for request in fitting) + delay_ns
        assert not any(sum(sizes[: end + 1]) in policy.preferred_sizes for end in range(len(fitting)))
        return
    assert wake_ns is None
    total = sum(request.body.batch_size for request in taken)
    assert total <= max_batch_size or len(taken) == 1
    assert len({width_of(request) for request in taken}) == 1
    behind = waiting[len(taken)] if len(taken) < len(waiting) else None
    overdue = bool(delay_ns) and now_ns >= min(request.queued_ns for request in taken) + delay_ns
    if cut == Cut.FULL:
        assert total >= max_batch_size or (behind is not None and total + behind.body.batch_size > max_batch_size)
    elif cut == Cut.SHAPE:
        assert behind is not None and width_of(behind) != width_of(taken[0])
    elif cut == Cut.PREFERRED:
        largest = policy.largest_preferred
        past = total >= largest if behind is None else total + behind.body.batch_size > largest
        assert total in policy.preferred_sizes or past
    elif cut == Cut.DELAY:
        assert overdue and behind is None
    else:
        assert cut == Cut.END and behind is None and not delay_ns


# reasons as the scheduler counts them


def cuts(bench: Bench, scheduler: BatchScheduler) -> dict[str, int]:
    return {cut.name: count for cut, count in zip(Cut, scheduler.statistics.cuts, strict=True) if count}


def scheduler_of(bench: Bench, policy: BatchPolicy, queue: QueuePolicy | None = None) -> BatchScheduler:
    scheduler = bench.scheduler(policy, RequestQueue(queue or QueuePolicy()), grouping=width_of)
    assert isinstance(scheduler, BatchScheduler)
    return scheduler


def test_every_batch_has_a_reason() -> None:
    bench = Bench()
    scheduler = scheduler_of(bench, BatchPolicy(4, frozenset({2}), 100 * US))
    bench.submit(scheduler, bench.request(4))
    bench.submit(scheduler, bench.request(1), bench.request(1))
    bench.submit(scheduler, bench.request(1, 3), bench.request(1, 5))
    while bench.sent:
        bench.finish(bench.sent[0])
    bench.advance(100 * US)
    assert cuts(bench, scheduler) == {"FULL": 1, "PREFERRED": 1, "SHAPE": 1, "DELAY": 1}
    undelayed = scheduler_of(bench, BatchPolicy(4))
    bench.submit(undelayed, bench.request())
    assert cuts(bench, undelayed) == {"END": 1}


def busy(bench: Bench) -> BatchScheduler:
    """A scheduler whose requests wait for 100 us at most, and whose instance runs one."""
    scheduler = scheduler_of(bench, BatchPolicy(4), QueuePolicy(default_timeout_us=100))
    bench.submit(scheduler, bench.request(4))
    return scheduler


def test_a_batch_that_is_small_because_others_had_to_leave() -> None:
    bench = Bench()
    scheduler = busy(bench)
    bench.submit(scheduler, bench.request())
    bench.advance(60 * US)
    bench.submit(scheduler, bench.request())
    bench.advance(60 * US)
    assert len(bench.responses) == 1
    bench.finish(bench.sent[0])
    assert [len(batch.requests) for batch in bench.sent] == [1]
    assert cuts(bench, scheduler) == {"FULL": 1, "DEADLINE": 1}
    bench.finish(bench.sent[0])
    bench.submit(scheduler, bench.request())
    assert cuts(bench, scheduler) == {"FULL": 1, "DEADLINE": 1, "END": 1}


def test_a_batch_that_is_full_all_the_same() -> None:
    bench = Bench()
    scheduler = busy(bench)
    bench.submit(scheduler, bench.request())
    bench.advance(60 * US)
    bench.submit(scheduler, bench.request(4))
    bench.advance(60 * US)
    bench.finish(bench.sent[0])
    assert cuts(bench, scheduler) == {"FULL": 2}


def test_those_who_left_long_ago_are_no_reason() -> None:
    """All that waited had left; what comes much later is alone because nothing else waits."""
    bench = Bench()
    scheduler = busy(bench)
    bench.submit(scheduler, bench.request())
    bench.advance(100 * US)
    assert len(bench.responses) == 1 and not len(scheduler.queue)
    bench.finish(bench.sent[0])
    bench.advance(10**9)
    bench.submit(scheduler, bench.request())
    assert cuts(bench, scheduler) == {"FULL": 1, "END": 1}


# what may share a batch


def request_with(*tensors: tuple[str, tuple[int, ...]]) -> Request:
    inputs = [Tensor(name, "INT8", shape, Inline(memoryview(b""))) for name, shape in tensors]
    return Request(RequestBody("", 1, inputs, [], {}), 0, lambda response: None)


def test_what_may_share_a_batch() -> None:
    config = parse_text(
        'name: "m" max_batch_size: 4 input [ { name: "A" data_type: TYPE_INT8 dims: [ -1 ] }, { name: "B" data_type: TYPE_INT8 dims: [ 2 ] },'
        ' { name: "R" data_type: TYPE_INT8 dims: [ -1 ] allow_ragged_batch: true },'
        ' { name: "O" data_type: TYPE_INT8 dims: [ 1 ] optional: true } ]',
        "config.pbtxt",
    )
    group = grouping_of(signature_of(config))
    assert group is not None
    one = group(request_with(("A", (1, 3)), ("B", (1, 2)), ("R", (1, 5))))
    assert one == group(request_with(("B", (2, 2)), ("R", (2, 9)), ("A", (2, 3)))), "neither their order nor what may be ragged matters"
    assert one != group(request_with(("A", (1, 4)), ("B", (1, 2)), ("R", (1, 5))))
    assert one != group(request_with(("A", (1, 3)), ("B", (1, 2)), ("R", (1, 5)), ("O", (1, 1)))), "an optional input makes a difference"


def test_where_anything_may_share_a_batch_nobody_looks() -> None:
    config = parse_text('name: "m" max_batch_size: 4 input { name: "A" data_type: TYPE_INT8 dims: [ 1 ] }', "config.pbtxt")
    assert grouping_of(signature_of(config)) is None
