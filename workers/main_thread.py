"""The main thread of a worker, at the service of models: some of what they use works nowhere else (signal handlers, for one)."""

from __future__ import annotations

import queue
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


class MainThread:
    """Runs what other threads hand it, one after the other."""

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()

    def start(self, work: Callable[[], None]) -> None:
        """Have ``work`` run as soon as what came before it has ended. What it raises ends ``serve``."""
        self._work.put(work)

    def call(self, work: Callable[[], T]) -> T:
        """Have ``work`` run and wait for its outcome; raises what it raises, ``SystemExit`` included."""
        outcome: Future[T] = Future()

        def run() -> None:
            try:
                outcome.set_result(work())
            except BaseException as error:  # noqa: BLE001
                # It is raised where it was asked for.
                outcome.set_exception(error)

        self._work.put(run)
        return outcome.result()

    def serve(self) -> None:
        """Run what comes, for ever; in the main thread."""
        while True:
            self._work.get()()
