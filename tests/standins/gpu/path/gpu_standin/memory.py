"""Device memory: allocations are memfds, mapped at an alias that the stand-in alone knows. Their addresses lie where nobody can touch.

``tests/standins/cuda/runtime.hpp`` has the same numbers: what is allocated here, its functions find as well.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from bisect import bisect_right
from dataclasses import dataclass

from .errors import INVALID_VALUE, OUT_OF_MEMORY, Refused

SPACE = 16 << 40
"""Where the addresses of the devices' memory begin, in every process."""

HALF = 1 << 40
"""How many of them are for memory that is allocated here; as many behind them are for those who allocate otherwise."""

PART = HALF // 16
"""How many of them one module has, which gives out none twice: a test may import it again in the same process."""

ALIAS = 2 * HALF
"""How far behind an address the host finds what lies there."""

POISON = 0xCD
POISONED_BYTE_SIZE = 1 << 20

_PROT_NONE = 0
_MAP_FIXED = 0x10
_MAP_NORESERVE = 0x4000
_MAP_FIXED_NOREPLACE = 0x100000
_PAGE = 4096
_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


@dataclass(frozen=True)
class Allocation:
    """``alias`` is where the stand-in reads and writes what others know by ``address``.

    ``ordinal`` is that of the device it lies on; ``fd`` is -1, and ``handle`` what it was opened by, where another process made it.
    """

    address: int
    alias: int
    byte_size: int
    ordinal: int
    fd: int
    handle: bytes = b""

    @property
    def end(self) -> int:
        """The address behind it."""
        return self.address + self.byte_size


def _map(address: int, byte_size: int, protection: int, flags: int, fd: int) -> None:
    if _libc.mmap(address, byte_size, protection, flags, fd, 0) == _FAILED:
        raise Refused(OUT_OF_MEMORY if ctypes.get_errno() == errno.ENOMEM else INVALID_VALUE)


def _bar(address: int, byte_size: int, flags: int) -> None:
    """Have addresses that nobody can touch."""
    _map(address, byte_size, _PROT_NONE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE | flags, -1)


def _taken_part() -> int:
    """The beginning of addresses that nobody has taken in this process."""
    for start in range(SPACE, SPACE + HALF, PART):
        try:
            _bar(start, PART, _MAP_FIXED_NOREPLACE)
        except Refused:
            continue
        _bar(start + ALIAS, PART, _MAP_FIXED_NOREPLACE)
        return start
    raise Refused(OUT_OF_MEMORY)


class Allocations:
    """All device memory that this process knows, by address. Its user sees to it that one thread is in it at a time."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._by_start: dict[int, Allocation] = {}
        self._start = 0
        self._next = 0

    def make(self, byte_size: int, ordinal: int) -> Allocation:
        """Allocate. The beginning is filled with nonsense: what a real device gives is not zeroed either."""
        fd = os.memfd_create("gpu-standin", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, byte_size)
            allocation = self._added(fd, byte_size, ordinal, fd, b"")
        except BaseException:
            os.close(fd)
            raise
        ctypes.memset(allocation.alias, POISON, min(byte_size, POISONED_BYTE_SIZE))
        return allocation

    def open(self, fd: int, byte_size: int, ordinal: int, handle: bytes) -> Allocation:
        """Map another process's memfd, which may be closed afterwards."""
        return self._added(fd, byte_size, ordinal, -1, handle)

    def _added(self, fd: int, byte_size: int, ordinal: int, own_fd: int, handle: bytes) -> Allocation:
        if not self._start:
            self._start = self._next = _taken_part()
        alias = self._next + ALIAS
        _map(alias, byte_size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED | _MAP_FIXED, fd)
        allocation = Allocation(self._next, alias, byte_size, ordinal, own_fd, handle)
        # With a page between it and the next one, what runs over its end is found.
        self._next += (-(-byte_size // _PAGE) + 1) * _PAGE
        self._starts.append(allocation.address)
        self._by_start[allocation.address] = allocation
        return allocation

    def end(self, allocation: Allocation) -> None:
        """Unmap it, and close its memfd where it is ours."""
        self._starts.remove(allocation.address)
        del self._by_start[allocation.address]
        _bar(allocation.alias, allocation.byte_size, _MAP_FIXED)
        if allocation.fd >= 0:
            os.close(allocation.fd)

    def clear(self) -> None:
        """Let go of everything: no address is to be used any more."""
        for allocation in list(self._by_start.values()):
            self.end(allocation)
        if self._start:
            for place in (self._start, self._start + ALIAS):
                _libc.munmap(place, PART)
            self._start = 0

    def beginning(self, address: int) -> Allocation | None:
        """The one that begins at an address."""
        return self._by_start.get(address)

    def around(self, address: int) -> Allocation | None:
        """The one that an address lies in."""
        index = bisect_right(self._starts, address)
        if not index:
            return None
        allocation = self._by_start[self._starts[index - 1]]
        return allocation if address < allocation.end else None

    def holds(self, address: int) -> bool:
        """Is it an address of device memory, of some that is there or not?"""
        return SPACE <= address < SPACE + 2 * HALF

    def alias(self, address: int, byte_size: int) -> int | None:
        """Where the host finds bytes of the device; None where they do not all lie in one allocation, as far as that is known here."""
        if SPACE + HALF <= address < SPACE + 2 * HALF:
            return address + ALIAS
        allocation = self.around(address)
        if allocation is None or address + byte_size > allocation.end:
            return None
        return allocation.alias + address - allocation.address
