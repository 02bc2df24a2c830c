"""CUDA memory as the worker of a GPU uses it. The only file that imports CuPy, which it does when the first device is opened.

Source: CUDA Runtime API, "Device Management", "Memory Management" and its interprocess part; CuPy's ``cupy.cuda.runtime`` has the same
functions by the same names, and raises ``CUDARuntimeError`` with a ``status``.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from .allocator import Allocator, ArenaFull

HANDLE_BYTE_SIZE = 64
"""Length of a ``cudaIpcMemHandle_t``."""

ALIGNMENT_BYTE_SIZE = 256
"""What the runtime's own allocations are aligned to, and what libraries that compute on them may count on."""

OUT_OF_MEMORY = 2
"""The status of a fault where a device has no room."""

_DRIVER = "libcuda.so.1"
_INVALID_CONTEXT = 201
_MAPPING_FAILED = 205
_INVALID_HANDLE = 400
_NOT_SUPPORTED = 801
_HOST_REGISTER_PORTABLE = 1
_HOST_REGISTER_READ_ONLY = 8

_REASONS = {
    1: "it is no handle of an allocation that exists",
    _INVALID_CONTEXT: "it was exported by a process that the driver takes for this one: containers must share the host's process numbers",
    _MAPPING_FAILED: "the driver could not map it: the two processes must share the host's IPC and process name spaces",
    _INVALID_HANDLE: "it is no handle of an allocation that exists",
    _NOT_SUPPORTED: "this GPU does not share memory between processes",
}

_LASTING = frozenset((46, 214, 220, 226, 700, 702, 709, 710, *range(714, 720), 721, 999))
"""Errors after which, as CUDA says of them, a process must be ended and started again; and the unknown one."""

T = TypeVar("T")


class CudaFault(Exception):
    """What CUDA did not do: its number of the error, and its words."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class HandleRefused(Exception):
    """Why a handle cannot be opened, in words for the client that sent it."""


def lost_context(ordinal: int) -> str:
    """As ``Device.lost``, for a device that only others in this process may use: empty too where nobody does, or nobody can ask."""
    flags, active = ctypes.c_uint(), ctypes.c_int()
    try:
        driver: Any = ctypes.CDLL(_DRIVER)
        # Before the driver has been initialised it knows of none.
        if driver.cuDevicePrimaryCtxGetState(ordinal, ctypes.byref(flags), ctypes.byref(active)) or not active.value:
            return ""
        return Device(ordinal).lost()
    except CudaFault as fault:
        return str(fault) if fault.status in _LASTING else ""
    except (ImportError, OSError):
        return ""


class Device:
    """A GPU, by its ordinal in this process. Making one makes its CUDA context. For any thread.

    Raises CudaFault, or ImportError where CuPy is not installed.
    """

    def __init__(self, ordinal: int) -> None:
        import cupy

        self.ordinal = ordinal
        self._runtime: Any = cupy.cuda.runtime
        self._driver: Any = ctypes.CDLL(_DRIVER)
        # The runtime makes a context with the first call that needs one.
        self._call(self._runtime.free, 0)

    def allocate(self, byte_size: int) -> int:
        """The address of new memory. Raises CudaFault where there is none."""
        return int(self._call(self._runtime.malloc, byte_size))

    def free(self, address: int) -> None:
        """Give allocated memory back."""
        self._call(self._runtime.free, address)

    def new_stream(self) -> int:
        """A stream of its own, which waits for no other."""
        return int(self._call(self._runtime.streamCreateWithFlags, self._runtime.streamNonBlocking))

    def end_stream(self, stream: int) -> None:
        """Give a stream back."""
        self._call(self._runtime.streamDestroy, stream)

    def copy(self, destination: int, source: int, byte_size: int, stream: int) -> None:
        """Have bytes copied, on the device, to it or from it; both must stay until the stream has been waited for."""
        if byte_size:
            self._call(self._runtime.memcpyAsync, destination, source, byte_size, self._runtime.memcpyDefault, stream)

    def synchronize(self, stream: int) -> None:
        """Wait until all that the stream was given has been done."""
        self._call(self._runtime.streamSynchronize, stream)

    def synchronize_all(self) -> None:
        """Wait until all that this process has given the device has been done, on whatever stream: a model's own work, too."""
        self._call(self._runtime.deviceSynchronize)

    def pin(self, address: int, byte_size: int, *, read_only: bool) -> None:
        """Have the device read and write this host memory without a detour. Raises CudaFault where it may not."""
        flags = _HOST_REGISTER_PORTABLE | (_HOST_REGISTER_READ_ONLY if read_only else 0)
        self._call(self._runtime.hostRegister, address, byte_size, flags)

    def open_handle(self, handle: bytes, byte_size: int) -> int:
        """Map another process's allocation; returns the address of its start. Raises HandleRefused.

        ``byte_size`` bytes of it must be there, and on this very device.
        """
        if len(handle) != HANDLE_BYTE_SIZE:
            raise HandleRefused(f"a cudaIpcMemHandle_t has {HANDLE_BYTE_SIZE} bytes, not {len(handle)}")
        try:
            address = int(self._call(self._runtime.ipcOpenMemHandle, handle))
        except CudaFault as fault:
            if fault.status not in _REASONS:
                raise
            raise HandleRefused(_REASONS[fault.status]) from fault
        try:
            self.check_extent(address, byte_size)
            ordinal = int(self._call(self._runtime.pointerGetAttributes, address).device)
            if ordinal != self.ordinal:
                raise HandleRefused("the allocation lies on another GPU")
        except BaseException:
            self.close_handle(address)
            raise
        return address

    def check_extent(self, address: int, byte_size: int) -> None:
        """Raises HandleRefused where an allocation has fewer bytes than this from ``address`` on."""
        base, size = ctypes.c_uint64(), ctypes.c_size_t()
        status = self._call(self._driver.cuMemGetAddressRange_v2, ctypes.byref(base), ctypes.byref(size), ctypes.c_uint64(address))
        if status:
            raise HandleRefused(f"the driver does not say how large the allocation is (error {status})")
        there = base.value + size.value - address
        if byte_size > there:
            raise HandleRefused(f"the allocation has {there} bytes, {byte_size} were registered")

    def close_handle(self, address: int) -> None:
        """Undo ``open_handle``."""
        self._call(self._runtime.ipcCloseMemHandle, address)

    def lost(self) -> str:
        """Why nothing can be done any more with this process's context; empty where it can, or another time.

        After a fault of a kernel every call fails with it, until the process ends.
        """
        try:
            self._call(self._runtime.deviceSynchronize)
        except CudaFault as fault:
            return str(fault) if fault.status in _LASTING else ""
        return ""

    def _call(self, function: Callable[..., T], *arguments: object) -> T:
        try:
            # Each thread begins with the first device, and the driver's own functions need one that has been chosen.
            before = int(self._runtime.getDevice())
            self._runtime.setDevice(self.ordinal)
            try:
                return function(*arguments)
            finally:
                if before != self.ordinal:
                    self._go_back_to(before)
        except RuntimeError as error:
            raise CudaFault(int(getattr(error, "status", 0)), str(error)) from error

    def _go_back_to(self, ordinal: int) -> None:
        """The thread may be a model's, which goes on with the device that it had, unless going there would make a context on it."""
        flags, active = ctypes.c_uint(), ctypes.c_int()
        if not self._driver.cuDevicePrimaryCtxGetState(ordinal, ctypes.byref(flags), ctypes.byref(active)) and active.value:
            self._runtime.setDevice(ordinal)


class Handles:
    """Clients' allocations, each opened once however often it is registered. For any thread."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._lock = threading.Lock()
        self._opened: dict[bytes, list[int]] = {}

    def open(self, handle: bytes, byte_size: int) -> int:
        """The address of an allocation of at least ``byte_size`` bytes; to be closed once for each time. Raises HandleRefused."""
        with self._lock:
            opened = self._opened.get(handle)
            if opened is None:
                address = self._device.open_handle(handle, byte_size)
                self._opened[handle] = [address, 1]
                return address
            self._device.check_extent(opened[0], byte_size)
            opened[1] += 1
            return opened[0]

    def close(self, handle: bytes) -> None:
        """Whoever opened it needs it no more."""
        with self._lock:
            opened = self._opened[handle]
            opened[1] -= 1
            if not opened[1]:
                del self._opened[handle]
                self._device.close_handle(opened[0])


class DevicePool:
    """Device memory for tensors on their way: one allocation, made at the first use, and others beside it where it is full.

    For any thread. What is given back may be handed out again at once: whoever used it has waited for its stream.
    """

    def __init__(self, device: Device, byte_size: int) -> None:
        self._device = device
        self._lock = threading.Lock()
        self._allocator = Allocator(byte_size)
        self._base = 0
        self._beside: set[int] = set()

    def prepare(self) -> None:
        """Have the one allocation already. Raises CudaFault where the device has no room."""
        with self._lock:
            self._prepare()

    def _prepare(self) -> None:
        if not self._base and self._allocator.capacity_byte_size:
            self._base = self._device.allocate(self._allocator.capacity_byte_size)

    def reserve(self, byte_size: int) -> int:
        """The address of a block, aligned to ``ALIGNMENT_BYTE_SIZE``. Raises CudaFault where the device has no room."""
        with self._lock:
            try:
                offset = self._allocator.reserve(byte_size)
            except ArenaFull:
                address = self._device.allocate(byte_size)
                self._beside.add(address)
                return address
            try:
                self._prepare()
            except BaseException:
                self._allocator.free(offset)
                raise
            return self._base + offset

    def free(self, address: int) -> None:
        """Give a block back."""
        with self._lock:
            if address in self._beside:
                self._beside.remove(address)
                self._device.free(address)
            else:
                self._allocator.free(address - self._base)
