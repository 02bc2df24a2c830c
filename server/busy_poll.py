"""Keeps the loop awake for a moment, so that the next event of a lone client does not have to wake it.

Waking a thread that sleeps on an idle processor takes longer than all else that a small request needs
(ARCHITECTURE.md, "Measured"); a loop that looks again and again finds its caches warm, too.
"""

from __future__ import annotations

import time
from collections.abc import Callable

DEFAULT_US = 100
"""How long the loop stays awake where the command line says nothing and another core is there for the workers."""


class BusyPoll:
    """Polls until ``window_us`` microseconds after the last call of ``stay_awake``; 0 is never.

    ``call_soon`` is the loop's: as long as something is to be called, the loop looks for events without sleeping.
    """

    def __init__(
        self, window_us: int, call_soon: Callable[[Callable[[], None]], object], clock_ns: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._window_ns = window_us * 1000
        self._call_soon = call_soon
        self._clock_ns = clock_ns
        self._until_ns = 0
        self._polling = False

    def stay_awake(self) -> None:
        """Something is about to happen: do not sleep yet."""
        if self._window_ns:
            self._until_ns = self._clock_ns() + self._window_ns
            if not self._polling:
                self._polling = True
                self._call_soon(self._poll)

    def _poll(self) -> None:
        if self._clock_ns() < self._until_ns:
            self._call_soon(self._poll)
        else:
            self._polling = False
