"""The memory of the GPU that a worker was given: clients' CUDA regions, and blocks for tensors on their way."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..shm.cuda import OUT_OF_MEMORY, CudaFault, Device, DevicePool, HandleRefused, Handles, lost_context
from ..shm.placement import DEVICE_START, Lease
from .contract.messages import DeviceGrant
from .contract.status import StatusError, internal, invalid, unavailable
from .last_words import end_because
from .quiet import Quiet

_NO_CUPY = "this server cannot use its GPUs: the package cupy-cuda13x is not installed (pip install tensorfarm[gpu])"


@dataclass(frozen=True, slots=True)
class HostMemory:
    """Ordinary memory that tensors lie in for as long as the process lives: the device is to reach it directly."""

    pages: memoryview
    read_only: bool


@dataclass(frozen=True, slots=True)
class DeviceRegion:
    """A client's CUDA region as it is mapped here: ``byte_size`` bytes from ``address`` on."""

    handle: bytes
    address: int
    byte_size: int

    def part(self, offset: int, byte_size: int) -> int:
        """The address of a part of it. Raises StatusError INVALID_ARG for a part beyond it."""
        if offset < 0 or byte_size < 0 or offset + byte_size > self.byte_size:
            raise invalid("a span reaches beyond its region")
        return self.address + offset


class DeviceMemory:
    """Opens the device with its first use, which takes a while and some memory of it. For any thread.

    ``arena`` is the number of the worker's own arena, which leases of device memory bear; ``host`` is what the device is to reach directly.
    Whatever CUDA refuses is raised as StatusError; a context that is lost ends the process, and so does one that cannot be made, unless
    the device is a ``foreign`` one, which a model chose. All who use the device do so in ``quiet``.
    """

    def __init__(self, grant: DeviceGrant, arena: int, host: Sequence[HostMemory], *, foreign: bool = False) -> None:
        self.number = grant.number
        self.ordinal = grant.ordinal
        self._grant = grant
        self._arena = arena
        self._host = host
        self._foreign = foreign
        self._lock = threading.Lock()
        self._opened: tuple[Device, Handles, DevicePool] | None = None
        self._streams: list[int] = []
        self.quiet = Quiet()

    @property
    def device(self) -> Device:
        """The device, opened."""
        return self._open()[0]

    def _open(self) -> tuple[Device, Handles, DevicePool]:
        opened = self._opened
        if opened is None:
            with self._lock:
                opened = self._opened
                if opened is None:
                    opened = self._opened = self._made()
        return opened

    def _made(self) -> tuple[Device, Handles, DevicePool]:
        try:
            device = Device(self.ordinal)
        except ImportError as error:
            raise unavailable(_NO_CUPY) from error
        except OSError as error:
            raise unavailable(f"the GPU cannot be used: {error}") from error
        except CudaFault as fault:
            if not self._foreign and fault.status != OUT_OF_MEMORY:
                # CUDA tells a process that it could not be initialised in the same for as long as that lives.
                end_because(f"cannot use its GPU: {fault}")
            raise unavailable(f"the GPU cannot be used: {fault}") from fault
        for memory in self._host:
            if memory.pages:
                try:
                    device.pin(address_of(memory.pages), len(memory.pages), read_only=memory.read_only)
                except CudaFault as fault:
                    # Copies take a detour then.
                    print(f"tensor memory could not be pinned: {fault}", file=sys.stderr, flush=True)
        return device, Handles(device), DevicePool(device, self._grant.pool_byte_size)

    # regions

    def open_region(self, handle: bytes, byte_size: int) -> DeviceRegion:
        """Map a client's allocation. Raises INVALID_ARG with the reason why it cannot be, UNAVAILABLE where it cannot be now."""
        _, handles, _ = self._open()
        with self.quiet.work(), self._faults():
            try:
                return DeviceRegion(handle, handles.open(handle, byte_size), byte_size)
            except HandleRefused as refusal:
                raise invalid(str(refusal)) from refusal
            except CudaFault as fault:
                if fault.status != OUT_OF_MEMORY:
                    raise
                raise unavailable(f"the GPU has no room for it: {fault}") from fault

    def close_region(self, region: DeviceRegion) -> None:
        """Let go of it."""
        with self.quiet.work(), self._faults():
            self._open()[1].close(region.handle)

    # blocks

    def take_pool(self) -> None:
        """Have the pool's memory before others take what there is. Raises UNAVAILABLE where there is too little."""
        pool = self._open()[2]
        with self.quiet.work(), self._faults():
            try:
                pool.prepare()
            except CudaFault as fault:
                if fault.status != OUT_OF_MEMORY:
                    raise
                raise unavailable(f"the GPU has no room for --cuda-memory-pool-byte-size: {fault}") from fault

    def reserve(self, byte_size: int) -> Lease:
        """A block of device memory. Raises UNAVAILABLE where there is no room."""
        device, _, pool = self._open()
        with self.quiet.work(), self._faults():
            try:
                return Lease(self._arena, DEVICE_START + pool.reserve(byte_size), byte_size)
            except CudaFault as fault:
                if device.lost():
                    raise
                raise unavailable(f"no room for {byte_size} bytes of tensors in the GPU's memory: {fault}") from fault

    def free_offset(self, offset: int) -> None:
        """Give back the block that begins at a lease's ``offset``."""
        with self.quiet.work(), self._faults():
            self._open()[2].free(offset - DEVICE_START)

    # copies

    def new_stream(self) -> int:
        """A stream for whoever copies often; to be given back by ``end_stream``."""
        with self.quiet.work(), self._faults():
            return self.device.new_stream()

    def end_stream(self, stream: int) -> None:
        """Give back what ``new_stream`` gave."""
        with self.quiet.work(), self._faults():
            self.device.end_stream(stream)

    @contextlib.contextmanager
    def stream(self) -> Iterator[int]:
        """A stream for the time of some copies; whoever has it waits for it."""
        device = self.device
        with self.quiet.work(), self._faults():
            try:
                stream = self._streams.pop()
            except IndexError:
                stream = device.new_stream()
            try:
                yield stream
            except BaseException:
                # Nobody may still be copying from or to what is given back now.
                device.synchronize(stream)
                raise
            finally:
                self._streams.append(stream)

    def wait_for_all(self) -> None:
        """Wait for all that this process does on the device, on whatever stream: a model's own work, too."""
        with self.quiet.work(), self._faults():
            self.device.synchronize_all()

    def read(self, address: int, byte_size: int) -> memoryview:
        """A copy of device memory in ordinary memory."""
        content = np.empty(byte_size, np.uint8)
        self.read_into(content.data, address)
        return content.data

    def read_into(self, content: memoryview, address: int) -> None:
        """Copy device memory to ordinary memory."""
        with self.stream() as stream:
            self.device.copy(address_of(content), address, len(content), stream)
            self.device.synchronize(stream)

    def write(self, address: int, content: bytes | memoryview) -> None:
        """Copy ordinary memory to device memory."""
        with self.stream() as stream:
            self.device.copy(address, address_of(content), len(content), stream)
            self.device.synchronize(stream)

    # faults

    @contextlib.contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except CudaFault as fault:
            raise self.fault(fault) from fault

    def fault(self, error: BaseException) -> StatusError:
        """What to tell of an error that CUDA may be behind. Does not return where the context is lost: the process ends."""
        self.check()
        return internal(f"a call of CUDA failed: {error}")

    def check(self) -> None:
        """End the process if its CUDA context is lost, ours or a model's: nothing will work in it any more, in a new one it will."""
        with self.quiet.work():
            reason = lost_context(self.ordinal) if self._opened is None else self._opened[0].lost()
        if reason:
            end_because(f"lost its CUDA context: {reason}")


def address_of(content: bytes | memoryview) -> int:
    """Where bytes lie, writable or not; 0 for none."""
    if not len(content):
        return 0
    array: np.ndarray[Any, np.dtype[np.uint8]] = np.frombuffer(content, np.uint8)
    return int(array.__array_interface__["data"][0])
