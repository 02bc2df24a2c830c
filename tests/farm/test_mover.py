"""Copies between GPUs and ordinary memory by callbacks, over workers that are stood in for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from tensorfarm.server.dispatch.carried import Copies, Location
from tensorfarm.server.farm.devices import Devices
from tensorfarm.server.farm.mover import DeviceMover
from tensorfarm.server.farm.processes import Processes
from tensorfarm.server.farm.seat import Seat
from tensorfarm.server.regions import CudaRegion, RegionRegistry
from tensorfarm.shm.placement import DEVICE_START, Inline, Lease, Placement, Span
from tensorfarm.workers.contract.messages import DeviceGrant, Fetch, Fetched
from tensorfarm.workers.contract.status import Code, StatusError, unavailable

COPY = Lease(7, 0, 8)
FAR = Lease(7, DEVICE_START, 8)
PART = Span(3, 0, 8)


class FakeDevices:
    """What workers do, as ``outcome`` says."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.outcome: Callable[[], Any] = lambda: None

    async def fetch(self, device: int, places: Sequence[Placement], regions: Iterable[int]) -> Any:
        self.asked.append((device, places, regions))
        return self.outcome()

    async def fetch_own(self, leases: Sequence[Lease]) -> Any:
        self.asked.append(leases)
        return self.outcome()

    async def put(self, device: int, places: Sequence[Placement], spans: Sequence[Span]) -> None:
        self.asked.append((device, places, spans))
        self.outcome()


def moved(work: Callable[[DeviceMover, Callable[[Any], None]], None], outcome: Callable[[], Any]) -> tuple[Any, list[Any], list[str]]:
    """What is told of a copy, what the worker was asked, and what was logged."""
    devices: Any = FakeDevices()
    devices.outcome = outcome
    logged: list[str] = []

    async def main() -> Any:
        loop = asyncio.get_running_loop()
        told = loop.create_future()
        mover = DeviceMover(loop, devices, logged.append)
        work(mover, told.set_result)
        assert not told.done(), "told before the call has returned"
        return await told

    return asyncio.run(main()), devices.asked, logged


def fetch_region(mover: DeviceMover, done: Callable[[Any], None]) -> None:
    mover.fetch(Location(1), [PART], done)


def raising(error: BaseException) -> Callable[[], Any]:
    def outcome() -> Any:
        raise error

    return outcome


def test_copies_are_handed_over() -> None:
    copies = object()
    assert moved(fetch_region, lambda: copies) == (copies, [(1, [PART], {3})], [])


def test_what_only_its_owner_reaches_is_asked_of_the_owner() -> None:
    copies = object()
    told = moved(lambda mover, done: mover.fetch(Location(1, "m:1#0"), [FAR], done), lambda: copies)
    assert told == (copies, [[FAR]], [])


def test_a_put_that_is_done_has_nothing_to_tell() -> None:
    assert moved(lambda mover, done: mover.put(1, [COPY], [PART], done), lambda: None) == (None, [(1, [COPY], [PART])], [])


def test_a_refusal_is_told_as_it_is() -> None:
    error = unavailable("the worker has gone")
    assert moved(fetch_region, raising(error))[0] is error


@pytest.mark.parametrize("error", [asyncio.CancelledError(), ValueError("/a/path")])
def test_anything_else_is_an_internal_error_that_says_nothing(error: BaseException) -> None:
    told, _, logged = moved(fetch_region, raising(error))
    assert isinstance(told, StatusError) and told.code is Code.INTERNAL and "/a/path" not in told.message
    assert logged == ([] if isinstance(error, asyncio.CancelledError) else ["copying from or to a GPU failed with ValueError: /a/path"])


# where things lie


class Bench:
    """Devices over processes and seats that are stood in for: the workers of arenas 7 and 8, of which the second has no GPU."""

    def __init__(self) -> None:
        self.owner = SimpleNamespace(name="m:1#0", device=DeviceGrant(1, 0, 0), arena_number=7)
        self.plain = SimpleNamespace(name="cpu", device=None, arena_number=8)
        self.asked: list[tuple[str, Any]] = []
        self.regions = RegionRegistry(10)
        self.region = self.regions.reserve_cuda(CudaRegion("r", 2, 64, b""))
        processes: Any = SimpleNamespace(_by_arena={7: self.owner, 8: self.plain})
        processes.owner = lambda lease: Processes.owner(processes, lease)
        seats = {process.name: SimpleNamespace(process=process) for process in (self.owner, self.plain)}
        farm: Any = SimpleNamespace(seats=seats, ask=self.ask)
        self.farm = farm
        self.processes = processes
        self.devices = Devices(farm, processes, self.regions)

    async def ask(self, worker: str, message: Callable[[int], Any]) -> Fetched:
        self.asked.append((worker, message(5)))
        return Fetched(5, [COPY])


def run(work: Coroutine[Any, Any, Copies]) -> Copies:
    return asyncio.run(work)


def test_a_place_is_looked_up() -> None:
    bench = Bench()
    where = bench.devices.where
    assert where(Inline(memoryview(b""))) is where(Lease(7, 0, 8)) is where(Lease(0, 0, 8)) is where(Span(99, 0, 8)) is None
    assert where(Span(bench.region, 8, 8)) == Location(2)
    assert where(FAR) == Location(1, "m:1#0")


def test_what_lies_with_a_worker_is_copied_by_that_worker() -> None:
    bench = Bench()
    copies = run(bench.devices.fetch_own([FAR]))
    assert bench.asked == [("m:1#0", Fetch(5, [FAR]))]
    assert copies.leases == [COPY]


def test_what_went_with_its_worker_is_not_asked_of_the_next() -> None:
    bench = Bench()
    with pytest.raises(StatusError, match="has gone"):
        bench.devices.where(Lease(9, DEVICE_START, 8))
    with pytest.raises(StatusError, match="has gone"):
        run(bench.devices.fetch_own([FAR, Lease(9, DEVICE_START, 8)]))
    with pytest.raises(StatusError, match="does not have"):
        bench.devices.where(Lease(8, DEVICE_START, 8))
    bench.farm.seats["m:1#0"].process = SimpleNamespace(name="m:1#0", device=bench.owner.device, arena_number=11)
    with pytest.raises(StatusError, match="has gone"):
        bench.devices.where(FAR)
    with pytest.raises(StatusError, match="has gone"):
        run(bench.devices.fetch_own([FAR]))
    assert not bench.asked


# letting go of regions


def holder(name: str, *regions: int) -> Seat:
    """A seat whose worker has been given these regions."""
    given = set(regions)

    def forget(region: int) -> bool:
        there = region in given
        given.discard(region)
        return there

    process: Any = SimpleNamespace(forget_region=forget)
    return Seat(name, process=process)


@pytest.mark.parametrize("stops_when", ["before it is asked", "while it is asked"])
def test_a_region_is_let_go_of_once_the_workers_that_are_leaving_have_ended(stops_when: str) -> None:
    """Their successors, which bear the same names, know nothing of it."""
    bench = Bench()
    old, other = holder("gpu_2", 3), holder("m:1#0")
    bench.farm.leaving = {old, holder("gpu_2", 4)}
    bench.farm.seats = {"gpu_2": holder("gpu_2"), "m:1#0": other}
    bench.farm.let_go = lambda region: None
    if stops_when == "while it is asked":
        bench.farm.leaving = set()
        bench.farm.seats["gpu_2"] = old

    async def stopped(worker: str, message: Callable[[int], Any]) -> Any:
        raise unavailable("worker 'gpu_2' is being stopped")

    bench.farm.ask = stopped

    async def main() -> None:
        old.gone = asyncio.get_running_loop().create_future()
        bench.processes.on_cuda_drop(3)
        closed = asyncio.ensure_future(bench.devices.closed([3]))
        for _ in range(10):
            await asyncio.sleep(0)
        assert not closed.done(), "its owner would free what is still mapped"
        old.gone.set_result(None)
        await closed
        # And nobody waits for those who have nothing of it.
        bench.processes.on_cuda_drop(5)
        await bench.devices.closed([5])

    asyncio.run(asyncio.wait_for(main(), 5))
