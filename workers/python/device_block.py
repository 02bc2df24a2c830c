"""Bytes of tensors in a GPU's memory: where they are now, and how they get to where others want them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import TYPE_CHECKING

import numpy as np

from ...shm.placement import DEVICE_START, Inline, Lease, Placement, Span
from ..contract.room import check_room
from ..contract.status import StatusError, unavailable
from ..memory import WorkerMemory
from ..output import INLINE_BYTE_SIZE
from . import dlpack

if TYPE_CHECKING:
    from ..device_memory import DeviceMemory


class DeviceBlock:
    """Bytes in a GPU's memory, of which several tensors may be made. For any thread.

    ``owner`` keeps them there as long as anybody has it; None where a client's region does, until ``move``. ``exposed``: a model may
    have work under way on them, in streams that nobody else knows. ``on_expose`` is called each time that a capsule of them is given out.
    """

    __slots__ = ("__weakref__", "_address", "_lock", "_on_expose", "_owner", "byte_size", "device", "exposed")

    def __init__(
        self,
        device: DeviceMemory,
        address: int,
        byte_size: int,
        owner: object = None,
        exposed: bool = False,
        on_expose: Callable[[], None] = lambda: None,
    ) -> None:
        self.device = device
        self.byte_size = byte_size
        self.exposed = exposed
        self._address: int | None = address
        self._owner = owner
        self._on_expose = on_expose
        # The memory stays where it is while it is held. A finalizer of a model may come in the middle of this.
        self._lock = threading.RLock()

    def given(self, shape: tuple[int, ...], datatype: str) -> object:
        """A DLPack capsule of them. Raises StatusError once they have gone with their request."""
        with self._lock:
            address = self._there()
            self.exposed = True
            self._on_expose()
            return dlpack.given_on_device(dlpack.OnDevice(self.device.ordinal, address, shape, datatype, self._owner))

    def settle(self) -> None:
        """Wait for whatever a model may still have under way on them. Raises StatusError."""
        if self.exposed:
            self.device.wait_for_all()

    def read(self) -> memoryview:
        """A copy in ordinary memory, writable. Raises StatusError."""
        content = np.empty(self.byte_size, np.uint8).data
        self.read_into(content)
        return content

    def read_into(self, content: memoryview) -> None:
        """Copy them to ordinary memory of the same length. Raises StatusError."""
        with self._lock:
            address = self._there()
            self.settle()
            self.device.read_into(content, address)

    def copy_to(self, device: DeviceMemory, destination: int) -> None:
        """Copy them to an address on a GPU, which may be another. Raises StatusError."""
        with self._lock:
            address = self._there()
            self.settle()
            if destination == address:
                return
            if abs(destination - address) < self.byte_size:
                # What a copy does within the device whose ends overlap is not defined.
                device.write(destination, self.device.read(address, self.byte_size))
                return
            _copy(device, destination, address, self.byte_size)

    def move(self, gone: SimpleQueue[Lease]) -> None:
        """Get out of a client's region, whose client may change it from now on: to a block that is put in ``gone`` when nobody has it.

        Raises StatusError where there is no room: then they are lost.
        """
        with self._lock:
            address, self._address = self._there(), None
            self.settle()
            lease = self.device.reserve(self.byte_size)
            owner = _Kept(lease, gone)
            _copy(self.device, lease.offset - DEVICE_START, address, self.byte_size)
            self._address, self._owner, self.exposed = lease.offset - DEVICE_START, owner, False

    def _there(self) -> int:
        if self._address is None:
            raise unavailable("the request of a tensor has ended, and its memory with it")
        return self._address


class _Kept:
    """A block of device memory, until nobody has it any more."""

    __slots__ = ("_gone", "_lease")

    def __init__(self, lease: Lease, gone: SimpleQueue[Lease]) -> None:
        self._lease = lease
        self._gone = gone

    def __del__(self) -> None:
        # This may be anywhere, with any lock held.
        self._gone.put(self._lease)


def store_block(memory: WorkerMemory, name: str, block: DeviceBlock, span: Span | None) -> Placement:
    """As ``output.store``, for an output on a GPU: one copy, which has been made when this returns. Raises StatusError."""
    byte_size = block.byte_size
    if span is not None:
        check_room(name, span, byte_size)
        address = memory.device_address(span)
        if address is None:
            block.read_into(memory.view(span)[:byte_size])
        else:
            block.copy_to(memory.devices_own(), address)
        return span
    if byte_size <= INLINE_BYTE_SIZE:
        return Inline(block.read())
    lease = memory.reserve(byte_size)
    try:
        block.read_into(memory.view(lease))
    except StatusError:
        memory.free(lease)
        raise
    return lease


def _copy(device: DeviceMemory, destination: int, source: int, byte_size: int) -> None:
    with device.stream() as stream:
        device.device.copy(destination, source, byte_size, stream)
        device.device.synchronize(stream)
