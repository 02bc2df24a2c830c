"""Clients' CUDA regions as a worker opens them: what is wrong with one is told, and tried again where it may pass."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from tensorfarm.shm.cuda import CudaFault, HandleRefused
from tensorfarm.shm.placement import Span
from tensorfarm.workers.contract.status import Code, StatusError
from tensorfarm.workers.memory import WorkerMemory

from .fake_device import FakeDeviceMemory
from .real_memory import Bench, bench

HANDLE = b"h" * 64
PLACE = Span(9, 16, 32)


@pytest.fixture
def world() -> Iterator[Bench]:
    with bench() as made:
        made.memory.device = FakeDeviceMemory()
        yield made


def failing(memory: WorkerMemory, *errors: Exception) -> list[int]:
    """Have the device fail so often, and then open; what is returned says how often it was asked."""
    device, left, asked = memory.devices_own().fake, list(errors), list[int]()  # type: ignore[attr-defined]

    def open_handle(handle: bytes, byte_size: int) -> int:
        asked.append(byte_size)
        if left:
            raise left.pop(0)
        return 4096

    device.open_handle = open_handle
    device.close_handle = lambda address: None
    return asked


def refusal(memory: WorkerMemory) -> StatusError:
    with pytest.raises(StatusError) as raised:
        memory.device_address(PLACE)
    return raised.value


def test_what_had_no_room_is_opened_by_the_requests_that_use_it(world: Bench) -> None:
    memory = world.memory
    asked = failing(memory, CudaFault(2, "out of memory"), CudaFault(2, "out of memory"))
    with pytest.raises(StatusError, match="the GPU has no room for it: out of memory"):
        memory.open_region(9, HANDLE, 64)
    assert refusal(memory).code is Code.UNAVAILABLE
    assert memory.device_address(PLACE) == memory.device_address(PLACE) == 4096 + 16
    assert asked == [64, 64, 64]
    memory.detach(9)


def test_what_is_wrong_with_a_handle_stays_wrong(world: Bench) -> None:
    memory = world.memory
    asked = failing(memory, HandleRefused("it is none"))
    with pytest.raises(StatusError, match="it is none"):
        memory.open_region(9, HANDLE, 64)
    assert refusal(memory).message == refusal(memory).message == "it is none"
    assert asked == [64]
    memory.detach(9)


def test_one_that_was_never_opened_is_closed_like_any_other(world: Bench) -> None:
    memory = world.memory
    asked = failing(memory, CudaFault(2, "out of memory"))
    with pytest.raises(StatusError):
        memory.open_region(9, HANDLE, 64)
    memory.detach(9)
    assert not memory._unopened and asked == [64]


def test_a_region_that_is_about_to_be_opened_is_waited_for(world: Bench) -> None:
    """Opening a GPU for the first time may take longer than any message."""
    memory, found = world.memory, list[int | None]()
    failing(memory)
    memory.expect_region(9)
    thread = threading.Thread(target=lambda: found.append(memory.device_address(PLACE)))
    thread.start()
    memory.open_region(9, HANDLE, 64)
    thread.join()
    assert found == [4096 + 16]
    memory.detach(9)
