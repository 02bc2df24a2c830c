"""Times at which something is due: their order, what is dropped, and that they do not pile up."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorfarm.server.dispatch.deadlines import Deadlines
from tensorfarm.server.dispatch.queue import QueuePolicy, RequestQueue
from tensorfarm.server.dispatch.request import Request
from tensorfarm.workers.contract.messages import RequestBody

FEW = 64


class Book:
    """What counts: each item has one time, or none."""

    def __init__(self) -> None:
        self.times: dict[str, int] = {}
        self.asked = 0
        self.deadlines: Deadlines[str] = Deadlines(self.holds)

    def holds(self, at_ns: int, item: str) -> bool:
        self.asked += 1
        return self.times.get(item) == at_ns

    def add(self, at_ns: int, item: str) -> None:
        self.deadlines.add(at_ns, item)
        self.times[item] = at_ns


def test_what_is_due_comes_in_the_order_of_its_times() -> None:
    book = Book()
    assert book.deadlines.next_ns() is None and book.deadlines.due(10**18) == []
    for at_ns, item in ((30, "c"), (10, "a"), (40, "d"), (20, "b")):
        book.add(at_ns, item)
    assert book.deadlines.next_ns() == 10
    assert book.deadlines.due(9) == []
    assert book.deadlines.due(30) == ["a", "b", "c"]
    assert book.deadlines.next_ns() == 40
    assert len(book.deadlines) == 1


def test_at_the_same_time_what_was_added_first_comes_first() -> None:
    book = Book()
    names = [str(number) for number in range(50)]
    for name in names:
        book.add(7, name)
    assert book.deadlines.due(7) == names


def test_items_need_no_order_of_their_own() -> None:
    deadlines: Deadlines[object] = Deadlines(lambda at_ns, item: True)
    first, second = object(), object()
    deadlines.add(1, first)
    deadlines.add(1, second)
    assert deadlines.due(1) == [first, second]


def test_what_does_not_count_any_more_is_no_next_time() -> None:
    book = Book()
    book.add(10, "a")
    book.add(20, "b")
    book.add(15, "a")  # it has moved: the first time does not count
    assert book.deadlines.next_ns() == 15
    del book.times["a"]
    assert book.deadlines.next_ns() == 20
    assert len(book.deadlines) == 1, "what is met on the way is dropped"
    del book.times["b"]
    assert book.deadlines.next_ns() is None and len(book.deadlines) == 0


def test_what_does_not_count_any_more_is_not_due() -> None:
    book = Book()
    book.add(10, "a")
    book.add(20, "a")
    assert book.deadlines.due(15) == []
    assert book.deadlines.due(20) == ["a"]
    assert book.deadlines.due(10**9) == []


def test_a_time_in_the_past_is_due_at_once() -> None:
    book = Book()
    book.add(-5, "a")
    assert book.deadlines.next_ns() == -5
    assert book.deadlines.due(0) == ["a"]


def test_it_does_not_grow_with_what_has_gone() -> None:
    """However many have come and gone behind one that stays."""
    book = Book()
    book.add(1, "stays")
    for number in range(20_000):
        book.add(100 + number, str(number))
        del book.times[str(number)]
        assert len(book.deadlines) <= FEW
    assert book.asked < 4 * 20_000, "each is looked at a few times at most"
    assert book.deadlines.due(10**9) == ["stays"]


def test_it_grows_with_what_counts_and_shrinks_again() -> None:
    book = Book()
    for number in range(10_000):
        book.add(10**6 - number, str(number))
    assert len(book.deadlines) == 10_000
    assert book.asked < 2 * 10_000, "all are looked at only when they have doubled"
    for number in range(9_900):
        del book.times[str(number)]
    for number in range(10_001):
        book.add(2 * 10**6 + number, "one")
    assert len(book.deadlines) <= 2 * 101 + FEW
    assert len(book.deadlines.due(10**9)) == 101


def test_what_is_left_is_still_in_order() -> None:
    """Also right after those that do not count have been dropped."""
    pick = random.Random(1)
    book = Book()
    for number in range(5_000):
        book.add(pick.randrange(10**6), str(number % 700))
        if pick.random() < 0.3:
            book.times.pop(str(pick.randrange(700)), None)
        if number % 3 == 0:
            assert book.deadlines.next_ns() == min(book.times.values())
    left = sorted(book.times.items(), key=lambda item: item[1])
    assert [book.times[item] for item in book.deadlines.due(10**6)] == [at_ns for _, at_ns in left]


def test_what_is_just_being_added_is_never_dropped() -> None:
    """Its owner learns of the time only afterwards."""
    book = Book()
    for number in range(1000):
        book.add(number, str(number))
    assert book.deadlines.due(1000) == [str(number) for number in range(1000)]


@given(st.lists(st.tuples(st.integers(0, 30), st.sampled_from("abcdefgh"), st.sampled_from(["add", "drop", "due", "next"])), max_size=300))
def test_it_says_what_a_plain_list_says(steps: list[tuple[int, str, str]]) -> None:
    book = Book()
    for at_ns, item, what in steps:
        if what == "add":
            book.add(at_ns, item)
        elif what == "drop":
            book.times.pop(item, None)
        elif what == "next":
            assert book.deadlines.next_ns() == min(book.times.values(), default=None)
        else:
            due = book.deadlines.due(at_ns)
            # The same item at the same time twice is the same thing said twice.
            assert set(due) == {name for name, time_ns in book.times.items() if time_ns <= at_ns}
            assert [book.times[name] for name in due] == sorted(book.times[name] for name in due)
            for name in due:
                book.times.pop(name, None)


@pytest.mark.parametrize("levels", [0, 3])
def test_requests_that_were_served_leave_the_queues_heap(levels: int) -> None:
    """Ten minutes of time limit, and each served within a moment: the heap is as small as the queue."""
    queue = RequestQueue(QueuePolicy(default_timeout_us=600 * 10**6), levels)
    pick = random.Random(1)
    now_ns = 0
    for _ in range(10_000):
        now_ns += 1000
        queue.push(Request(RequestBody("", 1, [], [], {}), now_ns, lambda response: None, priority=pick.randint(0, levels)), now_ns)
        if len(queue) > 5:
            queue.take([next(iter(queue.scan()))])
        assert len(queue._deadlines) <= FEW
        assert queue.expire(now_ns) == []
    assert len(queue) == 5
    wanted = min(request.deadline_ns for request in queue.scan())
    assert queue.next_deadline_ns() == wanted
    assert {request.deadline_ns for request in queue.expire(now_ns + 700 * 10**9)} >= {wanted}
    assert len(queue) == 0 == len(queue._deadlines)


def test_a_request_that_was_put_back_expires_once() -> None:
    queue = RequestQueue(QueuePolicy(default_timeout_us=1))
    request = Request(RequestBody("", 1, [], [], {}), 0, lambda response: None)
    queue.push(request, 0)
    for _ in range(3):
        queue.take([request])
        queue.push_front([request])
    assert queue.expire(1000) == [request]
    assert queue.next_deadline_ns() is None and len(queue._deadlines) == 0
