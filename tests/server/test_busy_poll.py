"""The loop stays awake for its window after the last sign of life, and no longer."""

from __future__ import annotations

from collections.abc import Callable

from tensorfarm.server.busy_poll import BusyPoll


class Turns:
    """A loop whose turns take 10 µs each."""

    def __init__(self, window_us: int) -> None:
        self.now_ns = 5_000_000
        self.soon: list[Callable[[], None]] = []
        self.poll = BusyPoll(window_us, self.soon.append, lambda: self.now_ns)

    def until_asleep(self) -> int:
        """Take turns until the loop would sleep; returns the microseconds that took."""
        start_ns = self.now_ns
        while self.soon:
            self.now_ns += 10_000
            soon, self.soon[:] = list(self.soon), []
            for call in soon:
                call()
        return (self.now_ns - start_ns) // 1000


def test_the_loop_sleeps_once_the_window_is_over() -> None:
    turns = Turns(100)
    turns.poll.stay_awake()
    assert turns.until_asleep() == 100
    assert turns.until_asleep() == 0
    turns.poll.stay_awake()
    assert turns.until_asleep() == 100


def test_a_sign_of_life_begins_the_window_anew_and_adds_no_second_poll() -> None:
    turns = Turns(100)
    turns.poll.stay_awake()
    turns.now_ns += 60_000
    turns.poll.stay_awake()
    assert len(turns.soon) == 1
    assert turns.until_asleep() == 100


def test_a_window_of_nothing_never_polls() -> None:
    turns = Turns(0)
    turns.poll.stay_awake()
    assert not turns.soon
