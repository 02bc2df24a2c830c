"""The server's child processes, workers and front ends alike: their links, their arenas, and who reads whose."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

from ...shm.placement import Lease
from ...workers.contract.messages import DeviceGrant
from ...workers.contract.status import StatusError, unavailable
from ..dispatch.request import Request
from ..regions import CudaRegion, RegionRegistry, SystemRegion
from .channel import Channel, Context, Decode, decode_worker, new_context
from .child_process import ChildProcess
from .launch import Launched
from .runtime_directory import RuntimeDirectory


def tensor_gone() -> StatusError:
    """What is told of a lease whose owner has gone."""
    return unavailable("the worker that made a tensor has gone, and the tensor with it")


class Processes:
    """All that run. ``arena_byte_sizes`` are the capacity and the resident part of each one's own arena.

    ``regions`` are those of clients, ``request_arena_fd`` is a descriptor of the server's own arena. ``on_end`` is told the number of an
    arena whose process has gone, ``on_cuda_drop`` that of a CUDA region that is to be closed.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, regions: RegionRegistry, request_arena_fd: int, arena_byte_sizes: tuple[int, int]
    ) -> None:
        self._loop = loop
        self._regions = regions
        self._request_arena_fd = request_arena_fd
        self._arena_byte_sizes = arena_byte_sizes
        self._context: Context = new_context()
        self._runtime = RuntimeDirectory()
        self._numbers = itertools.count(1)
        self._by_arena: dict[int, ChildProcess] = {}
        self.on_end: Callable[[int], None] = lambda arena: None
        self.on_cuda_drop: Callable[[int], None] = lambda region: None
        regions.on_drop = self._region_dropped

    def start(
        self,
        name: str,
        receive: Callable[[ChildProcess, Any], None],
        say: Callable[[str], None],
        ended: Callable[[ChildProcess], None],
        launch: Callable[[], Launched],
        decode: Decode = decode_worker,
        arena_byte_sizes: tuple[int, int] | None = None,
        device: DeviceGrant | None = None,
    ) -> ChildProcess:
        """A process that ``launch`` starts, with a link and an arena of its own. Raises OSError where it cannot be started.

        ``receive``, ``say`` and ``ended`` are as ``ChildProcess`` says; nobody has its arena any more when ``ended`` is called.
        ``decode`` makes messages of what it says, ``arena_byte_sizes`` is for one whose arena has other sizes than the rest, ``device`` is
        the GPU that it may use.
        """
        number = next(self._numbers)

        def make_channel(receive: Callable[[bytes, Any], None]) -> tuple[Channel, str]:
            endpoint = self._runtime.endpoint(f"process-{number}")
            return Channel(self._context, endpoint, self._loop, receive, say, decode), endpoint

        def gone(process: ChildProcess) -> None:
            del self._by_arena[number]
            for other in self._by_arena.values():
                other.disown(number)
            self.on_end(number)
            ended(process)

        sizes, request_fd = arena_byte_sizes or self._arena_byte_sizes, self._request_arena_fd
        process = ChildProcess(name, number, sizes, request_fd, make_channel, self._loop, receive, say, gone, launch, device)
        self._by_arena[number] = process
        return process

    def lend(self, request: Request, process: ChildProcess) -> None:
        """Let a process reach the client regions and other processes' arenas that a request uses, before it gets that."""
        for number in request.regions:
            self.lend_region(number, process)
        for arena in request.arenas:
            self.share(arena, process)

    def lend_region(self, number: int, process: ChildProcess) -> None:
        """Let a process reach a client's region, before it is told to."""
        if not process.attached(number):
            region, fd = self._regions.region(number)
            if isinstance(region, CudaRegion):
                process.open_region(number, region.handle, region.byte_size)
            else:
                process.attach(number, fd, region.offset, region.byte_size)

    def share(self, arena: int, process: ChildProcess) -> None:
        """Let a process read the arena of another, before it gets leases of it."""
        owner = self._by_arena.get(arena)
        if arena:
            process.adopt(arena, None if owner is None else owner.arena_fd)

    def view(self, lease: Lease) -> memoryview:
        """The bytes of a lease of any process's arena. Raises StatusError where that process has gone."""
        return self.owner(lease).view(lease)

    def owner(self, lease: Lease) -> ChildProcess:
        """The process whose arena a lease is of. Raises StatusError where it has gone."""
        owner = self._by_arena.get(lease.arena)
        if owner is None:
            raise tensor_gone()
        return owner

    def _region_dropped(self, number: int, region: SystemRegion | CudaRegion) -> None:
        if isinstance(region, CudaRegion):
            self.on_cuda_drop(number)
        else:
            for process in self._by_arena.values():
                process.detach(number)

    def close(self) -> None:
        """Close all links, and remove the sockets' directory; all processes have ended."""
        self._context.destroy(linger=0)
        self._runtime.close()

    def end_now(self) -> None:
        """Remove the sockets' directory; the server process exits right after."""
        self._runtime.close()
