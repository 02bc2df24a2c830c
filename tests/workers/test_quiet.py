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


def beside(quiet: Quiet) -> None:
    with quiet.work():
        pass


def test_many_work_at_once() -> None:
    quiet, both = Quiet(), threading.Barrier(2)

    def work() -> None:
        with quiet.work(), quiet.work():
            both.wait(PATIENCE_S)

    for thread in [started(work), started(work)]:
        thread.join(PATIENCE_S)
    assert not both.broken


def test_one_alone_waits_for_those_that_work_and_keeps_others_out() -> None:
    quiet, said = Quiet(), list[str]()
    inside = threading.Event()

    def alone() -> None:
        with quiet.alone(PATIENCE_S) as is_alone:
            assert is_alone
            inside.set()
            said.append("alone")
            later.start()
            said.append("still alone")

    def work() -> None:
        with quiet.work():
            said.append("later")

    later = threading.Thread(target=work)
    with quiet.work():
        thread = started(alone)
        # Those that wait to be alone hold up nobody.
        other = started(lambda: beside(quiet))
        other.join(PATIENCE_S)
        assert not other.is_alive() and not inside.is_set()
        said.append("first")
    thread.join(PATIENCE_S)
    later.join(PATIENCE_S)
    assert said == ["first", "alone", "still alone", "later"]


def test_one_that_others_do_not_let_be_alone_works_beside_them() -> None:
    """Also where it has worked already, and where those others wait for what only a third one can do."""
    quiet, opened = Quiet(), threading.Event()

    def waits() -> None:
        with quiet.work():
            ready.wait(PATIENCE_S)
            assert opened.wait(PATIENCE_S)

    def opens() -> None:
        with quiet.work():
            opened.set()

    ready = threading.Barrier(2)
    first = started(waits)
    ready.wait(PATIENCE_S)
    with quiet.work(), quiet.alone(0.01) as is_alone:
        assert not is_alone
        second = started(opens)
        second.join(PATIENCE_S)
        first.join(PATIENCE_S)
    assert opened.is_set() and quiet._working == 0 and not quiet._alone


def test_all_that_work_may_come_to_want_to_be_alone() -> None:
    """None of them waits for the others to end first, and only one is at a time."""
    quiet, inside, most = Quiet(), 0, 0
    ready = threading.Barrier(4)

    def work() -> None:
        nonlocal inside, most
        with quiet.work():
            ready.wait(PATIENCE_S)
            for _ in range(50):
                with quiet.alone(PATIENCE_S) as is_alone:
                    assert is_alone
                    inside += 1
                    most = max(most, inside)
                    with quiet.work():
                        inside -= 1

    threads = [started(work) for _ in range(4)]
    for thread in threads:
        thread.join(PATIENCE_S)
    assert not any(thread.is_alive() for thread in threads)
    assert most == 1 and quiet._working == 0 and not quiet._alone
