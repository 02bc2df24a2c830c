"""Shared pages that one process may write to without anybody else noticing.

A private mapping of a memory object shows its owner's bytes until a page is written to; the kernel then copies that
page for this process alone. Used for the inputs of Python models: they may change their inputs in place and keep them,
and pay for a copy only of what they do that with.
"""

from __future__ import annotations

import mmap
import os
import resource
import weakref
from collections import Counter
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

Bytes = np.ndarray[Any, np.dtype[np.uint8]]

_PAGE = mmap.PAGESIZE
_MADV_POPULATE_WRITE = 23
_IN_MEMORY = np.uint64(3 << 62)
"""Of a pagemap entry: the page is in memory, or in the swap."""
_OF_FILE = np.uint64(1 << 61)
"""Of a pagemap entry: the page is the object's own, not a copy."""


@dataclass(slots=True, eq=False)
class Taken:
    """A part of a mapping that is in use as an array; ``faults`` is how many the process had had by then."""

    pages: PrivatePages
    offset: int
    byte_size: int
    array: weakref.ref[Bytes]
    faults: int


class PrivatePages:
    """``byte_size`` bytes of a memory object from ``offset`` on, mapped copy-on-write. Raises OSError where it cannot be mapped.

    One thread at a time.
    """

    def __init__(self, fd: int, offset: int, byte_size: int) -> None:
        aligned = offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        self._lead = offset - aligned
        self._map = mmap.mmap(fd, self._lead + byte_size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE, offset=aligned)
        self._view = memoryview(self._map)
        self._first_page = int(np.frombuffer(self._view, np.uint8, 1).ctypes.data) // _PAGE
        self._edges: Counter[int] = Counter()
        self._in_use: set[Taken] = set()

    def clear(self, offset: int, byte_size: int) -> bool:
        """Can these bytes be taken, and are they their owner's?

        Not where a part in use holds any of them: one would see what is written to the other. Nor where they begin or end on a
        page which a neighbour in use has written to: it is a copy from before the owner wrote them.
        """
        start = self._lead + offset
        if any(start < taken.offset + taken.byte_size and taken.offset < start + byte_size for taken in self._in_use):
            return False
        return not any(self._edges[page] > 0 and len(self._changed(page, page + 1)) for page in _edges(start, byte_size))

    def take(self, offset: int, byte_size: int) -> tuple[Bytes, Taken]:
        """An array over the bytes at ``offset``, writable, and what ``give_back`` takes once the array should have gone.

        For bytes that are ``clear``.
        """
        start = self._lead + offset
        array = np.frombuffer(self._view[start : start + byte_size], np.uint8)
        self._edges.update(_edges(start, byte_size))
        taken = Taken(self, start, byte_size, weakref.ref(array), _faults())
        self._in_use.add(taken)
        return array, taken

    def give_back(self, taken: Taken) -> bool:
        """End the use of a part: what was written to it is forgotten. Called before its owner may change the bytes.

        Where somebody has kept the array, it gets pages of its own instead and stays as it is; the result is False,
        and this mapping must not be used for anything new.
        """
        edges = _edges(taken.offset, taken.byte_size)
        self._edges.subtract(edges)
        self._in_use.discard(taken)
        array = taken.array()
        if array is not None:
            self._own(array, taken)
            return False
        end = taken.offset + taken.byte_size
        first, last = taken.offset // _PAGE, -(-end // _PAGE)
        shared = [page for page in edges if self._edges[page] > 0]
        for page in edges:
            if not self._edges[page]:
                del self._edges[page]
        # The first write to a page is a fault. Where there was none, no page is a copy; asking the kernel takes 0.3 ms for 16 MiB.
        if taken.faults == _faults():
            return True
        for start, stop in _runs(self._changed(first, last), shared):
            self._map.madvise(mmap.MADV_DONTNEED, start * _PAGE, (stop - start) * _PAGE)
        return True

    def _own(self, array: Bytes, taken: Taken) -> None:
        """Have the kernel copy every page under an array, whose holder may be writing to it just now."""
        start = taken.offset // _PAGE * _PAGE
        try:
            self._map.madvise(_MADV_POPULATE_WRITE, start, taken.offset + taken.byte_size - start)
        except OSError:
            # A kernel older than 5.14: write to each page what it holds.
            for part in (array[:1], array[-array.ctypes.data % _PAGE :: _PAGE]):
                part[...] = part.copy()

    def untouched(self, taken: Taken, offset: int, byte_size: int) -> bool:
        """Are these bytes of a part in use, from ``offset`` of it on, still the owner's?"""
        start = taken.offset + offset
        return taken.faults == _faults() or not len(self._changed(start // _PAGE, -(-(start + byte_size) // _PAGE)))

    def _changed(self, first: int, last: int) -> np.ndarray[Any, np.dtype[np.intp]]:
        """The pages from ``first`` to before ``last`` that are copies. All of them, where the kernel does not tell."""
        pagemap = _pagemap()
        content = b""
        if pagemap is not None:
            content = os.pread(pagemap, (last - first) * 8, (self._first_page + first) * 8)
        if len(content) != (last - first) * 8:
            return np.arange(first, last)
        entries = np.frombuffer(content, np.uint64)
        return np.flatnonzero(((entries & _IN_MEMORY) != 0) & ((entries & _OF_FILE) == 0)) + first


def _faults() -> int:
    """Page faults of this process so far, in all its threads. Those that had to wait count as major."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_minflt + usage.ru_majflt


def _edges(offset: int, byte_size: int) -> list[int]:
    """The pages that a part covers only some bytes of."""
    edges = []
    if offset % _PAGE:
        edges.append(offset // _PAGE)
    end = offset + byte_size
    if end % _PAGE and end // _PAGE not in edges:
        edges.append(end // _PAGE)
    return edges


def _runs(pages: np.ndarray[Any, np.dtype[np.intp]], without: list[int]) -> list[tuple[int, int]]:
    """Pages as runs of start and end."""
    runs: list[tuple[int, int]] = []
    for page in pages.tolist():
        if page in without:
            continue
        if runs and runs[-1][1] == page:
            runs[-1] = (runs[-1][0], page + 1)
        else:
            runs.append((page, page + 1))
    return runs


@cache
def _pagemap() -> int | None:
    """A descriptor of this process's page map, which says which pages are copies; None where it may not be read."""
    try:
        return os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
