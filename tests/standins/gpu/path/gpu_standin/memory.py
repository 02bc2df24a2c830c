"""Device memory: allocations are memfds, mapped at an alias that the stand-in alone knows. Their addresses lie where nobody can touch."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from bisect import bisect_right
from dataclasses import dataclass

from .errors import INVALID_VALUE, OUT_OF_MEMORY, Refused

ADDRESSES = 1 << 40
"""How many addresses a process has for the devices' memory; none is given out twice."""

POISON = 0xCD
POISONED_BYTE_SIZE = 1 << 20

_PROT_NONE = 0
_MAP_NORESERVE = 0x4000
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


def _mapped(byte_size: int, protection: int, flags: int, fd: int) -> int:
    address = _libc.mmap(None, byte_size, protection, flags, fd, 0)
    if address is None or address == _FAILED:
        raise Refused(OUT_OF_MEMORY if ctypes.get_errno() == errno.ENOMEM else INVALID_VALUE)
    return int(address)


class Allocations:
    """All device memory that this process knows, by address. Its user sees to it that one thread is in it at a time."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._by_start: dict[int, Allocation] = {}
        self._space = 0
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
        if not self._space:
            self._space = self._next = _mapped(ADDRESSES, _PROT_NONE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE, -1)
        alias = _mapped(byte_size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, fd)
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
        _libc.munmap(allocation.alias, allocation.byte_size)
        if allocation.fd >= 0:
            os.close(allocation.fd)

    def clear(self) -> None:
        """Let go of everything: no address is to be used any more."""
        for allocation in list(self._by_start.values()):
            self.end(allocation)
        if self._space:
            _libc.munmap(self._space, ADDRESSES)
            self._space = 0

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
        return self._space <= address < self._space + ADDRESSES and self._space > 0

    def alias(self, address: int, byte_size: int) -> int | None:
        """Where the host finds bytes of the device; None where they do not all lie in one allocation."""
        allocation = self.around(address)
        if allocation is None or address + byte_size > allocation.end:
            return None
        return allocation.alias + address - allocation.address
