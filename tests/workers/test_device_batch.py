"""Batches with tensors in a GPU's memory: in place where that is possible, gathered and scattered on the device elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorfarm.shm.cuda import CudaFault
from tensorfarm.shm.placement import DEVICE_START, Inline, Lease, Placement, Span
from tensorfarm.workers.batch import InputFault
from tensorfarm.workers.contract.messages import Execute, RequestBody, Result, Tensor, WantedOutput
from tensorfarm.workers.contract.status import StatusError
from tensorfarm.workers.device_batch import DeviceBatch, DeviceRunner
from tensorfarm.workers.output import INLINE_BYTE_SIZE

from .fake_device import GpuMemory
from .onnx_source import array_of

Array = np.ndarray[Any, np.dtype[Any]]
WIDTH = 64
ROW_BYTE_SIZE = WIDTH * 4
STREAM = 99


def rows(count: int, seed: int = 1) -> Array:
    return np.random.default_rng(seed).standard_normal((count, WIDTH), np.float32)


def put(memory: GpuMemory, region: int, offset: int, array: Array) -> Span:
    """Place an array in a CUDA region that is large enough for it."""
    if region not in memory.cuda:
        memory.add_region(region, 1 << 18)
    memory.device.fake.put(memory.cuda[region].address + offset, array.tobytes())
    return Span(region, offset, array.nbytes)


def one(place: Placement, count: int, *outputs: WantedOutput) -> RequestBody:
    return RequestBody("", count, [Tensor("IN", "FP32", (count, WIDTH), place)], list(outputs), {})


def batch_of(memory: GpuMemory, *requests: RequestBody) -> DeviceBatch:
    return DeviceBatch(memory.device, STREAM, list(requests), memory, "m")


def content(memory: GpuMemory, address: int, count: int) -> Array:
    return np.frombuffer(memory.device.fake.bytes_at(address, count * ROW_BYTE_SIZE), np.float32).reshape(count, WIDTH)


def test_a_lone_request_is_computed_where_it_lies() -> None:
    memory, given_rows = GpuMemory(), rows(2)
    memory.add_region(9, 1 << 12)
    request = one(put(memory, 5, 512, given_rows), 2, WantedOutput("OUT", Span(9, 256, 2 * ROW_BYTE_SIZE)))
    batch = batch_of(memory, request)
    assert batch.on_device
    placed = batch.device_input("IN")
    assert placed is not None and (placed.address, placed.shape) == (memory.cuda[5].address + 512, (2, WIDTH))
    batch.arrived()
    target = batch.device_destination("OUT", "FP32", (2, WIDTH))
    assert target == memory.cuda[9].address + 256
    memory.device.fake.put(target, given_rows.tobytes())
    batch.set_device_output("OUT", "FP32", (2, WIDTH), target)
    assert batch.finish() == [Result([Tensor("OUT", "FP32", (2, WIDTH), Span(9, 256, 2 * ROW_BYTE_SIZE))])]
    assert memory.device.fake.copies == [] and memory.device.fake.waits == 0 and memory.device.taken_byte_size == 0


def test_what_lies_oddly_is_copied_on_the_device() -> None:
    memory, given_rows = GpuMemory(), rows(1)
    memory.add_region(9, 1 << 12)
    wanted = Span(9, 4, ROW_BYTE_SIZE)
    batch = batch_of(memory, one(put(memory, 5, 4, given_rows), 1, WantedOutput("OUT", wanted)))
    placed = batch.device_input("IN")
    assert placed is not None and placed.address != memory.cuda[5].address + 4 and not placed.address % 256
    batch.arrived()
    assert (content(memory, placed.address, 1) == given_rows).all()
    target = batch.device_destination("OUT", "FP32", (1, WIDTH))
    assert target is not None and not target % 256
    memory.device.fake.put(target, given_rows.tobytes())
    batch.set_device_output("OUT", "FP32", (1, WIDTH), target)
    assert batch.finish()[0].outputs[0].place == wanted
    assert memory.region_bytes(9, 4, ROW_BYTE_SIZE) == given_rows.tobytes()
    assert memory.device.fake.copies == [("dd", ROW_BYTE_SIZE)] * 2 and memory.device.taken_byte_size == 0


@pytest.mark.parametrize(("offset", "in_place"), [(0, False), (256, False), (512, True), (768, True)])
def test_an_output_over_an_input_is_made_elsewhere_and_copied(offset: int, in_place: bool) -> None:
    memory, given_rows = GpuMemory(), rows(2)
    batch = batch_of(memory, one(put(memory, 5, 0, given_rows), 2, WantedOutput("OUT", Span(5, offset, 2 * ROW_BYTE_SIZE))))
    assert batch.device_input("IN") is not None
    target = batch.device_destination("OUT", "FP32", (2, WIDTH))
    assert target is not None and (target == memory.cuda[5].address + offset) is in_place
    memory.device.fake.put(target, (given_rows * 3).tobytes())
    batch.set_device_output("OUT", "FP32", (2, WIDTH), target)
    batch.finish()
    assert memory.region_bytes(5, offset, 2 * ROW_BYTE_SIZE) == (given_rows * 3).tobytes()


def test_parts_that_lie_back_to_back_are_one() -> None:
    memory, given_rows = GpuMemory(), rows(4)
    whole = put(memory, 5, 0, given_rows)
    parts = [Span(5, at * ROW_BYTE_SIZE, count * ROW_BYTE_SIZE) for at, count in ((0, 1), (1, 3))]
    batch = batch_of(memory, one(parts[0], 1), one(parts[1], 3))
    placed = batch.device_input("IN")
    assert placed is not None and (placed.address, placed.shape) == (memory.device_address(whole), (4, WIDTH))
    batch.finish()
    assert memory.device.fake.copies == []


def test_a_batch_in_ordinary_memory_knows_no_device() -> None:
    memory, given_rows = GpuMemory(bytearray(1 << 12)), rows(1)
    memory.region[:ROW_BYTE_SIZE] = given_rows.tobytes()
    wanted = WantedOutput("OUT", Span(3, 1024, ROW_BYTE_SIZE))
    batch = batch_of(memory, one(Span(3, 0, ROW_BYTE_SIZE), 1, wanted), one(Inline(memoryview(given_rows.tobytes())), 1, wanted))
    assert not batch.on_device
    assert batch.device_input("IN") is None and batch.device_destination("OUT", "FP32", (2, WIDTH)) is None
    assert (batch.input("IN") == np.concatenate([given_rows, given_rows])).all()
    batch.finish()
    assert memory.device.fake.copies == []


PLACES: dict[str, Callable[[GpuMemory, int, Array], Placement]] = {
    "cuda": lambda memory, index, array: put(memory, 20 + index, 0, array),
    "odd": lambda memory, index, array: put(memory, 20 + index, 12, array),
    "message": lambda memory, index, array: Inline(memoryview(array.tobytes())),
    "arena": lambda memory, index, array: _leased(memory, array),
    "left": lambda memory, index, array: _left(memory, array),
}


def _leased(memory: GpuMemory, array: Array) -> Lease:
    lease = memory.reserve(array.nbytes)
    memory.view(lease)[:] = array.tobytes()
    return lease


def _left(memory: GpuMemory, array: Array) -> Lease:
    lease = memory.device.reserve(array.nbytes)
    memory.device.fake.put(lease.offset - DEVICE_START, array.tobytes())
    return lease


TARGETS = ["cuda", "odd", "system", "message", "large", "left", "none", "small", "broken"]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(sorted(PLACES)), st.sampled_from(TARGETS), st.integers(1, 3)), min_size=1, max_size=5))
def test_every_request_gets_its_own_wherever_it_lies(made: list[tuple[str, str, int]]) -> None:
    """Inputs come together in order, outputs reach their places, and nothing is kept."""
    memory = GpuMemory(bytearray(1 << 16), pool_byte_size=1 << 14)
    requests, arrays, left = [], [], []
    for index, (source, target, count) in enumerate(made):
        array = rows(count, index)
        arrays.append(array)
        place = PLACES[source](memory, index, array)
        left += [place] if source == "left" and isinstance(place, Lease) else []
        requests.append(one(place, count, *_wanted(memory, index, target, array.nbytes)))
    batch = batch_of(memory, *requests)
    whole = np.concatenate(arrays)
    placed = batch.device_input("IN")
    if placed is None:
        assert (batch.input("IN") == whole).all() and not {source for source, _, _ in made} & {"cuda", "odd", "left"}
    else:
        batch.arrived()
        assert placed.shape == whole.shape and (content(memory, placed.address, len(whole)) == whole).all()
    address = batch.device_destination("OUT", "FP32", whole.shape)
    if address is None:
        batch.set_output("OUT", "FP32", whole * 2)
    else:
        memory.device.fake.put(address, (whole * 2).tobytes())
        batch.set_device_output("OUT", "FP32", whole.shape, address)
    results = batch.finish()
    for index, ((_, target, count), array, result) in enumerate(zip(made, arrays, results, strict=True)):
        if target in ("small", "broken"):
            assert result.fault is not None and result.outputs == []
            continue
        assert result.fault is None
        if target == "none":
            assert result.outputs == []
            continue
        output = result.outputs[0]
        assert output.shape == (count, WIDTH) and (array_of(output, memory) == array * 2).all(), index
        if target == "left" and address is not None:
            assert isinstance(output.place, Lease) and output.place.offset >= DEVICE_START
            memory.free(output.place)
        elif target == "message":
            assert isinstance(output.place, Inline)
    for lease in left:
        memory.free(lease)
    assert memory.device.taken_byte_size == 0
    assert not any(memory.device.fake._queues.values())


def _wanted(memory: GpuMemory, index: int, target: str, byte_size: int) -> list[WantedOutput]:
    if target in ("message", "large"):
        return []
    if target == "left":
        return [WantedOutput("OUT", None, True)]
    if target == "none":
        return [WantedOutput("OTHER")]
    if target == "system":
        return [WantedOutput("OUT", Span(3, index * 4096, byte_size))]
    if target == "broken":
        return [WantedOutput("OUT", Span(404, 0, byte_size))]
    memory.add_region(40 + index, 1 << 12)
    offset = 20 if target == "odd" else 256
    return [WantedOutput("OUT", Span(40 + index, offset, byte_size - 4 if target == "small" else byte_size))]


def test_large_outputs_come_to_lie_in_the_arena() -> None:
    memory = GpuMemory()
    count = INLINE_BYTE_SIZE // ROW_BYTE_SIZE + 1
    array = rows(count)
    batch = batch_of(memory, one(put(memory, 5, 0, array), count), one(put(memory, 6, 0, rows(1)), 1, WantedOutput("OUT", None, True)))
    whole = (count + 1, WIDTH)
    address = batch.device_destination("OUT", "FP32", whole)
    assert address is not None
    memory.device.fake.put(address, array.tobytes())
    batch.set_device_output("OUT", "FP32", whole, address)
    first, second = [result.outputs[0] for result in batch.finish()]
    assert isinstance(first.place, Lease) and first.place.offset < DEVICE_START and (array_of(first, memory) == array).all()
    assert isinstance(second.place, Lease) and second.place.offset >= DEVICE_START


def test_a_broken_region_costs_its_own_request_alone() -> None:
    memory = GpuMemory()
    good = put(memory, 5, 0, rows(1))
    batch = batch_of(memory, one(good, 1), one(Span(404, 0, ROW_BYTE_SIZE), 1))
    assert batch.on_device
    with pytest.raises(InputFault) as raised:
        batch.device_input("IN")
    assert (raised.value.index, raised.value.message) == (1, "the region is broken")


def test_a_failed_request_gives_back_what_is_still_on_its_way() -> None:
    """Its place may be somebody else's at once: nothing is written there any more."""
    memory = GpuMemory()
    count = INLINE_BYTE_SIZE // ROW_BYTE_SIZE + 1
    batch = batch_of(
        memory, one(put(memory, 5, 0, rows(count)), count), one(put(memory, 6, 0, rows(1)), 1, WantedOutput("OUT", None, True))
    )
    address = batch.device_destination("OUT", "FP32", (count + 1, WIDTH))
    assert address is not None
    batch.set_device_output("OUT", "FP32", (count + 1, WIDTH), address)
    assert memory.blocks and any(memory.device.fake._queues.values())
    batch.fail_all(StatusError(1, "no"))  # type: ignore[arg-type]
    assert not memory.blocks and not any(memory.device.fake._queues.values())
    assert [result.fault is not None for result in batch.finish()] == [True, True]
    assert memory.device.taken_byte_size == 0


def test_a_device_without_room() -> None:
    memory = GpuMemory(pool_byte_size=4096)

    def full(byte_size: int) -> int:
        raise CudaFault(2, "out of memory")

    batch = batch_of(memory, one(put(memory, 5, 4, rows(1)), 1))
    memory.device.fake.allocate = full  # type: ignore[method-assign]
    with pytest.raises(StatusError) as raised:
        batch.device_input("IN")
    assert "no room for 256 bytes of tensors in the GPU's memory" in raised.value.message
    batch.finish()


class Doubler:
    """An executor that computes on the device, or refuses to."""

    def __init__(self, memory: GpuMemory) -> None:
        self.memory = memory
        self.closed = False

    def execute(self, batch: Any) -> None:
        placed = batch.device_input("IN")
        batch.arrived()
        batch.inputs_ready()
        target = batch.device_destination("OUT", "FP32", placed.shape)
        made = content(self.memory, placed.address, placed.shape[0]) * 2
        self.memory.device.fake.put(target, made.tobytes())
        batch.computed()
        batch.set_device_output("OUT", "FP32", placed.shape, target)

    def close(self) -> None:
        self.closed = True


def test_a_runner_leaves_out_what_is_broken_and_gives_its_stream_back() -> None:
    memory, array = GpuMemory(), rows(1)
    memory.add_region(9, 1 << 12)
    executor = Doubler(memory)
    runner = DeviceRunner(executor, memory, "m", memory.device)
    wanted = WantedOutput("OUT", Span(9, 0, ROW_BYTE_SIZE))
    done = runner.run(Execute(1, [one(Span(404, 0, ROW_BYTE_SIZE), 1), one(put(memory, 5, 0, array), 1, wanted)]))
    first, second = done.results
    assert first is not None and first.fault is not None and first.fault.message == "the region is broken"
    assert second is not None and second.fault is None
    assert memory.region_bytes(9, 0, ROW_BYTE_SIZE) == (array * 2).tobytes()
    runner.close()
    assert executor.closed and memory.device.taken_byte_size == 0
