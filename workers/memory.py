"""The memory a worker can reach: the server's arena (reading), its own arena, clients' regions."""

from __future__ import annotations

import os
import threading

from ..shm.arena import Arena, ArenaFull, ArenaView
from ..shm.placement import Inline, Lease, Placement
from ..shm.system import MappedRegion, RegionShrunk
from .contract.status import StatusError, invalid, unavailable

ATTACH_TIMEOUT_SECS = 5.0

_SHRUNK = "the shared memory object behind a region is smaller than it was when the region was registered"


class WorkerMemory:
    """Implements ``batch.Memory``; used by all instance threads of the process."""

    def __init__(self, request_arena: ArenaView, arena: Arena) -> None:
        self._request_arena = request_arena
        self._arena = arena
        self._lock = threading.Lock()
        self._parts: dict[int, int] = {}
        self._part_counts: dict[int, int] = {}
        self._regions: dict[int, MappedRegion | StatusError] = {}
        self._attached = threading.Condition()

    def view(self, place: Placement) -> memoryview:
        """The bytes at a placement. Raises StatusError where a client's region is not what it was."""
        if isinstance(place, Inline):
            return place.content
        if isinstance(place, Lease):
            return self._arena.view(place) if place.arena == self._arena.number else self._request_arena.view(place)
        region = self._regions.get(place.region)
        if region is None:
            region = self._await(place.region)
        if isinstance(region, StatusError):
            raise region
        try:
            return region.view(place.offset, place.byte_size)
        except RegionShrunk:
            raise invalid(_SHRUNK) from None
        except ValueError as error:
            raise invalid(str(error)) from None

    def _await(self, number: int) -> MappedRegion | StatusError:
        # Descriptors come over the lifeline, batches over ZeroMQ: a batch may overtake its region.
        with self._attached:
            if not self._attached.wait_for(lambda: number in self._regions, ATTACH_TIMEOUT_SECS):
                raise unavailable("a shared memory region did not reach the worker in time")
            return self._regions[number]

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
            finally:
                os.close(fd)
        with self._attached:
            self._regions[number] = region
            self._attached.notify_all()

    def detach(self, number: int) -> None:
        """Unmap a region; no request uses it any more."""
        with self._attached:
            self._regions.pop(number, None)

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
            self._arena.free(offset)
