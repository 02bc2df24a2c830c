from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tensorfarm.server.pace import LEAST_S, MOST_S, Pace

S = 1_000_000_000


def test_who_comes_first_knows_nothing() -> None:
    assert Pace().retry_after_s(1000, 5, 7 * S) == LEAST_S


def test_the_rate_of_the_last_seconds_tells_the_time() -> None:
    pace = Pace()
    pace.retry_after_s(0, 100, 0)
    assert pace.retry_after_s(50, 110, 1 * S) == 5, "10 were finished in a second"
    assert pace.retry_after_s(51, 110, 1 * S) == 6, "whole seconds, so that nobody comes too early"
    assert pace.retry_after_s(50, 140, 3 * S) == 4, "40 in three seconds"
    # From here on what is older than two windows counts no more.
    pace.retry_after_s(50, 240, 5 * S)
    assert pace.retry_after_s(50, 390, 6 * S) == 1


def test_nothing_is_finished() -> None:
    pace = Pace()
    pace.retry_after_s(8, 0, 0)
    assert [pace.retry_after_s(8, 0, now) for now in (S // 10, S // 2, S, 2 * S, 9 * S)] == [1, 4, 8, 16, MOST_S]


def test_what_was_long_ago_is_forgotten() -> None:
    pace = Pace()
    pace.retry_after_s(8, 0, 0)
    assert pace.retry_after_s(8, 0, 1 * S) == 8
    assert pace.retry_after_s(8, 0, 60 * S) == LEAST_S
    assert pace.retry_after_s(8, 8, 61 * S) == 1


def test_a_count_that_begins_again() -> None:
    """That of a model which was loaded anew."""
    pace = Pace()
    pace.retry_after_s(8, 100, 0)
    assert pace.retry_after_s(8, 3, S) == LEAST_S
    assert pace.retry_after_s(8, 4, 2 * S) == 8


def test_an_answer_is_fresh_for_a_moment() -> None:
    pace = Pace()
    assert not pace.fresh(0)
    pace.retry_after_s(8, 0, 0)
    assert pace.fresh(S // 100) and not pace.fresh(S)


@given(st.lists(st.tuples(st.integers(0, 5 * S), st.integers(0, 1000), st.integers(0, 10**6)), max_size=30))
def test_it_is_always_within_bounds(steps: list[tuple[int, int, int]]) -> None:
    pace = Pace()
    now_ns = finished = 0
    for later_ns, more, in_flight in steps:
        now_ns += later_ns
        finished += more
        assert LEAST_S <= pace.retry_after_s(in_flight, finished, now_ns) <= MOST_S
