"""As much of ``cuda.bindings.runtime`` as the stock client uses: functions return their error, and what they give behind it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from enum import IntEnum
from typing import Any, TypeVar

from gpu_standin import driver, settings
from gpu_standin.errors import NAMES, UNKNOWN, Refused

CUDA_IPC_HANDLE_SIZE = 64

cudaError_t = IntEnum("cudaError_t", {name: number for number, (name, _) in NAMES.items()})  # type: ignore[misc]

_R = TypeVar("_R")


class cudaMemcpyKind(IntEnum):
    cudaMemcpyHostToHost = 0
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3
    cudaMemcpyDefault = 4


class cudaDeviceAttr(IntEnum):
    cudaDevAttrUnifiedAddressing = 41


class cudaIpcMemHandle_t:
    """A handle: 64 bytes somewhere in this process."""

    def __init__(self) -> None:
        self._content = (ctypes.c_char * CUDA_IPC_HANDLE_SIZE)()

    def getPtr(self) -> int:
        return ctypes.addressof(self._content)


class cudaStream_t:
    """A stream."""

    def __init__(self, number: int = 0) -> None:
        self._number = number

    def __int__(self) -> int:
        return self._number

    def getPtr(self) -> int:
        return self._number


def _tried(function: Callable[..., _R], *arguments: object) -> tuple[Any, _R | None]:
    try:
        return cudaError_t(0), function(*arguments)
    except Refused as refused:
        return cudaError_t(refused.status if refused.status in NAMES else UNKNOWN), None


def _address(value: Any) -> int:
    """Of a number, or of what has a buffer."""
    if isinstance(value, bytes):
        return ctypes.cast(ctypes.c_char_p(value), ctypes.c_void_p).value or 0
    if isinstance(value, ctypes.Array):
        return ctypes.addressof(value)
    return int(value)


def cudaGetErrorString(error: int) -> tuple[Any, bytes]:
    return cudaError_t(0), NAMES[error][1].encode()


def cudaGetErrorName(error: int) -> tuple[Any, bytes]:
    return cudaError_t(0), NAMES[error][0].encode()


def cudaGetDeviceCount() -> tuple[Any, int | None]:
    return _tried(driver.device_count)


def cudaGetDevice() -> tuple[Any, int | None]:
    return _tried(driver.current)


def cudaSetDevice(device: int) -> tuple[Any]:
    return _tried(driver.set_device, device)[:1]


def cudaDeviceSynchronize() -> tuple[Any]:
    return _tried(driver.device_synchronize)[:1]


def cudaDeviceGetAttribute(attribute: cudaDeviceAttr, device: int) -> tuple[Any, int | None]:
    if not 0 <= device < len(settings.visible_uuids()):
        return cudaError_t(101), None
    return cudaError_t(0), int(attribute == cudaDeviceAttr.cudaDevAttrUnifiedAddressing)


def cudaMalloc(size: int) -> tuple[Any, int | None]:
    return _tried(driver.malloc, size)


def cudaFree(address: int) -> tuple[Any]:
    return _tried(driver.free, int(address))[:1]


def cudaStreamCreate() -> tuple[Any, cudaStream_t | None]:
    error, number = _tried(driver.stream_create)
    return error, None if number is None else cudaStream_t(number)


def cudaStreamCreateWithFlags(flags: int) -> tuple[Any, cudaStream_t | None]:
    return cudaStreamCreate()


def cudaStreamDestroy(stream: cudaStream_t) -> tuple[Any]:
    return _tried(driver.stream_destroy, int(stream))[:1]


def cudaStreamSynchronize(stream: cudaStream_t) -> tuple[Any]:
    return _tried(driver.stream_synchronize, int(stream))[:1]


def cudaMemcpyAsync(destination: Any, source: Any, size: int, kind: cudaMemcpyKind, stream: Any) -> tuple[Any]:
    return _tried(driver.memcpy_async, _address(destination), _address(source), size, int(stream))[:1]


def cudaIpcGetMemHandle(address: int) -> tuple[Any, cudaIpcMemHandle_t | None]:
    error, content = _tried(driver.ipc_export, int(address))
    if content is None:
        return error, None
    handle = cudaIpcMemHandle_t()
    ctypes.memmove(handle.getPtr(), content, CUDA_IPC_HANDLE_SIZE)
    return error, handle


def cudaIpcOpenMemHandle(handle: cudaIpcMemHandle_t, flags: int) -> tuple[Any, int | None]:
    return _tried(driver.ipc_open, ctypes.string_at(handle.getPtr(), CUDA_IPC_HANDLE_SIZE))


def cudaIpcCloseMemHandle(address: int) -> tuple[Any]:
    return _tried(driver.ipc_close, int(address))[:1]
