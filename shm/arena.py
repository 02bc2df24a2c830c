"""Arenas: the farm's own tensor memory, in sealed memfds without a name.

Nothing of an arena shows in /dev/shm, so nothing is left after a SIGKILL, no client can register
it, and Docker's 64 MB limit does not apply. The one allocating owner maps it writable; everybody
else gets a read-only descriptor. A memfd has no quota of its own: the allocator's capacity is the budget.
"""

from __future__ import annotations

import fcntl
import mmap
import os

from .allocator import Allocator, ArenaFull
from .placement import Lease

__all__ = ["Arena", "ArenaFull", "ArenaView", "Block", "create_memory", "read_only"]


def create_memory(byte_size: int) -> int:
    """Make a sealed memfd of ``byte_size`` bytes (sparse: pages exist once written); returns its descriptor.

    The seals forbid shrinking and growing, so that no holder of the descriptor can make another's
    access fault.
    """
    fd = os.memfd_create("tensorfarm-arena", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, byte_size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    except BaseException:
        os.close(fd)
        raise
    return fd


def read_only(fd: int) -> int:
    """A second descriptor of the same memory that cannot be mapped writable."""
    return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)


class ArenaView:
    """An arena as those see it who only read: ``number`` is what leases call it by."""

    def __init__(self, number: int, fd: int) -> None:
        self.number = number
        self.byte_size = os.fstat(fd).st_size
        self._pages = memoryview(mmap.mmap(fd, self.byte_size, mmap.MAP_SHARED, mmap.PROT_READ))

    def view(self, lease: Lease) -> memoryview:
        """The bytes of a lease, read-only. Raises ValueError where it reaches beyond the arena."""
        end = lease.offset + lease.byte_size
        if lease.offset < 0 or lease.byte_size < 0 or end > self.byte_size:
            raise ValueError("a lease reaches beyond its arena")
        return self._pages[lease.offset : end]


class Block:
    """A reserved part of an arena; ``view`` is writable and ``byte_size`` long."""

    __slots__ = ("_arena", "_released", "byte_size", "offset", "view")

    def __init__(self, arena: Arena, offset: int, byte_size: int, view: memoryview) -> None:
        self._arena = arena
        self._released = False
        self.offset = offset
        self.byte_size = byte_size
        self.view = view

    def place(self, start: int, stop: int) -> Lease:
        """The bytes ``start`` to ``stop`` of the block as a tensor's placement."""
        return Lease(self._arena.number, self.offset + start, stop - start)

    def extend(self, byte_size: int) -> bool:
        """Make the block ``byte_size`` bytes long where it lies: nothing is copied, views of it stay good. Never shorter.

        False, and nothing done, where what lies behind it is taken. The block must not have been released.
        """
        if not self._arena.extend(self.offset, byte_size):
            return False
        if byte_size > self.byte_size:
            self.byte_size = byte_size
            self.view = self._arena.pages(self.offset, byte_size)
        return True

    def release(self) -> None:
        """Give the block back, once: a second call does nothing. The caller promises that nobody reads it any more."""
        if not self._released:
            # By then the same offset may be somebody else's block.
            self._released = True
            self._arena.free(self.offset)


class Arena:
    """An arena as its owner sees it.

    Blocks below ``resident_byte_size`` keep their pages when freed; those above give them back to
    the system at once, so that one peak is not paid for ever.
    """

    def __init__(self, number: int, fd: int, resident_byte_size: int) -> None:
        self.number = number
        self.fd = fd
        self.resident_byte_size = resident_byte_size
        self._map = mmap.mmap(fd, os.fstat(fd).st_size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._pages = memoryview(self._map)
        self._allocator = Allocator(len(self._map))

    @property
    def capacity_byte_size(self) -> int:
        """Bytes that may be reserved in all."""
        return self._allocator.capacity_byte_size

    @property
    def used_byte_size(self) -> int:
        """Bytes reserved now."""
        return self._allocator.used_byte_size

    def reserve(self, byte_size: int) -> Block:
        """Reserve a block. Raises ArenaFull."""
        offset = self._allocator.reserve(byte_size)
        return Block(self, offset, byte_size, self._pages[offset : offset + byte_size])

    def extend(self, offset: int, byte_size: int) -> bool:
        """Lengthen the block at ``offset`` in place, if what lies behind it is free. Raises KeyError where no block begins there."""
        return self._allocator.extend(offset, byte_size)

    def pages(self, offset: int, byte_size: int) -> memoryview:
        """These bytes of the arena, writable."""
        return self._pages[offset : offset + byte_size]

    def free(self, offset: int) -> None:
        """Give back the block that begins at ``offset``. Raises KeyError where none does."""
        size = self._allocator.free(offset)
        if offset + size > self.resident_byte_size:
            start = max(offset, -(-self.resident_byte_size // mmap.PAGESIZE) * mmap.PAGESIZE)
            if start < offset + size:
                self._map.madvise(mmap.MADV_REMOVE, start, offset + size - start)

    def give_back(self) -> None:
        """Return to the system the pages that freed blocks have kept."""
        for start, byte_size in self._allocator.free_parts():
            if start < self.resident_byte_size:
                self._map.madvise(mmap.MADV_REMOVE, start, byte_size)

    def view(self, lease: Lease) -> memoryview:
        """The bytes of a lease, writable."""
        return self._pages[lease.offset : lease.offset + lease.byte_size]
