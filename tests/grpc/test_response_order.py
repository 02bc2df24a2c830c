"""In which order the messages of a stream leave."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tensorfarm.server.grpc.response_order import Place, ResponseOrder

Message = tuple[int, int]


def test_each_waits_for_those_before() -> None:
    left: list[str] = []
    order: ResponseOrder[str] = ResponseOrder(left.append)
    first, second, third = order.enter(), order.enter(), order.enter()
    order.add(third, "3")
    order.end(third)
    order.add(second, "2")
    assert left == []
    order.add(first, "1")
    order.end(first)
    assert left == ["1", "2"]
    assert not order.empty
    order.end(second)
    assert left == ["1", "2", "3"] and order.empty


def test_decoupled_ones_wait_for_nobody_and_nobody_for_them() -> None:
    left: list[str] = []
    order: ResponseOrder[str] = ResponseOrder(left.append)
    first, free, last = order.enter(), order.enter(), order.enter()
    order.free(free)
    order.add(free, "free")
    order.add(last, "last")
    assert left == ["free"]
    order.end(first)
    assert left == ["free", "last"]
    order.end(last)
    order.add(free, "again")
    assert left[-1] == "again" and not order.empty
    order.end(free)
    assert order.empty


def test_a_message_may_make_others_enter_and_leave() -> None:
    left: list[str] = []

    def leave(message: str) -> None:
        left.append(message)
        if message == "2":
            order.add(second, "2b")

    order: ResponseOrder[str] = ResponseOrder(leave)
    first, second = order.enter(), order.enter()
    order.add(second, "2")
    order.end(first)
    assert left == ["2", "2b"]


steps = st.lists(st.tuples(st.sampled_from(["enter", "enter free", "add", "end"]), st.integers(0, 30)), max_size=80)


@given(steps)
@settings(max_examples=300, deadline=None)
def test_any_exchange(sequence: list[tuple[str, int]]) -> None:
    left: list[Message] = []
    order: ResponseOrder[Message] = ResponseOrder(left.append)
    places: dict[int, Place[Message]] = {}
    open_ones: list[int] = []
    free: set[int] = set()
    made: dict[int, int] = {}

    def end(number: int) -> None:
        open_ones.remove(number)
        order.end(places[number])

    for what, choice in sequence:
        if what.startswith("enter"):
            number = len(places)
            places[number] = order.enter()
            open_ones.append(number)
            made[number] = 0
            if what == "enter free":
                free.add(number)
                order.free(places[number])
        elif open_ones:
            number = open_ones[choice % len(open_ones)]
            if what == "end":
                end(number)
            else:
                before = len(left)
                order.add(places[number], (number, made[number]))
                made[number] += 1
                if number in free:
                    assert left[before:] == [(number, made[number] - 1)]
        assert order.empty == (not open_ones)
    while open_ones:
        end(open_ones[0])
    ordered = [message for message in left if message[0] not in free]
    assert ordered == sorted(ordered)
    assert sorted(left) == [(number, index) for number in made for index in range(made[number])]
