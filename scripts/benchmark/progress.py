"""How far a run is: a bar on a terminal, a line now and then where there is none."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_LINE_EVERY_SECS = 15.0


class Steps:
    """A known number of steps."""

    def __init__(self, console: Console, what: str, total: int) -> None:
        self._console = console
        self._what = what
        self._total = total
        self._done = 0
        self._start_secs = self._said_secs = time.monotonic()
        self._bar: Progress | None = None
        if console.is_terminal:
            columns: tuple[ProgressColumn, ...] = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            columns += (TimeElapsedColumn(), TimeRemainingColumn())
            # seldom drawn anew: that takes from the cores that are measured
            self._bar = Progress(*columns, console=console, transient=True, refresh_per_second=2)
            self._task = self._bar.add_task(what, total=total)

    def say(self, doing: str) -> None:
        """Show what is being done; it is no step."""
        if self._bar:
            self._bar.update(self._task, description=f"{self._what}: {doing}")

    def advance(self, doing: str) -> None:
        """The step ``doing`` begins."""
        self.say(doing)
        self._done += 1
        if self._bar:
            self._bar.advance(self._task)
            return
        now_secs = time.monotonic()
        if now_secs - self._said_secs >= _LINE_EVERY_SECS or self._done == 1:
            self._said_secs = now_secs
            elapsed_secs = now_secs - self._start_secs
            self._console.print(f"{self._what}: {self._done} of {self._total}, {doing}, after {elapsed_secs:.0f} s", highlight=False)

    def start(self) -> None:
        """Begin to show it."""
        if self._bar:
            self._bar.start()

    def stop(self) -> None:
        """Take the bar away."""
        if self._bar:
            self._bar.stop()


@contextmanager
def steps(console: Console, what: str, total: int) -> Iterator[Steps]:
    """Show the progress of ``total`` steps while the block runs."""
    shown = Steps(console, what, total)
    shown.start()
    try:
        yield shown
    finally:
        shown.stop()
