"""The memory of GPUs, as the server asks their workers for it: clients' regions, and copies out of it and into it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ...shm.placement import Lease, Placement, Span, on_device
from ...workers.contract.messages import CloseRegion, Fetch, Fetched, OpenRegion, Put
from ...workers.contract.status import StatusError, internal, unavailable
from ..dispatch.carried import Location
from ..regions import RegionRegistry
from .child_process import ChildProcess
from .farm import Farm
from .placement import device_worker
from .processes import Processes, tensor_gone
from .seat import Seat, left

CLOSE_TIMEOUT_SECS = 30.0
"""How long whoever unregisters a region waits for its workers."""


@dataclass(frozen=True, slots=True)
class Copies:
    """Copies of what lies on a GPU, in its worker's arena, until they are given back."""

    leases: list[Lease]
    process: ChildProcess

    def view(self, lease: Lease) -> memoryview:
        """The bytes of one of them."""
        return self.process.view(lease)

    def give_back(self) -> None:
        """Nobody reads them any more."""
        self.process.give_back(self.leases)


class Devices:
    """Speaks with the worker of each GPU, which is started when it is first needed. Everything raises StatusError."""

    def __init__(self, farm: Farm, processes: Processes, regions: RegionRegistry) -> None:
        self._farm = farm
        self._processes = processes
        self._regions = regions
        self._closing: dict[int, asyncio.Task[None]] = {}
        processes.on_cuda_drop = self._dropped

    async def open_region(self, device: int, number: int, handle: bytes, byte_size: int) -> None:
        """Have a GPU's worker map a client's allocation, and keep that worker for as long as the region is there."""
        try:
            process = await self._farm.keep(device_worker(device), device, number)
            process.know_region(number)
            await self._farm.ask(device_worker(device), lambda task: OpenRegion(task, number, handle, byte_size))
        except BaseException:
            # It knows the region all the same, perhaps opened by now.
            self._dropped(number)
            raise

    def _dropped(self, number: int) -> None:
        task = asyncio.get_running_loop().create_task(self._close(number))
        self._closing[number] = task
        task.add_done_callback(lambda _: self._closing.pop(number, None))

    async def closed(self, numbers: Iterable[int]) -> None:
        """Wait until those of these regions are closed that have been dropped: their owners may free them then."""
        closing = [task for number in numbers if (task := self._closing.get(number)) is not None]
        if closing:
            _, late = await asyncio.wait(closing, timeout=CLOSE_TIMEOUT_SECS)
            if late:
                raise unavailable(
                    f"the region is unregistered, but its GPU's worker has not let go of it within {CLOSE_TIMEOUT_SECS:g} s: "
                    "do not free the memory yet"
                )

    async def _close(self, number: int) -> None:
        # Those that have been told to stop hear nothing any more, and have it mapped until they end.
        leaving = [seat for seat in self._farm.leaving if _forgets(seat, number)]
        seats = [seat for seat in self._farm.seats.values() if _forgets(seat, number)]
        asked = [self._farm.ask(seat.name, lambda task: CloseRegion(task, number)) for seat in seats]
        results = await asyncio.gather(*asked, return_exceptions=True)
        self._farm.let_go(number)
        for seat, result in zip(seats, results, strict=True):
            # One that cannot be asked has gone, and what it had mapped with it, or is about to go.
            if isinstance(result, StatusError):
                leaving.append(seat)
            elif isinstance(result, BaseException):
                raise result
        await left(leaving)

    def where(self, place: Placement) -> Location | None:
        """The GPU that something lies on; None for ordinary memory. Raises StatusError UNAVAILABLE where its worker has gone."""
        if isinstance(place, Span):
            device = self._regions.device_of(place.region)
            return None if device is None else Location(device)
        if not isinstance(place, Lease) or not on_device(place):
            return None
        owner = self._owner(place)
        if owner.device is None:
            raise internal("a tensor is said to lie on a GPU that its worker does not have")
        return Location(owner.device.number, owner.name)

    def _owner(self, lease: Lease) -> ChildProcess:
        """Who has a lease in its memory, while it can be asked for it."""
        owner = self._processes.owner(lease)
        seat = self._farm.seats.get(owner.name)
        if seat is None or seat.process is not owner:
            raise tensor_gone()
        return owner

    async def fetch_own(self, leases: Sequence[Lease]) -> Copies:
        """Copy what lies in the GPU memory of one worker to ordinary memory: only that worker reaches it."""
        owner = self._owner(leases[0])
        if any(lease.arena != owner.arena_number for lease in leases):
            raise tensor_gone()
        answer = await self._farm.ask(owner.name, lambda task: Fetch(task, list(leases)))
        assert isinstance(answer, Fetched)
        return Copies(answer.leases, owner)

    async def fetch(self, device: int, places: Sequence[Placement], regions: Iterable[int]) -> Copies:
        """Copy what lies on a GPU to ordinary memory; ``regions`` are those that ``places`` are parts of."""
        process = await self._reach(device, regions)
        answer = await self._farm.ask(device_worker(device), lambda task: Fetch(task, list(places)))
        assert isinstance(answer, Fetched)
        return Copies(answer.leases, process)

    async def put(self, device: int, places: Sequence[Placement], spans: Sequence[Span]) -> None:
        """Copy each place to the beginning of its region part, on one GPU."""
        process = await self._reach(device, {span.region for span in spans})
        for place in places:
            if isinstance(place, Lease):
                self._processes.share(place.arena, process)
        await self._farm.ask(device_worker(device), lambda task: Put(task, list(places), list(spans)))

    async def _reach(self, device: int, regions: Iterable[int]) -> ChildProcess:
        process = await self._farm.arrived(device_worker(device), device)
        for number in regions:
            self._processes.lend_region(number, process)
        return process


def _forgets(seat: Seat, region: int) -> bool:
    return seat.process is not None and seat.process.forget_region(region)
