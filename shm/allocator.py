"""Which part of an arena is taken: first fit over a sorted free list. No memory is touched here."""

from __future__ import annotations

from bisect import bisect_left

GRANULE_BYTE_SIZE = 4096
"""Blocks are whole pages, so that a freed one can be handed back to the system."""


class ArenaFull(Exception):
    """No free part of an arena is large enough."""

    def __init__(self, wanted_byte_size: int, used_byte_size: int, capacity_byte_size: int) -> None:
        super().__init__(f"{wanted_byte_size} bytes wanted, {used_byte_size} of {capacity_byte_size} bytes in use")
        self.wanted_byte_size = wanted_byte_size


class Allocator:
    """Hands out offsets in ``[0, capacity_byte_size)``, lowest first, so that warm pages are used again."""

    def __init__(self, capacity_byte_size: int) -> None:
        self.capacity_byte_size = capacity_byte_size // GRANULE_BYTE_SIZE * GRANULE_BYTE_SIZE
        self.used_byte_size = 0
        self._free_starts = [0] if self.capacity_byte_size else []
        self._free_sizes = [self.capacity_byte_size] if self.capacity_byte_size else []
        self._taken: dict[int, int] = {}

    def reserve(self, byte_size: int) -> int:
        """Take a block of at least ``byte_size`` bytes; returns its offset. Raises ArenaFull."""
        size = max(1, -(-byte_size // GRANULE_BYTE_SIZE)) * GRANULE_BYTE_SIZE
        index = self._first_fit(size)
        if index is None:
            raise ArenaFull(byte_size, self.used_byte_size, self.capacity_byte_size)
        start = self._free_starts[index]
        free_size = self._free_sizes[index]
        if free_size == size:
            del self._free_starts[index], self._free_sizes[index]
        else:
            self._free_starts[index] = start + size
            self._free_sizes[index] = free_size - size
        self._taken[start] = size
        self.used_byte_size += size
        return start

    def _first_fit(self, size: int) -> int | None:
        for index, free_size in enumerate(self._free_sizes):
            if free_size >= size:
                return index
        return None

    def extend(self, offset: int, byte_size: int) -> bool:
        """Make the block that begins at ``offset`` at least ``byte_size`` bytes long where it lies, never shorter.

        False, and nothing done, where too little behind it is free. Raises KeyError where no block begins at ``offset``.
        """
        size = self._taken[offset]
        more = -(-byte_size // GRANULE_BYTE_SIZE) * GRANULE_BYTE_SIZE - size
        if more <= 0:
            return True
        starts, sizes = self._free_starts, self._free_sizes
        index = bisect_left(starts, offset + size)
        if index == len(starts) or starts[index] != offset + size or sizes[index] < more:
            return False
        if sizes[index] == more:
            del starts[index], sizes[index]
        else:
            starts[index] += more
            sizes[index] -= more
        self._taken[offset] = size + more
        self.used_byte_size += more
        return True

    def free_parts(self) -> list[tuple[int, int]]:
        """Offset and byte size of each part that nobody has, in order."""
        return list(zip(self._free_starts, self._free_sizes, strict=True))

    def free(self, offset: int) -> int:
        """Give a block back; returns its size in bytes. Raises KeyError where none begins at ``offset``."""
        size = self._taken.pop(offset)
        self.used_byte_size -= size
        starts, sizes = self._free_starts, self._free_sizes
        index = bisect_left(starts, offset)
        joins_next = index < len(starts) and offset + size == starts[index]
        joins_previous = index > 0 and starts[index - 1] + sizes[index - 1] == offset
        if joins_previous and joins_next:
            sizes[index - 1] += size + sizes[index]
            del starts[index], sizes[index]
        elif joins_previous:
            sizes[index - 1] += size
        elif joins_next:
            starts[index] = offset
            sizes[index] += size
        else:
            starts.insert(index, offset)
            sizes.insert(index, size)
        return size
