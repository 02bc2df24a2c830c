"""Giving freed memory back to the system: what a model has left behind is not to be paid for after it has gone.

glibc keeps an arena of its own for each thread, and at the end of each up to twice the largest block that was ever freed, 64 MiB
at most; ``malloc_trim`` gives back whole pages in the midst of them, but not those ends. They go only when something
beside them is freed while the allowance is small.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import threading
from collections.abc import Iterator

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3

_WARM_BYTE_SIZES = {_M_TRIM_THRESHOLD: 64 << 20, _M_MMAP_THRESHOLD: 32 << 20}
"""What glibc comes to by itself in a process that frees large blocks, and does no more once anything has been set."""

_SMALL_BYTE_SIZE = 128 << 10

_library = ctypes.CDLL(None)
_has_glibc = hasattr(_library, "malloc_trim") and hasattr(_library, "mallopt")
_lock = threading.Lock()
_returning = 0


@contextlib.contextmanager
def returning() -> Iterator[None]:
    """Have what is freed meanwhile, in any thread, go back to the system; at the end what is garbage, and what lies about."""
    global _returning
    with _lock:
        _returning += 1
        _allow(_SMALL_BYTE_SIZE)
    try:
        yield
        gc.collect()
        if _has_glibc:
            _library.malloc_trim(0)
    finally:
        with _lock:
            _returning -= 1
            if not _returning:
                _allow(_WARM_BYTE_SIZES[_M_TRIM_THRESHOLD])


def _allow(byte_size: int) -> None:
    if _has_glibc:
        _library.mallopt(_M_TRIM_THRESHOLD, byte_size)
        _library.mallopt(_M_MMAP_THRESHOLD, _WARM_BYTE_SIZES[_M_MMAP_THRESHOLD])
