"""System shared memory of clients: opening the POSIX objects they made and registered. Workers map them (``mapping.py``).

Never through ``multiprocessing.shared_memory``: up to Python 3.12 it unlinks objects that it only attached to.
"""

from __future__ import annotations

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
