"""Pings and ages of connections, in virtual time."""

from __future__ import annotations

import pytest

from tensorfarm.server.grpc.keep_alive import KeepAlive, KeepAliveSettings, Step

BRISK = KeepAliveSettings(interval_s=10, timeout_s=2, most_pings_without_data=2, least_interval_s=5, most_strikes=2)


def test_a_silent_client_with_calls_is_asked_and_then_left() -> None:
    state = KeepAlive(BRISK, 100)
    assert state.step(109.9, True) is Step.NOTHING
    assert state.step(110, True) is Step.PING
    assert state.step(111.9, True) is Step.NOTHING
    assert state.step(112, True) is Step.CLOSE


def test_any_sign_of_life_counts() -> None:
    state = KeepAlive(BRISK, 0)
    state.heard(9)
    assert state.step(10, True) is Step.NOTHING
    assert state.step(19, True) is Step.PING
    state.heard(20)
    assert state.step(21, True) is Step.NOTHING
    assert state.step(30, True) is Step.PING


def test_without_calls_nobody_is_asked_unless_that_is_wanted() -> None:
    assert KeepAlive(BRISK, 0).step(1000, False) is Step.NOTHING
    wanted = KeepAlive(KeepAliveSettings(interval_s=10, without_calls=True), 0)
    assert wanted.step(1000, False) is Step.PING


def test_only_so_many_pings_go_without_data() -> None:
    state = KeepAlive(BRISK, 0)
    for now in (10, 20):
        assert state.step(now, True) is Step.PING
        state.heard(now)
    assert state.step(30, True) is Step.NOTHING
    state.sent()
    assert state.step(30, True) is Step.PING
    endless = KeepAlive(KeepAliveSettings(interval_s=10, most_pings_without_data=0), 0)
    for now in range(10, 200, 10):
        assert endless.step(now, True) is Step.PING
        endless.heard(now)


@pytest.mark.parametrize(("busy", "apart", "welcome"), [(True, 4, 3), (True, 5, 99), (False, 6, 3), (False, 7199, 3), (False, 7200, 99)])
def test_a_client_may_ask_only_so_often(busy: bool, apart: float, welcome: int) -> None:
    """Two strikes are forgiven; without calls, once in two hours is enough."""
    state = KeepAlive(BRISK, 0)
    answers = [state.pinged(index * apart, busy) for index in range(10)]
    assert answers == [index < welcome for index in range(10)]


def test_answers_wipe_strikes_out() -> None:
    state = KeepAlive(BRISK, 0)
    for now in range(100):
        assert state.pinged(now, True)
        if now % 3 == 2:
            state.sent()


def test_any_number_of_strikes() -> None:
    state = KeepAlive(KeepAliveSettings(most_strikes=0), 0)
    assert all(state.pinged(0, False) for _ in range(1000))


def test_without_calls_as_with_them_where_that_is_allowed() -> None:
    state = KeepAlive(KeepAliveSettings(without_calls=True, least_interval_s=5), 0)
    assert all(state.pinged(now, False) for now in range(0, 100, 5))


def test_an_old_connection_is_left_and_closed_after_its_grace() -> None:
    state = KeepAlive(KeepAliveSettings(most_age_s=50, grace_s=5), 100)
    state.heard(149)
    assert state.step(149, True) is Step.NOTHING
    assert state.step(150, True) is Step.LEAVE
    assert state.step(154, True) is Step.NOTHING
    assert state.step(155, True) is Step.CLOSE
    patient = KeepAlive(KeepAliveSettings(most_age_s=50), 0)
    assert patient.step(50, True) is Step.LEAVE
    assert patient.step(1e9, True) is Step.NOTHING
