"""As ``cupy.cuda.runtime``: the runtime's functions, which raise ``CUDARuntimeError``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import index
from typing import TypeVar

from gpu_standin import driver
from gpu_standin.errors import NAMES, UNKNOWN, Refused

memcpyHostToHost, memcpyHostToDevice, memcpyDeviceToHost, memcpyDeviceToDevice, memcpyDefault = range(5)
streamDefault, streamNonBlocking = 0, 1
memoryTypeUnregistered, memoryTypeHost, memoryTypeDevice, memoryTypeManaged = range(4)
cudaIpcMemLazyEnablePeerAccess = 1
hostRegisterPortable, hostRegisterReadOnly = 1, 8

_R = TypeVar("_R")


class CUDARuntimeError(RuntimeError):
    """A call that does not succeed."""

    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(": ".join(NAMES.get(status, NAMES[UNKNOWN])))


@dataclass(frozen=True)
class PointerAttributes:
    """What an address is."""

    device: int
    devicePointer: int
    hostPointer: int
    type: int


def _done(function: Callable[..., _R], *arguments: object) -> _R:
    try:
        return function(*arguments)
    except Refused as refused:
        raise CUDARuntimeError(refused.status) from None


def _unsigned(value: object, bits: int = 64) -> int:
    """As Cython's ``size_t`` and ``unsigned int``."""
    number = _integer(value)
    if number < 0:
        raise OverflowError("can't convert negative value to size_t")
    if number >> bits:
        raise OverflowError("Python int too large to convert to C size_t")
    return number


def _signed(value: object, bits: int = 64) -> int:
    """As Cython's ``intptr_t`` and ``int``."""
    number = _integer(value)
    if not -(1 << bits - 1) <= number < 1 << bits - 1:
        raise OverflowError("value too large to convert to int" if bits < 64 else "Python int too large to convert to C ssize_t")
    return number


def _integer(value: object) -> int:
    try:
        return index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError("an integer is required") from None


def getDeviceCount() -> int:
    return _done(driver.device_count)


def getDevice() -> int:
    return driver.current()


def setDevice(device: int) -> None:
    _done(driver.set_device, _signed(device, 32))


def deviceSynchronize() -> None:
    _done(driver.device_synchronize)


def memGetInfo() -> tuple[int, int]:
    return _done(driver.memory_information)


def malloc(size: int) -> int:
    return _done(driver.malloc, _unsigned(size))


def free(ptr: int) -> None:
    _done(driver.free, _signed(ptr))


def streamCreateWithFlags(flags: int) -> int:
    if _unsigned(flags, 32) not in (streamDefault, streamNonBlocking):
        raise CUDARuntimeError(1)
    return _done(driver.stream_create)


def streamDestroy(stream: int) -> None:
    _done(driver.stream_destroy, _signed(stream))


def streamSynchronize(stream: int) -> None:
    _done(driver.stream_synchronize, _signed(stream))


def memcpyAsync(dst: int, src: int, size: int, kind: int, stream: int) -> None:
    if _signed(kind, 32) not in range(memcpyDefault + 1):
        raise CUDARuntimeError(21)
    _done(driver.memcpy_async, _signed(dst), _signed(src), _unsigned(size), _signed(stream))


def hostRegister(ptr: int, size: int, flags: int) -> None:
    _done(driver.host_register, _signed(ptr), _unsigned(size), _unsigned(flags, 32))


def hostUnregister(ptr: int) -> None:
    _done(driver.host_unregister, _signed(ptr))


def pointerGetAttributes(ptr: int) -> PointerAttributes:
    address = _signed(ptr)
    device = _done(driver.pointer_device, address)
    if device is None:
        return PointerAttributes(-2, 0, 0, memoryTypeUnregistered)
    return PointerAttributes(device, address, 0, memoryTypeDevice)


def ipcGetMemHandle(devPtr: int) -> bytes:
    return _done(driver.ipc_export, _signed(devPtr))


def ipcOpenMemHandle(handle: bytes, flags: int = cudaIpcMemLazyEnablePeerAccess) -> int:
    if not isinstance(handle, bytes):
        raise TypeError(f"Argument 'handle' has incorrect type (expected bytes, got {type(handle).__name__})")
    if len(handle) != driver.HANDLE_BYTE_SIZE:
        few = "not enough" if len(handle) < driver.HANDLE_BYTE_SIZE else "too many"
        raise IndexError(f"{few} values found during array assignment, expected {driver.HANDLE_BYTE_SIZE}, got {len(handle)}")
    if _unsigned(flags, 32) != cudaIpcMemLazyEnablePeerAccess:
        raise CUDARuntimeError(1)
    return _done(driver.ipc_open, handle)


def ipcCloseMemHandle(devPtr: int) -> None:
    _done(driver.ipc_close, _signed(devPtr))
