"""Which changes of the repositories are whole: what is still being copied, moved or deleted is not taken yet.

Sans-IO: what was found and the time are arguments.
"""

from __future__ import annotations

from collections.abc import Mapping

from .source import Stamps


class Settling:
    """Changes that were seen; one is ready once it has looked the same for ``settle_ns`` nanoseconds."""

    def __init__(self, settle_ns: int) -> None:
        self._settle_ns = settle_ns
        self._waiting: dict[str, tuple[Stamps | None, int]] = {}

    @property
    def waiting(self) -> bool:
        """Is there a change that is not ready yet?"""
        return bool(self._waiting)

    def ready(self, changed: Mapping[str, Stamps | None], now_ns: int) -> list[str]:
        """Those of the changed models that stay as they are now; None stands for one that is not there any more."""
        waiting: dict[str, tuple[Stamps | None, int]] = {}
        ready = []
        for name, stamps in changed.items():
            before, since_ns = self._waiting.get(name, (stamps, now_ns))
            if before != stamps:
                since_ns = now_ns
            if now_ns - since_ns >= self._settle_ns:
                ready.append(name)
            else:
                waiting[name] = (stamps, since_ns)
        self._waiting = waiting
        return ready
