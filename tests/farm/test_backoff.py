"""How long a worker that died stays away."""

from __future__ import annotations

import pytest

from tensorfarm.server.farm.backoff import LONGEST_SECS, STABLE_NS, Backoff


def test_at_once_then_ever_longer_up_to_a_limit() -> None:
    backoff = Backoff()
    assert [backoff.delay_secs(0) for _ in range(9)] == [0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]


def test_a_long_life_clears_the_account() -> None:
    backoff = Backoff()
    for _ in range(5):
        backoff.delay_secs(STABLE_NS - 1)
    assert backoff.deaths == 5
    assert backoff.delay_secs(STABLE_NS) == 0.0
    assert backoff.delay_secs(0) == 1.0


@pytest.mark.parametrize("deaths", [100, 2000, 100_000])
def test_any_number_of_deaths(deaths: int) -> None:
    assert Backoff(deaths).delay_secs(0) == LONGEST_SECS
