"""A batch of which some tensors lie in the memory of the worker's GPU, or are to be left there."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import prod

import numpy as np

from ..shm.cuda import ALIGNMENT_BYTE_SIZE, CudaFault
from ..shm.datatypes import DATATYPES
from ..shm.placement import Inline, Lease, Placement
from .backends.backend import Executor
from .batch import Batch, Memory, back_to_back
from .batch_runner import BatchRunner
from .contract.messages import Done, Execute, RequestBody, Result, Tensor
from .contract.room import check_room
from .contract.status import Code, StatusError, internal
from .device_memory import DeviceMemory, address_of
from .output import INLINE_BYTE_SIZE


@dataclass(frozen=True, slots=True)
class DeviceTensor:
    """A tensor of the whole batch in device memory; ``shape`` includes the batch dim."""

    address: int
    shape: tuple[int, ...]


class DeviceBatch(Batch):
    """Backends that can compute in device memory ask ``device_input`` and ``device_destination`` first, ``Batch``'s where those give None.

    They call ``arrived`` before they compute. Copies are queued on the batch's stream, and waited for there and in ``finish``.
    """

    __slots__ = ("_blocks", "_device", "_kept", "_leaving", "_queued", "_read", "_stays", "_stream", "on_device")

    def __init__(self, device: DeviceMemory, stream: int, requests: list[RequestBody], memory: Memory, model: str = "") -> None:
        super().__init__(requests, memory, model)
        self._device = device
        self._stream = stream
        self._blocks: list[Lease] = []
        self._queued = False
        self._kept: list[memoryview] = []
        self._leaving: dict[int, Lease] = {}
        self._read: list[tuple[int, int]] = []
        self._stays = [frozenset([output.name for output in request.outputs if output.stays]) for request in requests]
        self.on_device = any(self._stays) or self._reaches()

    def _reaches(self) -> bool:
        """Does any tensor lie in device memory, or belong there?"""
        address = self._memory.device_address
        for index, request in enumerate(self.requests):
            try:
                if any([type(tensor.place) is not Inline and address(tensor.place) is not None for tensor in request.inputs]):
                    return True
            except StatusError:
                # Whoever takes that input finds out, and says which request it is.
                continue
            if self._spans_wanted and any([span is not None and self._address(span) is not None for span in self._wanted[index].values()]):
                return True
        return False

    def _address(self, place: Placement) -> int | None:
        """As the memory says; None for a region with which something is wrong, as whoever writes to it finds out."""
        try:
            return self._memory.device_address(place)
        except StatusError:
            return None

    # inputs

    def device_input(self, name: str) -> DeviceTensor | None:
        """An input for the whole batch in device memory: in place for a lone request and where parts lie back to back, else gathered.

        None where all of it lies in ordinary memory, or it is BYTES. Raises InputFault as ``input`` does, UNAVAILABLE without room.
        """
        tensors = self.tensors(name)
        if not DATATYPES[tensors[0].datatype].byte_size:
            return None
        addresses = [self._input_address(index, tensor.place) for index, tensor in enumerate(tensors)]
        if all([address is None for address in addresses]):
            return None
        shape = self._whole(tensors)
        places = [tensor.place for tensor in tensors]
        lies = addresses[0] if len(places) == 1 or back_to_back(places) is not None else None
        if lies is not None and not lies % ALIGNMENT_BYTE_SIZE:
            self._read.append((lies, lies + sum([place.byte_size for place in places])))
            return DeviceTensor(lies, shape)
        address = self._block(sum([place.byte_size for place in places]))
        self._gather_to(address, tensors, addresses)
        return DeviceTensor(address, shape)

    def place_input(self, name: str, address: int) -> None:
        """Copy an input for the whole batch to device memory that its backend has. Raises as ``device_input`` does."""
        tensors = self.tensors(name)
        self._gather_to(address, tensors, [self._input_address(index, tensor.place) for index, tensor in enumerate(tensors)])

    def shape_of(self, name: str) -> tuple[int, ...]:
        """The shape of an input for the whole batch."""
        return self._whole(self.tensors(name))

    def _whole(self, tensors: Sequence[Tensor]) -> tuple[int, ...]:
        first = tensors[0].shape
        return first if len(tensors) == 1 else (sum([tensor.shape[0] for tensor in tensors]), *first[1:])

    def _input_address(self, index: int, place: Placement) -> int | None:
        try:
            return self._memory.device_address(place)
        except StatusError as error:
            raise self._input_fault(index, error) from error

    def _gather_to(self, address: int, tensors: Sequence[Tensor], addresses: Sequence[int | None]) -> None:
        at = address
        for index, (tensor, source) in enumerate(zip(tensors, addresses, strict=True)):
            byte_size = tensor.place.byte_size
            if source is None:
                content = self._view(index, tensor.place)
                # The copy is only queued.
                self._kept.append(content)
                source = address_of(content)
            self._copy(at, source, byte_size)
            at += byte_size

    def arrived(self) -> None:
        """Wait for all that is being copied."""
        if self._queued:
            self._queued = False
            try:
                self._device.device.synchronize(self._stream)
            except CudaFault as fault:
                raise self._device.fault(fault) from fault
            finally:
                self._kept.clear()

    # outputs

    def device_destination(self, name: str, datatype: str, shape: Sequence[int]) -> int | None:
        """Where in device memory an output of this shape is to be produced; None where it is not wanted there at all."""
        if not self.goes_to_device(name):
            return None
        byte_size = prod(shape) * DATATYPES[datatype].byte_size
        if not byte_size:
            return None
        if len(self.requests) == 1:
            span = self._wanted[0].get(name)
            if span is not None:
                address = self._address(span)
                if span.byte_size < byte_size or address is None:
                    return None
                # What is still being read is not to be written over.
                overlaps = any([start < address + byte_size and address < end for start, end in self._read])
                if not address % ALIGNMENT_BYTE_SIZE and not overlaps:
                    return address
            elif name in self._stays[0]:
                lease = self._left(byte_size)
                if lease is None:
                    return None
                address = self._memory.device_address(lease)
                assert address is not None
                self._leaving[address] = lease
                return address
        return self._block(byte_size)

    def _left(self, byte_size: int) -> Lease | None:
        """A block for what may stay on the device; None where there is no room, and it goes through ordinary memory instead."""
        try:
            return self._device.reserve(byte_size)
        except StatusError as error:
            if error.code is not Code.UNAVAILABLE:
                raise
            return None

    def goes_to_device(self, name: str) -> bool:
        """Is this output wanted in device memory by any request?"""
        for wanted, stays in zip(self._wanted, self._stays, strict=True):
            span = wanted.get(name)
            if name in stays or (span is not None and self._address(span) is not None):
                return True
        return False

    def set_device_output(self, name: str, datatype: str, shape: tuple[int, ...], address: int) -> None:
        """Hand over a whole-batch output in device memory, which may be changed once ``finish`` has returned.

        Raises INTERNAL for a shape that cannot be cut over the requests.
        """
        several = len(self.requests) > 1
        if several and (not shape or shape[0] != self.batch_size):
            raise internal(f"output '{name}' was made with shape {list(shape)} for a batch of {self.batch_size}")
        item_byte_size = prod(shape[1:] if several else shape) * DATATYPES[datatype].byte_size
        at = address
        for index, request in enumerate(self.requests):
            part_shape = (request.batch_size, *shape[1:]) if several else shape
            byte_size = item_byte_size * (request.batch_size if several else 1)
            wanted = self._wanted[index]
            if index not in self._faults and (not wanted or name in wanted):
                try:
                    place = self._placed(index, name, at, byte_size)
                except StatusError as error:
                    self.fail(index, error)
                else:
                    self._outputs[index].append(Tensor(name, datatype, part_shape, place))
            at += byte_size

    def _placed(self, index: int, name: str, address: int, byte_size: int) -> Placement:
        """Where a part of an output goes; it is copied unless it was produced there."""
        span = self._wanted[index].get(name)
        if span is not None:
            check_room(name, span, byte_size)
            target = self._memory.device_address(span)
            if target is None:
                self._copy(address_of(self._memory.view(span)[:byte_size]), address, byte_size)
            elif target != address:
                self._copy(target, address, byte_size)
            return span
        if name in self._stays[index]:
            left = self._leaving.pop(address, None)
            if left is not None:
                return left
            left = self._left(byte_size)
            if left is not None:
                target = self._memory.device_address(left)
                assert target is not None
                return self._filled(left, target, address, byte_size)
        if byte_size <= INLINE_BYTE_SIZE:
            content = np.empty(byte_size, np.uint8).data
            self._copy(address_of(content), address, byte_size)
            return Inline(content)
        lease = self._memory.reserve(byte_size)
        return self._filled(lease, address_of(self._memory.view(lease)), address, byte_size)

    def _filled(self, lease: Lease, target: int, address: int, byte_size: int) -> Lease:
        try:
            self._copy(target, address, byte_size)
        except StatusError:
            self._memory.free(lease)
            raise
        return lease

    def finish(self) -> list[Result]:
        """As ``Batch`` says; what was copied has arrived."""
        try:
            self.arrived()
        except StatusError as error:
            self.fail_all(error)
        for lease in (*self._blocks, *self._leaving.values()):
            self._memory.free(lease)
        self._blocks.clear()
        self._leaving.clear()
        return super().finish()

    def _block(self, byte_size: int) -> int:
        """Device memory until the batch is finished."""
        lease = self._device.reserve(byte_size)
        self._blocks.append(lease)
        address = self._memory.device_address(lease)
        assert address is not None
        return address

    def _copy(self, destination: int, source: int, byte_size: int) -> None:
        try:
            self._device.device.copy(destination, source, byte_size, self._stream)
        except CudaFault as fault:
            raise self._device.fault(fault) from fault
        self._queued = True

    def _free(self, places: Sequence[Placement]) -> None:
        # Nothing may still be on its way to what somebody else gets next; where waiting fails, nothing is any more.
        with contextlib.suppress(StatusError):
            self.arrived()
        super()._free(places)


class DeviceRunner(BatchRunner):
    """A ``BatchRunner`` of device batches, with a stream for their copies. Made in any thread, used by one."""

    def __init__(self, executor: Executor, memory: Memory, model: str, device: DeviceMemory) -> None:
        super().__init__(executor, memory, model)
        self._device = device
        self._stream = device.new_stream()
        self._make_batch = partial(DeviceBatch, device, self._stream)

    def run(self, message: Execute) -> Done:
        """As ``BatchRunner`` says."""
        with self._device.quiet.work():
            return super().run(message)

    def close(self) -> None:
        """As ``BatchRunner`` says."""
        super().close()
        self._device.end_stream(self._stream)
