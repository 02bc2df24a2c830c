"""The loop stays awake for its window after the last sign of life, and no longer."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tensorfarm.server import server
from tensorfarm.server.busy_poll import BusyPoll
from tensorfarm.server.command_line import parse


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


@pytest.mark.parametrize(("given", "cores", "expected_us"), [(None, 1, 0), (None, 2, 100), (None, 64, 100), (0, 2, 0), (30, 1, 30)])
def test_a_single_core_is_left_to_the_workers(monkeypatch: pytest.MonkeyPatch, given: int | None, cores: int, expected_us: int) -> None:
    monkeypatch.setattr(server, "usable_core_count", lambda: cores)
    flags = [] if given is None else [f"--busy-poll-us={given}"]
    assert server.busy_poll_us(parse([*flags, "--model-repository=models"])) == expected_us


def test_polling_for_ever_cannot_be_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--busy-poll-us=10001"])
    assert "--busy-poll-us must be between 0 and 10000" in "".join(capsys.readouterr())
