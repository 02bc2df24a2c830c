"""The memory a worker can reach: the server's arena and other workers' (reading), its own arena, clients' regions, its GPU's memory."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from ..shm.arena import Arena, ArenaFull, ArenaView
from ..shm.copy_on_write import PrivatePages
from ..shm.mapping import MappedRegion, RegionShrunk
from ..shm.placement import DEVICE_START, Inline, Lease, Placement, Span
from .contract.messages import DeviceGrant
from .contract.status import Code, StatusError, internal, invalid, unavailable

if TYPE_CHECKING:
    from .device_memory import DeviceMemory, DeviceRegion

ATTACH_TIMEOUT_SECS = 5.0

_GONE = "the worker that made a tensor has gone, and the tensor with it"
_SHRUNK = "the shared memory object behind a region is smaller than it was when the region was registered"


class WorkerMemory:
    """Implements ``batch.Memory``; used by all instance threads of the process.

    ``request_arena_fd`` is a descriptor of the server's arena, which is closed here. ``private_pages`` is for backends
    that let models write to their inputs: such a worker keeps the descriptors of what it maps. ``device`` is the GPU's memory, None for
    workers of the CPU.
    """

    def __init__(self, request_arena_fd: int, arena: Arena, grant: DeviceGrant | None = None) -> None:
        self.device: DeviceMemory | None = None
        self._arena = arena
        self._arenas: dict[int, Arena | ArenaView | StatusError] = {arena.number: arena}
        self._descriptors: dict[tuple[str, int], int] = {("arena", arena.number): arena.fd}
        self._extents: dict[int, tuple[int, int]] = {}
        self._copy_on_write = False
        self._forget: Callable[[type[Placement], int], None] = lambda kind, number: None
        self._lock = threading.Lock()
        self._parts: dict[int, int] = {}
        self._part_counts: dict[int, int] = {}
        self._regions: dict[int, MappedRegion | DeviceRegion | StatusError] = {}
        self._expected: set[int] = set()
        self._unopened: dict[int, tuple[bytes, int]] = {}
        self._opening = threading.Lock()
        self._attached = threading.Condition()
        self.adopt(0, request_arena_fd)
        if grant is not None:
            self.device = self._device_memory(grant)

    def _device_memory(self, grant: DeviceGrant) -> DeviceMemory:
        from .device_memory import DeviceMemory, HostMemory

        # The server's own stays as it is beyond what stays resident: those pages come and go.
        resident = self._arena.resident_byte_size
        requests = cast(ArenaView, self._arenas[0]).view(Lease(0, 0, resident))
        host = (HostMemory(requests, read_only=True), HostMemory(self._arena.pages(0, resident), read_only=False))
        return DeviceMemory(grant, self._arena.number, host)

    def devices_own(self) -> DeviceMemory:
        """The GPU's memory. Raises StatusError INTERNAL in a worker that has no GPU."""
        if self.device is None:
            raise internal("this worker has no GPU")
        return self.device

    def view(self, place: Placement) -> memoryview:
        """The bytes at a placement; a copy of those that lie in a GPU's memory. Raises StatusError where a region is not what it was."""
        if isinstance(place, Inline):
            return place.content
        if isinstance(place, Lease):
            if place.offset >= DEVICE_START:
                return self.devices_own().read(self._block(place), place.byte_size)
            arena = self._arenas.get(place.arena)
            if arena is None:
                arena = self._awaited_arena(place.arena)
            if isinstance(arena, StatusError):
                raise StatusError(arena.code, arena.message)
            return arena.view(place)
        region = self._region(place)
        if not isinstance(region, MappedRegion):
            return self.devices_own().read(region.part(place.offset, place.byte_size), place.byte_size)
        try:
            return region.view(place.offset, place.byte_size)
        except RegionShrunk:
            raise invalid(_SHRUNK) from None
        except ValueError as error:
            raise invalid(str(error)) from None

    def device_address(self, place: Placement) -> int | None:
        """Where in the GPU's memory a placement lies; None for one in ordinary memory. Raises StatusError as ``view`` does."""
        if isinstance(place, Lease):
            return self._block(place) if place.offset >= DEVICE_START else None
        if isinstance(place, Inline) or self.device is None:
            return None
        region = self._region(place)
        return None if isinstance(region, MappedRegion) else region.part(place.offset, place.byte_size)

    def _block(self, place: Lease) -> int:
        if place.arena != self._arena.number:
            raise unavailable(_GONE)
        return place.offset - DEVICE_START

    def write_device(self, address: int, content: bytes | memoryview) -> None:
        """Copy bytes to an address in the GPU's memory. Raises StatusError."""
        self.devices_own().write(address, content)

    def _region(self, place: Span) -> MappedRegion | DeviceRegion:
        region = self._regions.get(place.region)
        if region is None:
            region = self._awaited_region(place.region)
        if isinstance(region, StatusError):
            return self._opened_again(place.region, region)
        return region

    @property
    def arena_number(self) -> int:
        """The number of the worker's own arena."""
        return self._arena.number

    def _awaited_region(self, number: int) -> MappedRegion | DeviceRegion | StatusError:
        self._await(lambda: number in self._regions or number in self._expected)
        with self._attached:
            # Opening a GPU for the first time takes as long as it takes.
            self._attached.wait_for(lambda: number not in self._expected)
            return self._regions[number]

    def _awaited_arena(self, number: int) -> Arena | ArenaView | StatusError:
        self._await(lambda: number in self._arenas)
        return self._arenas[number]

    def _await(self, there: Callable[[], bool]) -> None:
        # Descriptors come over the lifeline, batches over ZeroMQ: a batch may overtake its region.
        with self._attached:
            if not self._attached.wait_for(there, ATTACH_TIMEOUT_SECS):
                raise unavailable("a shared memory region did not reach the worker in time")

    def use_copy_on_write(self, forget: Callable[[type[Placement], int], None]) -> None:
        """Have ``private_pages`` work for the regions that come from now on.

        ``forget`` is told when an arena (as ``Lease``) or a region (as ``Span``) has gone.
        """
        self._copy_on_write = True
        self._forget = forget

    def private_pages(self, place: Lease | Span) -> PrivatePages:
        """A copy-on-write mapping of the whole arena or region that holds a placement. Raises StatusError where it has gone."""
        # Under the lock: the number of a descriptor that has been closed may be another's by now.
        with self._attached:
            try:
                if isinstance(place, Lease):
                    fd = self._descriptors["arena", place.arena]
                    return PrivatePages(fd, 0, os.fstat(fd).st_size)
                return PrivatePages(self._descriptors["region", place.region], *self._extents[place.region])
            except KeyError:
                raise unavailable(_GONE if isinstance(place, Lease) else "a shared memory region has gone") from None

    def adopt(self, number: int, fd: int | None) -> None:
        """Map another process's arena for reading, and take its descriptor over.

        Without ``fd`` the other process has gone, or the descriptor was lost on its way; those who read from the arena are told.
        """
        arena = unavailable(_GONE) if fd is None else ArenaView(number, fd)
        with self._attached:
            if fd is not None:
                self._descriptors["arena", number] = fd
            self._arenas[number] = arena
            self._attached.notify_all()

    def disown(self, number: int) -> None:
        """Unmap the arena of a worker that has gone; what still reads from it keeps its pages until it has done so."""
        with self._attached:
            self._arenas[number] = unavailable(_GONE)
            fd = self._descriptors.pop(("arena", number), None)
        if fd is not None:
            os.close(fd)
        self._forget(Lease, number)

    def attach(self, number: int, fd: int | None, offset: int, byte_size: int) -> None:
        """Map a client's region and close ``fd``. What is wrong with it is told to the requests that use it.

        Without ``fd`` the descriptor was lost on its way: one of the two processes has too many open.
        """
        region: MappedRegion | StatusError
        if fd is None:
            region = unavailable("a shared memory region could not be passed to the worker: too many open files")
        else:
            try:
                region = MappedRegion(fd, offset, byte_size)
            except RegionShrunk:
                region = invalid(_SHRUNK)
            except (OSError, ValueError, OverflowError) as error:
                region = invalid(f"failed to map a shared memory region: {error}")
            if self._copy_on_write and isinstance(region, MappedRegion):
                self._descriptors["region", number] = fd
                self._extents[number] = (offset, byte_size)
            else:
                os.close(fd)
        self._know(number, region)

    def open_region(self, number: int, handle: bytes, byte_size: int) -> None:
        """Open a client's CUDA region by its handle. Raises StatusError, which is also told to the requests that use it.

        Where the GPU could not be used, as when another process still holds its memory, those requests try again.
        """
        region: DeviceRegion | StatusError = internal("the GPU's worker failed")
        try:
            region = self.devices_own().open_region(handle, byte_size)
        except StatusError as error:
            if error.code is Code.UNAVAILABLE:
                self._unopened[number] = handle, byte_size
            region = StatusError(error.code, error.message)
            raise
        finally:
            self._know(number, region)

    def expect_region(self, number: int) -> None:
        """It is about to be opened."""
        with self._attached:
            self._expected.add(number)
            self._attached.notify_all()

    def _opened_again(self, number: int, error: StatusError) -> MappedRegion | DeviceRegion:
        with self._opening:
            wanted = self._unopened.pop(number, None)
            if wanted is not None:
                self.open_region(number, *wanted)
            region = self._regions.get(number, error)
        if isinstance(region, StatusError):
            # A new one: it would keep the frames of all who have raised it.
            raise StatusError(region.code, region.message)
        return region

    def _know(self, number: int, region: MappedRegion | DeviceRegion | StatusError) -> None:
        with self._attached:
            self._regions[number] = region
            self._expected.discard(number)
            self._attached.notify_all()

    def detach(self, number: int) -> None:
        """Unmap a region; no request uses it any more."""
        with self._attached:
            region = self._regions.pop(number, None)
            self._unopened.pop(number, None)
            self._extents.pop(number, None)
            fd = self._descriptors.pop(("region", number), None)
        if fd is not None:
            os.close(fd)
        if region is not None and not isinstance(region, MappedRegion | StatusError):
            self.devices_own().close_region(region)
        self._forget(Span, number)

    def reserve(self, byte_size: int) -> Lease:
        """A block of the worker's own arena. Raises StatusError UNAVAILABLE when it is full."""
        try:
            with self._lock:
                return self._arena.reserve(byte_size).place(0, byte_size)
        except ArenaFull as error:
            raise unavailable(
                f"no room for an output of {byte_size} bytes in the worker's tensor memory: {error}. "
                "Use --pinned-memory-pool-byte-size to give it more."
            ) from None

    def give_back(self) -> None:
        """Return the pages of the worker's own arena that nobody uses: they were kept warm for the next output."""
        # A GPU goes on reading and writing the very pages that it was shown.
        if self.device is None:
            with self._lock:
                self._arena.give_back()

    def divide(self, lease: Lease, parts: list[Lease]) -> None:
        """Let ``parts`` of a reserved block be given back one by one; the block goes with the last."""
        with self._lock:
            self._part_counts[lease.offset] = len(parts)
            for part in parts:
                self._parts[part.offset] = lease.offset

    def free(self, lease: Lease) -> None:
        """Give a reserved block, or a part of a divided one, back."""
        self.free_offset(lease.offset)

    def free_offset(self, offset: int) -> None:
        """Give back the block or part that begins at ``offset``."""
        with self._lock:
            block = self._parts.pop(offset, None)
            if block is not None:
                self._part_counts[block] -= 1
                if self._part_counts[block]:
                    return
                del self._part_counts[block]
                offset = block
            if offset < DEVICE_START:
                self._arena.free(offset)
                return
        self.devices_own().free_offset(offset)
