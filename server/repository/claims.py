"""Which models an operation works on: those that touch the same model come one after the other, all others run side by side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager


class Claims:
    """Names held by operations; who comes first holds first, also where only some of its names are taken."""

    def __init__(self) -> None:
        self._held: set[str] = set()
        self._waiting: dict[asyncio.Future[None], frozenset[str]] = {}

    @asynccontextmanager
    async def hold(self, names: Collection[str]) -> AsyncIterator[None]:
        """Hold all of these names at once, for as long as the block runs."""
        wanted = frozenset(names)
        if not self._held.isdisjoint(wanted) or any(not ahead.isdisjoint(wanted) for ahead in self._waiting.values()):
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting[turn] = wanted
            try:
                await turn
            except asyncio.CancelledError:
                if self._waiting.pop(turn, None) is None:
                    # They were given to it just before.
                    self._give_back(wanted)
                else:
                    self._wake()
                raise
        else:
            self._held |= wanted
        try:
            yield
        finally:
            self._give_back(wanted)

    def _give_back(self, names: frozenset[str]) -> None:
        self._held -= names
        self._wake()

    def _wake(self) -> None:
        blocked = set(self._held)
        for turn, wanted in list(self._waiting.items()):
            if turn.cancelled():
                continue  # whoever waited takes it out
            if blocked.isdisjoint(wanted):
                del self._waiting[turn]
                self._held |= wanted
                turn.set_result(None)
            blocked |= wanted
