"""One timer with microsecond aim for the whole server: a timerfd in the loop.

asyncio's own timers round to the millisecond, which is many batches long. ``os.timerfd_create``
exists from Python 3.13 on only.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
from collections.abc import Callable

_CLOCK_MONOTONIC = 1
_TFD_TIMER_ABSTIME = 1


class _Timespec(ctypes.Structure):
    _fields_ = [("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long)]


class _Itimerspec(ctypes.Structure):
    _fields_ = [("interval", _Timespec), ("value", _Timespec)]


_libc = ctypes.CDLL(None, use_errno=True)


class Alarm:
    """Calls ``ring`` on the loop at the time last set."""

    def __init__(self, loop: asyncio.AbstractEventLoop, ring: Callable[[], None]) -> None:
        self._fd = _libc.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create failed")
        self._loop = loop
        self._ring = ring
        self._spec = _Itimerspec()
        loop.add_reader(self._fd, self._fired)

    def set(self, at_ns: int | None) -> None:
        """Ring at ``at_ns`` (CLOCK_MONOTONIC nanoseconds), or not at all. A closed alarm never rings."""
        if self._fd < 0:
            return
        at_ns = 0 if at_ns is None else max(at_ns, 1)
        self._spec.value.seconds, self._spec.value.nanoseconds = divmod(at_ns, 1_000_000_000)
        if _libc.timerfd_settime(self._fd, _TFD_TIMER_ABSTIME, ctypes.byref(self._spec), None) < 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime failed")

    def _fired(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            return  # it was set anew between the wake-up and this call
        self._ring()

    def close(self) -> None:
        """Stop ringing and free the descriptor. A second call does nothing."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
