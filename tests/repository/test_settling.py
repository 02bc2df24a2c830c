"""A change is taken once it has stayed as it is for a while."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tensorfarm.server.repository.settling import Settling
from tensorfarm.server.repository.source import Stamps

WHILE_NS = 100
ONE: Stamps = {"1/x": 1}
OTHER: Stamps = {"1/x": 2}


def test_it_has_to_be_seen_twice() -> None:
    settling = Settling(WHILE_NS)
    assert settling.ready({"m": ONE}, 0) == [] and settling.waiting
    assert settling.ready({"m": ONE}, WHILE_NS - 1) == [] and settling.waiting
    assert settling.ready({"m": ONE}, WHILE_NS) == ["m"] and not settling.waiting


def test_another_change_begins_anew() -> None:
    settling = Settling(WHILE_NS)
    settling.ready({"m": ONE, "n": None}, 0)
    assert settling.ready({"m": OTHER, "n": None}, WHILE_NS) == ["n"]
    assert settling.ready({"m": OTHER}, 2 * WHILE_NS) == ["m"]


def test_one_that_went_and_came_back_as_another() -> None:
    settling = Settling(WHILE_NS)
    settling.ready({"m": None}, 0)
    assert settling.ready({"m": ONE}, WHILE_NS) == []
    assert settling.ready({"m": ONE}, 2 * WHILE_NS) == ["m"]


def test_a_change_that_was_undone_is_forgotten() -> None:
    settling = Settling(WHILE_NS)
    settling.ready({"m": ONE}, 0)
    assert settling.ready({}, 50) == [] and not settling.waiting
    assert settling.ready({"m": ONE}, WHILE_NS) == []


def test_without_a_while_all_is_taken_at_once() -> None:
    assert Settling(0).ready({"m": ONE, "n": None}, 5) == ["m", "n"]


@given(st.lists(st.tuples(st.integers(1, 60), st.sampled_from([ONE, OTHER, None, "absent"])), max_size=30))
def test_what_is_ready_was_the_same_for_long_enough(looks: list[tuple[int, Stamps | str | None]]) -> None:
    settling = Settling(WHILE_NS)
    now_ns, since_ns = 0, 0
    before: object = "absent"
    for step_ns, stamps in looks:
        now_ns += step_ns
        if stamps != before:
            since_ns = now_ns
        before = stamps
        ready = settling.ready({} if isinstance(stamps, str) else {"m": stamps}, now_ns)
        expected = stamps != "absent" and now_ns - since_ns >= WHILE_NS
        assert ready == (["m"] if expected else [])
        if expected:
            # It has been taken over; where it is still told of as changed, it is looked at anew.
            before = "taken"
