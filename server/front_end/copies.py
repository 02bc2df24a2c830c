"""Large outputs that lie in ordinary memory, a response cache's above all, where front ends can read them: one copy for all at a time."""

from __future__ import annotations

from collections.abc import Iterable

from ...shm.arena import Arena, ArenaFull, Block
from ...shm.placement import Lease


class Copy:
    """A copy of ``content``, and how many responses it is part of."""

    __slots__ = ("block", "content", "lease", "users")

    def __init__(self, content: memoryview, block: Block) -> None:
        self.content = content
        self.block = block
        self.lease: Lease = block.place(0, len(content))
        self.users = 0


class Copies:
    """Copies in an arena, for as long as they are used."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._by_identity: dict[int, Copy] = {}

    def of(self, content: memoryview) -> Copy | None:
        """The copy of ``content``, used once more; None where there is no room for it."""
        copy = self._by_identity.get(id(content))
        if copy is None:
            try:
                block = self._arena.reserve(len(content))
            except ArenaFull:
                return None
            block.view[:] = content
            # It knows the content, so that no other gets its identity meanwhile.
            copy = self._by_identity[id(content)] = Copy(content, block)
        copy.users += 1
        return copy

    def drop(self, copies: Iterable[Copy]) -> None:
        """They are used once less."""
        for copy in copies:
            copy.users -= 1
            if not copy.users:
                del self._by_identity[id(copy.content)]
                copy.block.release()
