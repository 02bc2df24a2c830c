"""Where a request's tensors are put that cannot stay where they were received."""

from __future__ import annotations

from typing import Protocol

from ...shm.arena import Arena, ArenaFull, Block
from ...shm.placement import Inline, Placement, Span
from ...workers.contract.status import unavailable

INLINE_BYTE_SIZE = 64 * 1024
"""Bodies, and tensors that came as JSON, ride inside messages up to this size, and lie in the arena above it."""

NO_MEMORY = (
    "no memory left for the request body: requests in flight hold the server's arena; use --pinned-memory-pool-byte-size to enlarge it"
)
"""What a request is told that the arena has no room for."""


class Regions(Protocol):
    """Registered shared memory, as far as requests refer to it."""

    def span(self, name: str, offset: int, byte_size: int) -> Span:
        """A part of a region. Raises StatusError."""
        ...


def block_with(arena: Arena | None, content: bytes | memoryview) -> Block | None:
    """A block of the arena with a copy of ``content``; None where that is small enough to ride inside a message.

    Raises StatusError UNAVAILABLE where the arena is full.
    """
    if arena is None or len(content) <= INLINE_BYTE_SIZE:
        return None
    try:
        block = arena.reserve(len(content))
    except ArenaFull:
        raise unavailable(NO_MEMORY) from None
    block.view[: len(content)] = content
    return block


class Scratch:
    """Memory for what had to be decoded: small pieces in messages, larger ones in the arena, given back together."""

    __slots__ = ("_arena", "_blocks")

    def __init__(self, arena: Arena | None = None) -> None:
        self._arena = arena
        self._blocks: list[Block] = []

    def place(self, content: bytes | memoryview) -> Placement:
        """A placement with a copy of ``content`` or ``content`` itself. Raises StatusError UNAVAILABLE where the arena is full."""
        block = block_with(self._arena, content)
        if block is None:
            return Inline(memoryview(content))
        self._blocks.append(block)
        return block.place(0, len(content))

    def release(self) -> None:
        """Give everything back; nobody reads it any more."""
        for block in self._blocks:
            block.release()
        self._blocks.clear()
