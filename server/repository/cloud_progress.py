"""How far a slow download is, for the log."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

INTERVAL_S = 5.0
"""Between two lines; what takes less is not told of."""


class Progress:
    """The files of one download. Its methods may be called by several threads."""

    def __init__(
        self, what: str, files: int, byte_size: int, tell: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._what = what
        self._files = files
        self._byte_size = byte_size
        self._tell = tell
        self._clock = clock
        self._lock = threading.Lock()
        self._received: dict[int, int] = {}
        self._finished = 0
        self._next = clock() + INTERVAL_S

    def received(self, number: int, byte_size: int) -> None:
        """A file has this many bytes by now."""
        with self._lock:
            self._received[number] = byte_size
            text = self._due()
        if text:
            self._tell(text)

    def finished(self, number: int, byte_size: int) -> None:
        """A file is complete."""
        with self._lock:
            self._received[number] = byte_size
            self._finished += 1
            text = self._due()
        if text:
            self._tell(text)

    def _due(self) -> str:
        now = self._clock()
        if now < self._next:
            return ""
        self._next = now + INTERVAL_S
        megabytes = sum(self._received.values()) / 1e6
        return f"downloading {self._what}: {self._finished} of {self._files} files, {megabytes:.1f} of {self._byte_size / 1e6:.1f} MB"
