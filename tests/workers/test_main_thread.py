"""The main thread at the service of others: in order, with outcomes, and never stopped by what it runs."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from tensorfarm.workers.main_thread import MainThread

from .fakes import PATIENCE_S


class _Stop(BaseException):
    pass


class Serving:
    """A thread that plays the main one."""

    def __init__(self) -> None:
        self.main = MainThread()
        self.raised: list[BaseException] = []
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        try:
            self.main.serve()
        except BaseException as error:  # noqa: BLE001  # told to the test
            self.raised.append(error)


def _stop() -> None:
    raise _Stop


@pytest.fixture
def serving() -> Iterator[Serving]:
    made = Serving()
    yield made
    made.main.start(_stop)
    made.thread.join(PATIENCE_S)
    assert not made.thread.is_alive()


def test_what_is_called_runs_there(serving: Serving) -> None:
    assert serving.main.call(threading.current_thread) is serving.thread


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), KeyboardInterrupt()])
def test_what_it_raises_is_raised_to_the_caller_alone(serving: Serving, error: BaseException) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(type(error)) as raised:
        serving.main.call(fail)
    assert raised.value is error
    assert serving.main.call(lambda: 5) == 5 and serving.raised == []


def test_one_after_the_other(serving: Serving) -> None:
    go = threading.Event()
    order: list[int] = []
    serving.main.start(lambda: order.append(1) if go.wait(PATIENCE_S) else None)
    serving.main.start(lambda: order.append(2))
    assert order == []
    go.set()
    serving.main.call(lambda: order.append(3))
    assert order == [1, 2, 3]


def test_what_is_only_started_ends_the_thread_where_it_raises() -> None:
    serving = Serving()

    def fail() -> None:
        raise ValueError("an instance has ended")

    serving.main.start(fail)
    serving.thread.join(PATIENCE_S)
    assert [type(error) for error in serving.raised] == [ValueError]
