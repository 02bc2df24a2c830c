"""Clients' regions as workers map them. Imports nothing that a model's own interpreter may lack."""

from __future__ import annotations

import mmap
import os


class RegionShrunk(Exception):
    """The object behind a region no longer covers it."""


class MappedRegion:
    """A client's region mapped into this process; only workers do that.

    The mapping keeps a descriptor of its own, so that each use can see whether the client has shrunk its
    object: touching pages that are gone is a SIGBUS, which nothing can catch. Pages and descriptor go when
    the region and the last array over it do. Raises RegionShrunk, or OSError where it cannot be mapped.
    """

    def __init__(self, fd: int, offset: int, byte_size: int) -> None:
        self.byte_size = byte_size
        self._end = offset + byte_size
        if os.fstat(fd).st_size < self._end:
            raise RegionShrunk
        aligned = offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        self._pages = mmap.mmap(fd, self._end - aligned, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=aligned)
        self._view = memoryview(self._pages)[offset - aligned :]

    def view(self, offset: int, byte_size: int) -> memoryview:
        """The bytes of a part of the region, writable. Raises RegionShrunk, or ValueError for a part beyond it."""
        if offset < 0 or byte_size < 0 or offset + byte_size > self.byte_size:
            raise ValueError("a span reaches beyond its region")
        if self._pages.size() < self._end:
            raise RegionShrunk
        return self._view[offset : offset + byte_size]
