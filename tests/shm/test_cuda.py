"""Devices, handles and pools of device memory, on a stand-in for CUDA that is made of ordinary memory."""

from __future__ import annotations

import mmap
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tensorfarm.shm.cuda import ALIGNMENT_BYTE_SIZE, CudaFault, Device, DevicePool, HandleRefused, Handles

from ..standins.gpu.environment import environment, installed, ledger, order_fault
from ..standins.gpu.exporter import Exporter

MIB = 1 << 20
PAGE = mmap.PAGESIZE
GPUS = 2
ROOM = 8 * MIB
"""How much device memory this process may have."""

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Where the stand-in of this process counts and finds faults."""
    with installed(environment(tmp_path, gpus=GPUS, bytes=ROOM)):
        yield tmp_path


@pytest.fixture
def device(folder: Path) -> Device:
    """The first GPU."""
    return Device(0)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exporter]:
    """Another process that sees both GPUs."""
    with Exporter(environment(tmp_path_factory.mktemp("client"), gpus=GPUS)) as exporter:
        yield exporter


def numbers(count: int, start: int = 0) -> Bytes:
    return np.arange(start, start + count, dtype=np.uint8)


def address_of(array: Bytes) -> int:
    return int(array.ctypes.data)


def count(folder: Path, name: str) -> Any:
    content = ledger(folder, os.getpid())
    assert content is not None
    return content[name]


def in_thread(function: Callable[[], object]) -> Any:
    """What a new thread gets from a function, or the error that it raises."""
    results: list[object] = []

    def run() -> None:
        try:
            results.append(function())
        except (CudaFault, HandleRefused) as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return results[0]


def read(device: Device, address: int, byte_size: int) -> bytes:
    taken = np.zeros(byte_size, np.uint8)
    stream = device.new_stream()
    device.copy(address_of(taken), address, byte_size, stream)
    device.synchronize(stream)
    device.end_stream(stream)
    return taken.tobytes()


# devices


def test_one_that_is_not_there(folder: Path) -> None:
    with pytest.raises(CudaFault, match="invalid device ordinal") as caught:
        Device(GPUS)
    assert caught.value.status == 101


def test_a_machine_without_cupy(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(ImportError):
        Device(0)


def test_opening_one_makes_its_context(folder: Path) -> None:
    Device(1)
    assert count(folder, "uuids") == ["GPU-standin-1"]


def test_memory_is_that_of_the_device_in_any_thread(folder: Path) -> None:
    first, second = Device(0), Device(1)
    handles: list[tuple[Device, int]] = [(device, in_thread(lambda device=device: device.allocate(PAGE))) for device in (first, second)]
    import cupy

    assert [cupy.cuda.runtime.pointerGetAttributes(address).device for _, address in handles] == [0, 1]
    for device, address in handles:
        device.free(address)
    assert count(folder, "device_bytes") == 0


def test_no_thread_makes_a_context_of_another_gpu(folder: Path) -> None:
    device = Device(1)
    memory, stream, given = device.allocate(PAGE), device.new_stream(), numbers(PAGE)

    def work() -> str:
        device.copy(memory, address_of(given), PAGE, stream)
        device.synchronize(stream)
        device.free(memory)
        device.end_stream(stream)
        return device.lost()

    assert in_thread(work) == "" and in_thread(device.lost) == ""
    assert count(folder, "uuids") == ["GPU-standin-1"]


def test_a_model_s_thread_goes_on_with_the_device_that_it_had(folder: Path) -> None:
    """But for one that it has never used: going back there would make a context."""
    from cupy.cuda import runtime

    def devices(first: Device) -> list[int]:
        runtime.setDevice(0)
        first.allocate(PAGE)
        return [runtime.getDevice()]

    device = Device(1)
    assert in_thread(lambda: (device.allocate(PAGE), runtime.getDevice())[1]) == 1
    assert count(folder, "uuids") == ["GPU-standin-1"]
    assert in_thread(lambda: devices(device)) == [0]


def test_what_cuda_refuses_is_a_fault_with_its_number_and_words(device: Device) -> None:
    with pytest.raises(CudaFault, match="^cudaErrorInvalidValue: invalid argument$") as caught:
        device.free(12345)
    assert caught.value.status == 1
    with pytest.raises(CudaFault, match="out of memory") as caught:
        device.allocate(ROOM + 1)
    assert caught.value.status == 2
    assert device.lost() == ""


# copies


def test_copies_are_done_when_the_stream_is_waited_for(device: Device) -> None:
    memory = device.allocate(2 * PAGE)
    stream, other = device.new_stream(), device.new_stream()
    given, taken = numbers(PAGE), np.zeros(PAGE, np.uint8)
    device.pin(address_of(given), PAGE, read_only=False)
    device.copy(memory, address_of(given), PAGE, stream)
    given[0] = 99
    device.copy(memory + PAGE, memory, PAGE, stream)
    device.copy(address_of(taken), memory + PAGE, PAGE, stream)
    device.synchronize(other)
    assert not taken.any()
    device.synchronize(stream)
    assert taken.tobytes() == given.tobytes() and taken[0] == 99
    device._runtime.hostUnregister(address_of(given))
    for one in (stream, other):
        device.end_stream(one)
    with pytest.raises(CudaFault, match="invalid resource handle"):
        device.synchronize(stream)


def test_what_is_not_pinned_is_read_at_once(device: Device) -> None:
    memory, stream, given = device.allocate(PAGE), device.new_stream(), numbers(PAGE)
    device.copy(memory, address_of(given), PAGE, stream)
    wanted = given.tobytes()
    given[:] = 0
    device.synchronize(stream)
    assert read(device, memory, PAGE) == wanted


def test_a_copy_of_nothing_needs_no_memory(device: Device, folder: Path) -> None:
    stream = device.new_stream()
    device.copy(0, 0, 0, stream)
    device.synchronize(stream)
    assert count(folder, "copies")["h2h"]["count"] == 0


def test_a_copy_does_not_run_over_the_end_of_an_allocation(device: Device) -> None:
    memory, stream, given = device.allocate(100), device.new_stream(), numbers(101)
    with pytest.raises(CudaFault, match="invalid argument"):
        device.copy(memory, address_of(given), 101, stream)
    assert device.lost() == ""


@pytest.mark.parametrize("read_only", [True, False])
def test_pinning_memory_that_may_only_be_read(device: Device, folder: Path, read_only: bool) -> None:
    with mmap.mmap(-1, PAGE, prot=mmap.PROT_READ) as pages:
        address = address_of(np.frombuffer(pages, np.uint8))
        if not read_only:
            with pytest.raises(CudaFault, match="invalid argument"):
                device.pin(address, PAGE, read_only=False)
            return
        device.pin(address, PAGE, read_only=True)
        assert count(folder, "pinned_bytes") == PAGE
        with pytest.raises(CudaFault, match="already mapped"):
            device.pin(address, PAGE, read_only=True)
        device._runtime.hostUnregister(address)
        assert count(folder, "pinned_bytes") == 0


# faults


def test_a_lost_context_stays_lost(device: Device, folder: Path) -> None:
    memory = device.allocate(PAGE)
    stream = device.new_stream()
    assert device.lost() == ""
    file = order_fault(folder, 700)
    with pytest.raises(CudaFault) as caught:
        device.copy(memory, memory, PAGE, stream)
    assert caught.value.status == 700
    file.unlink()
    assert device.lost() == "cudaErrorIllegalAddress: an illegal memory access was encountered"
    with pytest.raises(CudaFault, match="illegal memory access"):
        device.allocate(PAGE)
    with pytest.raises(CudaFault, match="illegal memory access"):
        Device(0)


def test_a_fault_of_another_gpu_is_none_of_ours(device: Device, folder: Path) -> None:
    order_fault(folder, 700, "GPU-standin-1")
    assert device.lost() == ""


def test_memory_that_is_freed_before_it_was_copied_loses_the_context(device: Device) -> None:
    memory, stream, taken = device.allocate(PAGE), device.new_stream(), np.zeros(PAGE, np.uint8)
    device.copy(address_of(taken), memory, PAGE, stream)
    device.free(memory)
    with pytest.raises(CudaFault, match="illegal memory access"):
        device.synchronize(stream)
    assert device.lost()


# handles


def test_memory_of_another_process(device: Device, folder: Path, client: Exporter) -> None:
    theirs, handle = client.allocate(PAGE, b"there and back")
    ours = device.open_handle(handle, PAGE)
    assert read(device, ours, 14) == b"there and back"
    given, stream = numbers(10), device.new_stream()
    device.copy(ours + 20, address_of(given), 10, stream)
    device.synchronize(stream)
    assert client.read(theirs + 20, 10) == given.tobytes()
    device.close_handle(ours)
    assert count(folder, "opened") == 0
    with pytest.raises(CudaFault, match="invalid argument"):
        device.close_handle(ours)
    client.free(theirs)


@pytest.mark.parametrize("handle", [bytes(64), bytes(range(100, 164)), b"\xff" * 64])
def test_garbage_is_refused(device: Device, handle: bytes) -> None:
    with pytest.raises(HandleRefused, match="^it is no handle of an allocation that exists$"):
        device.open_handle(handle, 1)


def test_our_own_memory_is_refused(device: Device) -> None:
    import cupy

    handle = cupy.cuda.runtime.ipcGetMemHandle(device.allocate(PAGE))
    with pytest.raises(HandleRefused, match="a process that the driver takes for this one"):
        device.open_handle(handle, PAGE)


def test_an_allocation_that_is_too_small_is_refused(device: Device, folder: Path, client: Exporter) -> None:
    theirs, handle = client.allocate(1000)
    with pytest.raises(HandleRefused, match="^the allocation has 1000 bytes, 1001 were registered$"):
        device.open_handle(handle, 1001)
    assert count(folder, "opened") == 0 and count(folder, "opens") == 1
    client.free(theirs)


def test_an_allocation_of_another_gpu_is_refused(device: Device, folder: Path, client: Exporter) -> None:
    theirs, handle = client.allocate(1000, device=1)
    with pytest.raises(HandleRefused, match="^the allocation lies on another GPU$"):
        device.open_handle(handle, 1000)
    assert count(folder, "opened") == 0
    client.free(theirs)


@pytest.mark.parametrize("seen", ["GPU-standin-1", "1"])
def test_an_allocation_of_a_gpu_that_is_not_seen_here_is_refused(
    tmp_path: Path, client: Exporter, monkeypatch: pytest.MonkeyPatch, seen: str
) -> None:
    # Its number is 0 in either process.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
    theirs, handle = client.allocate(1000)
    own, own_handle = client.allocate(1000, device=1)
    with installed(environment(tmp_path, gpus=GPUS)):
        device = Device(0)
        with pytest.raises(HandleRefused, match="^the allocation lies on another GPU$"):
            device.open_handle(handle, 1000)
        device.close_handle(device.open_handle(own_handle, 1000))
    client.free(theirs)
    client.free(own)


def test_an_allocation_that_was_freed_is_refused(device: Device, client: Exporter) -> None:
    theirs, handle = client.allocate(1000)
    client.free(theirs)
    with pytest.raises(HandleRefused, match="^it is no handle of an allocation that exists$"):
        device.open_handle(handle, 1000)
    # It may have the number of the descriptor that the first had.
    theirs, other = client.allocate(1000)
    assert other != handle
    with pytest.raises(HandleRefused, match="^it is no handle of an allocation that exists$"):
        device.open_handle(handle, 1000)
    client.free(theirs)


def test_an_allocation_outlives_its_process_only_where_it_is_open(device: Device, tmp_path: Path) -> None:
    with Exporter(environment(tmp_path / "short", gpus=GPUS)) as exporter:
        _, opened = exporter.allocate(PAGE, b"still here")
        _, handle = exporter.allocate(PAGE)
        address = device.open_handle(opened, PAGE)
    with pytest.raises(HandleRefused, match="^it is no handle of an allocation that exists$"):
        device.open_handle(handle, PAGE)
    assert read(device, address, 10) == b"still here"
    device.close_handle(address)


def test_a_lost_context_is_no_reason_to_call_a_handle_wrong(device: Device, folder: Path, client: Exporter) -> None:
    theirs, handle = client.allocate(1000)
    order_fault(folder)
    with pytest.raises((CudaFault, HandleRefused), match="illegal memory access"):
        device.open_handle(handle, 1000)
    client.free(theirs)


def test_a_handle_is_opened_once_and_closed_with_the_last_use(device: Device, folder: Path, client: Exporter) -> None:
    theirs, handle = client.allocate(1000)
    others, another = client.allocate(1000)
    handles = Handles(device)
    first = handles.open(handle, 1000)
    assert handles.open(handle, 10) == first and handles.open(another, 1) != first
    assert count(folder, "opens") == 2
    with pytest.raises(HandleRefused, match="the allocation has 1000 bytes, 1001 were registered"):
        handles.open(handle, 1001)
    handles.close(another)
    handles.close(handle)
    assert count(folder, "opened") == 1
    handles.close(handle)
    assert count(folder, "opened") == 0 and count(folder, "closes") == 2
    assert handles.open(handle, 1000)
    handles.close(handle)
    client.free(theirs)
    client.free(others)


def test_one_that_is_refused_is_not_kept(device: Device, folder: Path, client: Exporter) -> None:
    theirs, handle = client.allocate(1000)
    handles = Handles(device)
    with pytest.raises(HandleRefused):
        handles.open(handle, 1001)
    assert handles.open(handle, 1000)
    handles.close(handle)
    assert count(folder, "opened") == 0
    client.free(theirs)


def test_a_thread_that_has_not_worked_with_the_device_may_open_what_is_open(device: Device, client: Exporter) -> None:
    theirs, handle = client.allocate(1000)
    handles = Handles(device)
    first = handles.open(handle, 1000)
    assert in_thread(lambda: handles.open(handle, 1000)) == first
    handles.close(handle)
    handles.close(handle)
    client.free(theirs)


# pools


def test_a_pool_is_one_allocation_made_at_the_first_use(device: Device, folder: Path) -> None:
    pool = DevicePool(device, 4 * MIB)
    assert count(folder, "device_bytes") == 0
    blocks = [pool.reserve(size) for size in (1, ALIGNMENT_BYTE_SIZE + 1, 3 * MIB)]
    assert count(folder, "device_bytes") == 4 * MIB
    assert not any(block % ALIGNMENT_BYTE_SIZE for block in blocks)
    ends = [block + size for block, size in zip(blocks, (1, ALIGNMENT_BYTE_SIZE + 1, 3 * MIB), strict=True)]
    assert blocks[1] >= ends[0] and blocks[2] >= ends[1]
    device.check_extent(blocks[2], 3 * MIB)
    pool.free(blocks[2])
    assert pool.reserve(3 * MIB) == blocks[2]
    with pytest.raises(KeyError):
        pool.free(blocks[2] + ALIGNMENT_BYTE_SIZE)


def test_where_a_pool_is_full_there_is_an_allocation_beside_it(device: Device, folder: Path) -> None:
    pool = DevicePool(device, MIB)
    inside = pool.reserve(MIB)
    beside = pool.reserve(2 * MIB)
    assert count(folder, "device_bytes") == 3 * MIB and not beside % ALIGNMENT_BYTE_SIZE
    device.check_extent(beside, 2 * MIB)
    pool.free(beside)
    assert count(folder, "device_bytes") == MIB
    pool.free(inside)
    assert pool.reserve(100) == inside


def test_a_pool_of_nothing(device: Device, folder: Path) -> None:
    pool = DevicePool(device, 0)
    block = pool.reserve(100)
    assert count(folder, "device_bytes") == 100
    pool.free(block)
    assert count(folder, "device_bytes") == 0


def test_a_pool_without_room_on_the_device(device: Device, folder: Path) -> None:
    other = device.allocate(ROOM - MIB)
    pool = DevicePool(device, 2 * MIB)
    for byte_size in (100, 3 * MIB):
        with pytest.raises(CudaFault, match="out of memory") as caught:
            pool.reserve(byte_size)
        assert caught.value.status == 2
    device.free(other)
    block = pool.reserve(2 * MIB)
    pool.free(block)
    assert count(folder, "device_bytes") == 2 * MIB and device.lost() == ""
