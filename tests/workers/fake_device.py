"""A GPU of a few bytearrays: its addresses are nobody's, and its streams do nothing until somebody waits for them."""

from __future__ import annotations

import ctypes
from collections import defaultdict

from tensorfarm.shm.cuda import Device, DevicePool, HandleRefused, Handles
from tensorfarm.shm.placement import Inline, Lease, Placement, Span
from tensorfarm.workers.contract.messages import DeviceGrant
from tensorfarm.workers.contract.status import StatusError, unavailable
from tensorfarm.workers.device_memory import DeviceMemory, DeviceRegion

from .onnx_source import FakeMemory

ARENA = 7
BASE = 1 << 52
SPACING = 1 << 32


class FakeDevice(Device):
    """``copies`` are those that were carried out: what kind, and how many bytes."""

    def __init__(self) -> None:
        self.ordinal = 0
        self.allocations: dict[int, bytearray] = {}
        self.copies: list[tuple[str, int]] = []
        self.waits = 0
        self.dead = ""
        self._next = BASE
        self._queues: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
        self._streams = 0

    def allocate(self, byte_size: int) -> int:
        address, self._next = self._next, self._next + SPACING
        self.allocations[address] = bytearray(byte_size)
        return address

    def free(self, address: int) -> None:
        del self.allocations[address]

    def new_stream(self) -> int:
        self._streams += 1
        return self._streams

    def end_stream(self, stream: int) -> None:
        assert not self._queues.pop(stream, []), "a stream is given up while it has work"

    def copy(self, destination: int, source: int, byte_size: int, stream: int) -> None:
        if byte_size:
            self._queues[stream].append((destination, source, byte_size))

    def synchronize(self, stream: int) -> None:
        self.waits += 1
        for destination, source, byte_size in self._queues.pop(stream, []):
            kind = "".join("d" if address >= BASE else "h" for address in (source, destination))
            self.copies.append((kind, byte_size))
            content = self.bytes_at(source, byte_size) if source >= BASE else ctypes.string_at(source, byte_size)
            if destination >= BASE:
                self.put(destination, content)
            else:
                ctypes.memmove(destination, content, byte_size)

    def bytes_at(self, address: int, byte_size: int) -> bytes:
        block, offset = self._found(address, byte_size)
        return bytes(block[offset : offset + byte_size])

    def put(self, address: int, content: bytes) -> None:
        block, offset = self._found(address, len(content))
        block[offset : offset + len(content)] = content

    def _found(self, address: int, byte_size: int) -> tuple[bytearray, int]:
        base = max(start for start in self.allocations if start <= address)
        assert address - base + byte_size <= len(self.allocations[base]), "an illegal address"
        return self.allocations[base], address - base

    def open_handle(self, handle: bytes, byte_size: int) -> int:
        raise HandleRefused("nobody exports anything here")

    def lost(self) -> str:
        return self.dead


class FakeDeviceMemory(DeviceMemory):
    """The real one over a fake device."""

    def __init__(self, pool_byte_size: int = 1 << 20) -> None:
        super().__init__(DeviceGrant(0, 0, pool_byte_size), ARENA, ())
        self.fake = FakeDevice()
        self._opened = (self.fake, Handles(self.fake), DevicePool(self.fake, pool_byte_size))

    @property
    def taken_byte_size(self) -> int:
        """What of its blocks has not been given back."""
        assert self._opened is not None
        return self._opened[2]._allocator.used_byte_size + sum(len(self.fake.allocations[address]) for address in self._opened[2]._beside)


class GpuMemory(FakeMemory):
    """Arena 7, the system region 3, and CUDA regions by number; one that is not there is one that a client has broken."""

    def __init__(self, region: bytes | bytearray = b"", pool_byte_size: int = 1 << 20) -> None:
        super().__init__(region)
        self.device = FakeDeviceMemory(pool_byte_size)
        self.cuda: dict[int, DeviceRegion] = {}

    def add_region(self, number: int, byte_size: int, content: bytes = b"") -> DeviceRegion:
        address = self.device.fake.allocate(byte_size)
        self.device.fake.put(address, content)
        self.cuda[number] = DeviceRegion(b"", address, byte_size)
        return self.cuda[number]

    def region_bytes(self, number: int, offset: int, byte_size: int) -> bytes:
        return self.device.fake.bytes_at(self.cuda[number].address + offset, byte_size)

    def device_address(self, place: Placement) -> int | None:
        if isinstance(place, Lease):
            return place.offset - (1 << 56) if place.offset >= 1 << 56 else None
        if isinstance(place, Inline) or place.region == 3:
            return None
        if place.region not in self.cuda:
            raise StatusError(unavailable("").code, "the region is broken")
        return self.cuda[place.region].part(place.offset, place.byte_size)

    def view(self, place: Placement) -> memoryview:
        address = self.device_address(place)
        if address is None or isinstance(place, Inline):
            return super().view(place)
        assert isinstance(place, Lease | Span)
        return self.device.read(address, place.byte_size)

    def write_device(self, address: int, content: bytes | memoryview) -> None:
        self.device.write(address, content)

    def free(self, lease: Lease) -> None:
        if lease.offset >= 1 << 56:
            self.device.free_offset(lease.offset)
        else:
            super().free(lease)
