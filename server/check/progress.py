"""How far a check is: a bar on a terminal, once it takes long."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

PATIENCE_SECS = 0.7
"""Whatever takes less needs no bar."""


class CheckProgress:
    """A bar on stderr, where that is a terminal; to be used as a context."""

    def __init__(self, *, terminal: bool | None = None) -> None:
        self._terminal = sys.stderr is not None and sys.stderr.isatty() if terminal is None else terminal
        self._start_secs = time.monotonic()
        self._bar: Progress | None = None

    def __enter__(self) -> CheckProgress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, model: str, done: int, total: int) -> None:
        """So many models have been checked; ``model`` was the last."""
        if self._bar is None:
            if not self._terminal or time.monotonic() - self._start_secs < PATIENCE_SECS or done >= total:
                return
            self._bar = _bar()
            self._task = self._bar.add_task("checking", total=total)
            self._bar.start()
        self._bar.update(self._task, completed=done)


def _bar() -> Progress:
    # Only where a bar is shown: the import takes longer than checking a small repository.
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True, force_terminal=True), transient=True, refresh_per_second=4)
