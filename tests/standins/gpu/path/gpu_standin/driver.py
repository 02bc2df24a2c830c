"""What CUDA's libraries do, by the names of the runtime's functions without their prefix. All raise ``Refused``. For any thread.

A fault is sticky: once a file that ``TENSORFARM_STANDIN_FAULT`` names was there when a process with a context made a call, or a copy
touched what is not there, every call of this process fails with its number. The file holds the number and, if only one GPU is meant,
its uuid.
"""

from __future__ import annotations

import contextlib
import functools
import os
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from . import ledger, settings
from .errors import (
    ALREADY_REGISTERED,
    ILLEGAL_ADDRESS,
    INVALID_CONTEXT,
    INVALID_DEVICE,
    INVALID_HANDLE,
    INVALID_VALUE,
    MISALIGNED_ADDRESS,
    OUT_OF_MEMORY,
    Refused,
)
from .memory import Allocation, Allocations
from .streams import Pinned, PinnedMemory, Streams

HANDLE_BYTE_SIZE = 64
NOT_SEEN_ORDINAL = 99
"""The device of memory that was opened here, but lies on a GPU that this process does not see."""

REGISTER_READ_ONLY = 8

_HANDLE = struct.Struct("<8sIIQQ32s")
_MAGIC = b"STANDIN\x01"

_P = ParamSpec("_P")
_R = TypeVar("_R")

_lock = threading.RLock()
_thread = threading.local()
_allocations = Allocations()
_pinned = PinnedMemory()
_streams = Streams(_allocations, _pinned)
_contexts: set[int] = set()
_opened: dict[bytes, list[int]] = {}
_lost: list[int] = []


def call(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """A call of the library: one at a time, none once the context is lost, and the calling thread has a context from here on."""

    @functools.wraps(function)
    def called(*arguments: _P.args, **named: _P.kwargs) -> _R:
        with _lock:
            check()
            try:
                result = function(*arguments, **named)
            except Refused as refused:
                if refused.status in (ILLEGAL_ADDRESS, MISALIGNED_ADDRESS):
                    lose(refused.status)
                raise
            return result

    return called


def lose(status: int) -> None:
    """From here on every call fails."""
    with _lock:
        if not _lost:
            _lost.append(status)
            ledger.change(lambda content: content.update(fault=status))


def check() -> None:
    """Raises Refused where the context is lost."""
    with _lock:
        if not _lost and _contexts:
            status = _ordered_fault()
            if status:
                lose(status)
        if _lost:
            raise Refused(_lost[0])


def _ordered_fault() -> int:
    file = os.environ.get(settings.FAULT)
    try:
        words = Path(file).read_text().split() if file else []
    except FileNotFoundError:
        return 0
    if not words or not words[0].isdecimal():
        return 0
    visible = settings.visible_uuids()
    if len(words) > 1 and words[1] not in [visible[ordinal] for ordinal in _contexts]:
        return 0
    return int(words[0])


# devices


def current() -> int:
    """The calling thread's device; the first where it has chosen none."""
    return int(getattr(_thread, "ordinal", 0))


def has_context(ordinal: int) -> bool:
    """Has this process a context of a device?"""
    return ordinal in _contexts


def make_context(ordinal: int | None = None) -> None:
    """Have a context of the current device, or another, which then is the calling thread's."""
    ordinal = current() if ordinal is None else ordinal
    visible = settings.visible_uuids()
    if not 0 <= ordinal < len(visible):
        raise Refused(INVALID_DEVICE if visible else 100)
    _thread.bound = True
    with _lock:
        if ordinal not in _contexts:
            _contexts.add(ordinal)
            uuids = [visible[one] for one in sorted(_contexts)]
            ledger.change(lambda content: content.update(contexts=len(_contexts), uuids=uuids))
    check()


@call
def set_device(ordinal: int) -> None:
    """Choose the calling thread's device, which makes a context of it, as it has since CUDA 12."""
    make_context(ordinal)
    _thread.ordinal = ordinal


@contextlib.contextmanager
def on_device(ordinal: int) -> Iterator[None]:
    """The calling thread's device is another one for a while."""
    before = current()
    set_device(ordinal)
    try:
        yield
    finally:
        _thread.ordinal = before


@call
def device_count() -> int:
    """How many devices this process sees."""
    count = len(settings.visible_uuids())
    if not count:
        raise Refused(100)
    return count


@call
def memory_information() -> tuple[int, int]:
    """Free bytes and all bytes."""
    make_context()
    total = settings.total_byte_size()
    return total - ledger.content["device_bytes"], total


# memory


@call
def malloc(byte_size: int) -> int:
    """The address of new device memory; 0 for none."""
    make_context()
    if not byte_size:
        return 0
    if byte_size + ledger.content["device_bytes"] > settings.total_byte_size():
        raise Refused(OUT_OF_MEMORY)
    allocation = _allocations.make(byte_size, current())
    ledger.add(device_bytes=byte_size)
    return allocation.address


@call
def free(address: int) -> None:
    """Give device memory back; what a stream would still copy from it or to it is a fault."""
    make_context()
    if not address:
        return
    allocation = _allocations.beginning(address)
    if allocation is None or allocation.fd < 0:
        raise Refused(INVALID_VALUE)
    _allocations.end(allocation)
    ledger.add(device_bytes=-allocation.byte_size)


@call
def host_register(address: int, byte_size: int, flags: int) -> None:
    """Pin host memory."""
    make_context()
    read_only = bool(flags & REGISTER_READ_ONLY)
    if not address or not byte_size or not _is_mapped(address, byte_size, not read_only):
        raise Refused(INVALID_VALUE)
    if _pinned.overlaps(address, byte_size):
        raise Refused(ALREADY_REGISTERED)
    _pinned.add(Pinned(address, byte_size, read_only))
    ledger.add(pinned_bytes=byte_size)


def _is_mapped(address: int, byte_size: int, writable: bool) -> bool:
    """Is all of it mapped, and may it be read, and written where it must?"""
    at = address
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, rights, *_ = line.split()
        start, end = (int(word, 16) for word in span.split("-"))
        if start <= at < end:
            if rights[0] != "r" or (writable and rights[1] != "w"):
                return False
            at = end
            if at >= address + byte_size:
                return True
    return False


@call
def host_unregister(address: int) -> None:
    """Undo ``host_register``."""
    ledger.add(pinned_bytes=-_pinned.remove(address).byte_size)


def around(address: int) -> Allocation | None:
    """The allocation that a device address lies in."""
    with _lock:
        return _allocations.around(address)


@call
def pointer_device(address: int) -> int | None:
    """The ordinal of the device that an address lies on; None for host memory."""
    make_context()
    allocation = _allocations.around(address)
    if allocation is None and _allocations.holds(address):
        raise Refused(INVALID_VALUE)
    return None if allocation is None else allocation.ordinal


def address_range(address: int) -> tuple[int, int]:
    """Start and size of an allocation, as the driver's library knows it: the calling thread must have a context."""
    with _lock:
        if not getattr(_thread, "bound", False):
            raise Refused(INVALID_CONTEXT)
        check()
        allocation = _allocations.around(address)
        if allocation is None:
            raise Refused(INVALID_VALUE)
        return allocation.address, allocation.byte_size


# streams


@call
def stream_create() -> int:
    """A new stream."""
    make_context()
    return _streams.make()


@call
def stream_destroy(stream: int) -> None:
    """Give a stream back."""
    _streams.end(stream)


@call
def memcpy_async(destination: int, source: int, byte_size: int, stream: int) -> None:
    """Have bytes copied once the stream is waited for."""
    make_context()
    kind = _streams.queue(destination, source, byte_size, stream)
    if byte_size:
        ledger.copied(kind, byte_size)


@call
def stream_synchronize(stream: int) -> None:
    """Do what a stream was given."""
    make_context()
    _streams.wait(stream)


@call
def device_synchronize() -> None:
    """Do what all streams were given."""
    make_context()
    _streams.wait_for_all()


def end() -> None:
    """What the end of a process does: all memory goes."""
    with _lock:
        _allocations.clear()
        ledger.end()


# between processes


@call
def ipc_export(address: int) -> bytes:
    """The handle of an allocation of this process."""
    make_context()
    allocation = _allocations.around(address)
    if allocation is None or allocation.fd < 0:
        raise Refused(INVALID_VALUE)
    uuid = settings.visible_uuids()[allocation.ordinal].encode()
    return _HANDLE.pack(_MAGIC, os.getpid(), allocation.fd, os.fstat(allocation.fd).st_ino, allocation.byte_size, uuid)


@call
def ipc_open(handle: bytes) -> int:
    """Map another process's allocation; the address of one that is open already is the same again."""
    make_context()
    opened = _opened.get(handle)
    if opened is None:
        opened = _opened[handle] = [_opened_now(handle), 0]
    opened[1] += 1
    ledger.add(opened=1, opens=1)
    return opened[0]


def _opened_now(handle: bytes) -> int:
    magic, pid, number, inode, byte_size, padded_uuid = _HANDLE.unpack(handle)
    if magic != _MAGIC:
        raise Refused(INVALID_VALUE)
    if pid == os.getpid():
        raise Refused(INVALID_CONTEXT)
    uuid = padded_uuid.rstrip(b"\0").decode(errors="replace")
    visible = settings.visible_uuids()
    ordinal = visible.index(uuid) if uuid in visible else NOT_SEEN_ORDINAL
    path = f"/proc/{pid}/fd/{number}"
    try:
        # Nothing but a memfd of the stand-in: the number may be another file's by now.
        if not os.readlink(path).startswith("/memfd:gpu-standin"):
            raise Refused(INVALID_HANDLE)
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        raise Refused(INVALID_HANDLE) from None
    try:
        status = os.fstat(fd)
        if (status.st_ino, status.st_size) != (inode, byte_size):
            raise Refused(INVALID_HANDLE)
        return _allocations.open(fd, byte_size, ordinal, handle).address
    finally:
        os.close(fd)


@call
def ipc_close(address: int) -> None:
    """Undo one ``ipc_open``."""
    allocation = _allocations.beginning(address)
    if allocation is None or allocation.fd >= 0:
        raise Refused(INVALID_VALUE)
    opened = _opened[allocation.handle]
    opened[1] -= 1
    ledger.add(opened=-1, closes=1)
    if not opened[1]:
        del _opened[allocation.handle]
        _allocations.end(allocation)


def driver_library() -> Any:
    """What ``ctypes.CDLL("libcuda.so.1")`` gives."""
    return _DriverLibrary()


class _DriverLibrary:
    """As much of libcuda as is used."""

    def cuDevicePrimaryCtxGetState(self, ordinal: int, flags: Any, active: Any) -> int:
        """As the driver's. ``flags`` and ``active`` are what ``ctypes.byref`` gives."""
        flags._obj.value, active._obj.value = 0, int(ordinal in _contexts)
        return 0

    def cuMemGetAddressRange_v2(self, base: Any, byte_size: Any, address: Any) -> int:
        """As the driver's. ``base`` and ``byte_size`` are what ``ctypes.byref`` gives."""
        try:
            base._obj.value, byte_size._obj.value = address_range(getattr(address, "value", address))
        except Refused as refused:
            return refused.status
        return 0
