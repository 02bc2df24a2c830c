"""A copy of a model's files that several versions use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .source import Copy


class SharedCopy:
    """Counts those who use a ``Copy``; ``release`` is called with it, loop thread only, once there are none any more.

    Whoever makes it is its first user.
    """

    def __init__(self, copy: Copy, release: Callable[[Copy], None]) -> None:
        self.files = copy
        self._release = release
        self._users = 1

    @property
    def directory(self) -> Path:
        """The model's folder."""
        return self.files.directory

    def take(self) -> SharedCopy:
        """One more uses it."""
        self._users += 1
        return self

    def drop(self) -> None:
        """One uses it no more."""
        self._users -= 1
        if not self._users:
            self._release(self.files)
