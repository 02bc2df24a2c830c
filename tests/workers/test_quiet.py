"""Many work at once, or one does alone."""

from __future__ import annotations

import threading
from collections.abc import Callable

from tensorfarm.workers.quiet import Quiet

PATIENCE_S = 10.0


def started(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_many_work_at_once() -> None:
    quiet, both = Quiet(), threading.Barrier(2)

    def work() -> None:
        with quiet.work(), quiet.work():
            both.wait(PATIENCE_S)

    for thread in [started(work), started(work)]:
        thread.join(PATIENCE_S)
    assert not both.broken


def test_one_alone_waits_for_those_that_work_and_goes_before_those_that_come() -> None:
    quiet, said = Quiet(), list[str]()
    wanted, working = threading.Event(), threading.Event()

    def alone() -> None:
        working.wait(PATIENCE_S)
        wanted.set()
        with quiet.alone():
            said.append("alone")

    def later() -> None:
        wanted.wait(PATIENCE_S)
        while not quiet._waiting:
            pass
        with quiet.work():
            said.append("later")

    threads = [started(alone), started(later)]
    with quiet.work():
        working.set()
        wanted.wait(PATIENCE_S)
        while not quiet._waiting:
            pass
        # Whoever works already may begin again.
        with quiet.work():
            said.append("first")
    for thread in threads:
        thread.join(PATIENCE_S)
    assert said == ["first", "alone", "later"]


def test_all_that_work_may_come_to_want_to_be_alone() -> None:
    """None of them waits for the others to end first, and only one is at a time."""
    quiet, inside, most = Quiet(), 0, 0
    ready = threading.Barrier(4)

    def work() -> None:
        nonlocal inside, most
        with quiet.work():
            ready.wait(PATIENCE_S)
            for _ in range(50):
                with quiet.alone():
                    inside += 1
                    most = max(most, inside)
                    with quiet.work():
                        inside -= 1

    threads = [started(work) for _ in range(4)]
    for thread in threads:
        thread.join(PATIENCE_S)
    assert not any(thread.is_alive() for thread in threads)
    assert most == 1 and quiet._working == 0 and not quiet._alone
