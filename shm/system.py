"""System shared memory of clients: POSIX objects they made and registered.

Never through ``multiprocessing.shared_memory``: up to Python 3.12 it unlinks objects that it only attached to.
"""

from __future__ import annotations

import mmap
import os

import posix_ipc

_MAX_KEY_BYTE_SIZE = 255


def open_object(key: str) -> int:
    """Open a POSIX shared memory object for reading and writing; returns a descriptor.

    ``key`` may or may not begin with slashes. Raises OSError with the system's reason: FileNotFoundError,
    PermissionError, or ValueError for a key that no object can have.
    """
    bare = key.lstrip("/")
    # posix_ipc crashes on what UTF-8 has no form for.
    if not bare or "/" in bare or "\0" in bare or len(bare.encode()) > _MAX_KEY_BYTE_SIZE:
        raise ValueError("not a shared memory key")
    try:
        opened = posix_ipc.SharedMemory("/" + bare, flags=0)
    except posix_ipc.ExistentialError as error:
        raise FileNotFoundError(str(error)) from error
    except posix_ipc.PermissionsError as error:
        raise PermissionError(str(error)) from error
    except posix_ipc.Error as error:
        raise OSError(str(error)) from error
    os.set_inheritable(opened.fd, False)
    return int(opened.fd)


def object_byte_size(fd: int) -> int:
    """The size of an open object, in bytes."""
    return os.fstat(fd).st_size


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
        if object_byte_size(fd) < self._end:
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
