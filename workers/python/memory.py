"""The inputs of Python models: shared pages that a model may write to and keep, and clients' CUDA regions as they are."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Any, Protocol

import numpy as np

from ...shm.copy_on_write import Bytes, PrivatePages, Taken
from ...shm.placement import Inline, Lease, Placement, Span
from ..contract.status import StatusError, unavailable
from ..memory import WorkerMemory
from .device_block import DeviceBlock

_ALIGNMENT = 8
"""What numpy's own types ask for: an array that lies otherwise is slow, or refused by compiled code."""

MOST_KEPT = 64
"""Arrays that a model may have kept in place: each holds a mapping of a whole arena, and a descriptor."""


def _copied(content: memoryview) -> Bytes:
    return np.frombuffer(content, np.uint8).copy()


class InlineInputs:
    """The inputs of a request that all ride in its message, as most do: there is nothing to give back."""

    def bytes_of(self, place: Placement) -> Bytes:
        """A copy of the bytes, which is the model's own."""
        assert type(place) is Inline
        return _copied(place.content)

    def device_block(self, place: Placement) -> DeviceBlock | None:
        """No GPU's memory is in a message."""
        return None


INLINE = InlineInputs()


class ModelMemory:
    """Copy-on-write mappings of arenas and regions, one each, renewed where a model has kept a part of it.

    ``cpu_only``: the model takes its inputs in ordinary memory, wherever they lie.
    """

    def __init__(self, memory: WorkerMemory, *, cpu_only: bool = True) -> None:
        self._memory = memory
        self._cpu_only = cpu_only
        self._gone: SimpleQueue[Lease] = SimpleQueue()
        # A finalizer of a model may answer a request in the middle of this.
        self._lock = threading.RLock()
        self._mappings: dict[tuple[type[Placement], int], PrivatePages] = {}
        self._kept: list[weakref.ref[Bytes]] = []
        memory.use_copy_on_write(self.forget)

    def take(self, place: Lease | Span) -> tuple[Bytes, Taken | None]:
        """The bytes of a lease or span as an array, and what to give back. Raises StatusError where a region is not what it was."""
        view = self._memory.view(place)
        if not len(view):
            return np.empty(0, np.uint8), None
        if self._memory.device_address(place) is not None:
            # A copy already.
            return np.frombuffer(view, np.uint8), None
        key = (type(place), place.arena if isinstance(place, Lease) else place.region)
        with self._lock:
            pages = self._mappings.get(key)
            if pages is None:
                pages = self._mappings[key] = self._memory.private_pages(place)
            if not pages.clear(place.offset, place.byte_size) or self._keeps_many():
                return _copied(view), None
            array, taken = pages.take(place.offset, place.byte_size)
            if array.ctypes.data % _ALIGNMENT:
                del array
                pages.give_back(taken)
                return _copied(view), None
            return array, taken

    def device_block(self, place: Lease | Span, on_expose: Callable[[], None]) -> DeviceBlock | None:
        """As ``InputMemory`` says; ``on_expose`` is called when a model gets hold of the memory itself."""
        address = None if self._cpu_only else self._memory.device_address(place)
        return None if address is None else DeviceBlock(self._memory.devices_own(), address, place.byte_size, on_expose=on_expose)

    def end_use(self, blocks: Sequence[DeviceBlock], exposed: bool) -> None:
        """Clients' memory on a GPU is theirs again: wait for what a model does with it, and move ``blocks`` out of it.

        Those for which there is no room are lost: whoever reads them later hears of it.
        """
        device = self._memory.devices_own()
        leases = []
        with contextlib.suppress(Empty):
            while True:
                leases.append(self._gone.get_nowait())
        with contextlib.suppress(StatusError):
            if exposed or leases:
                device.wait_for_all()
            for lease in leases:
                device.free_offset(lease.offset)
        for block in blocks:
            with contextlib.suppress(StatusError):
                block.move(self._gone)

    def untouched(self, taken: Taken, offset: int, byte_size: int) -> bool:
        """Are these bytes of an array that was taken still their owner's?"""
        with self._lock:
            return taken.pages.untouched(taken, offset, byte_size)

    def give_back(self, taken: Taken) -> None:
        """An array should have gone; one that is kept stays as it is."""
        with self._lock:
            if not taken.pages.give_back(taken):
                self._mappings = {key: pages for key, pages in self._mappings.items() if pages is not taken.pages}
                self._kept.append(taken.array)

    def _keeps_many(self) -> bool:
        """Does the model hold so many mappings that it had better have copies?"""
        if len(self._kept) >= MOST_KEPT:
            self._kept = [array for array in self._kept if array() is not None]
        return len(self._kept) >= MOST_KEPT

    def forget(self, kind: type[Placement], number: int) -> None:
        """An arena or region is gone: its pages go with the last array over them."""
        with self._lock:
            self._mappings.pop((kind, number), None)


class Readable(Protocol):
    """A tensor that may not have been read yet."""

    def read(self) -> None:
        """Have its bytes at hand from now on."""


class SharedInputs:
    """The inputs of one request, or one answer, of which some lie in shared memory.

    ``finish`` ends their use, before the server hears that the request has ended.
    """

    __slots__ = ("__weakref__", "_blocks", "_exposed", "_finished", "_lock", "_memory", "_places", "_taken", "_tensors")

    def __init__(self, memory: ModelMemory) -> None:
        self._memory = memory
        # One and the same thread may come twice: in a finalizer.
        self._lock = threading.RLock()
        self._finished = False
        self._taken: list[Taken] = []
        self._places: dict[Taken, Lease] = {}
        self._tensors: list[weakref.ref[Readable]] = []
        self._blocks: list[weakref.ref[DeviceBlock]] = []
        self._exposed = False

    def place_of(self, array: np.ndarray[Any, np.dtype[Any]]) -> Lease | None:
        """Where an array's bytes lie in an arena just as the model has them: None for others, and for those it has written to."""
        with self._lock:
            for taken, lease in self._places.items():
                root: object = taken.array()
                if not isinstance(root, np.ndarray) or array.base is not root:
                    continue
                offset = array.ctypes.data - root.ctypes.data
                if self._memory.untouched(taken, offset, array.nbytes):
                    return Lease(lease.arena, lease.offset + offset, array.nbytes)
        return None

    def watch(self, tensors: Sequence[Readable]) -> None:
        """These are the tensors whose bytes may be asked for."""
        self._tensors = [weakref.ref(tensor) for tensor in tensors]

    def bytes_of(self, place: Placement) -> Bytes:
        """As ``InputMemory`` says. Raises StatusError once the request has ended."""
        if isinstance(place, Inline):
            return _copied(place.content)
        with self._lock:
            if self._finished:
                raise _ended()
            array, taken = self._memory.take(place)
            if taken is not None:
                self._taken.append(taken)
                if isinstance(place, Lease):
                    self._places[taken] = place
        return array

    def device_block(self, place: Placement) -> DeviceBlock | None:
        """As ``InputMemory`` says. Raises StatusError once the request has ended."""
        if isinstance(place, Inline):
            return None
        with self._lock:
            if self._finished:
                raise _ended()
            block = self._memory.device_block(place, self._expose)
            if block is not None:
                self._blocks.append(weakref.ref(block))
        return block

    def _expose(self) -> None:
        self._exposed = True

    def finish(self) -> None:
        """No more is taken, and what was should have gone; tensors that are kept are read now. May be called twice, by any thread.

        A kept tensor on a GPU gets a block there of its own. What a model has made of its capsule does not: that memory is the client's.
        """
        with self._lock:
            for kept in [tensor for reference in self._tensors if (tensor := reference()) is not None]:
                # A client's region may be gone by now: whoever reads the tensor later hears of it.
                with contextlib.suppress(StatusError):
                    kept.read()
                del kept
            self._finished = True
            blocks = [block for reference in self._blocks if (block := reference()) is not None]
            if blocks or self._exposed:
                self._memory.end_use(blocks, self._exposed)
            self._blocks, self._exposed = [], False
            while self._taken:
                self._memory.give_back(self._taken.pop())


class LentInputs(SharedInputs):
    """The outputs of an answer to a call: lent as long as a tensor or an array of them lives.

    Then ``give_back`` is called with what was taken, in whatever thread and at whatever moment that happens: it may take no lock.
    """

    __slots__ = ()

    def __init__(self, memory: ModelMemory, give_back: Callable[[list[Taken]], None]) -> None:
        super().__init__(memory)
        # Bound to the list, not to this object, which must be able to die.
        weakref.finalize(self, give_back, self._taken).atexit = False

    def bytes_of(self, place: Placement) -> Bytes:
        """As ``InputMemory`` says."""
        array = super().bytes_of(place)
        weakref.finalize(array, _keep, self).atexit = False
        return array


def _ended() -> StatusError:
    return unavailable("the request of a tensor has ended, and its memory with it")


def _keep(lent: LentInputs) -> None:
    """Called when an array has died: until then the finalizer held what it was lent with."""
