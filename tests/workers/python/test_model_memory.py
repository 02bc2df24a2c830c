"""The inputs of models: their own to write to and keep, whatever becomes of the request, its neighbours and its client."""

from __future__ import annotations

import gc
import queue
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tensorfarm.shm import copy_on_write
from tensorfarm.shm.copy_on_write import Taken
from tensorfarm.shm.placement import Lease, Span
from tensorfarm.workers.contract.messages import Tensor as WireTensor
from tensorfarm.workers.contract.status import StatusError
from tensorfarm.workers.python import memory as memory_module
from tensorfarm.workers.python.memory import LentInputs, ModelMemory, SharedInputs
from tensorfarm.workers.python.tensor import Tensor

from ..real_memory import REGION_OFFSET, Bench, bench, inline, stored

PAGE = 4096

# the process's one descriptor of it: opened before the leak check counts
copy_on_write._pagemap()


@pytest.fixture
def world() -> Iterator[Bench]:
    with bench() as made:
        yield made


@pytest.fixture
def memory(world: Bench) -> Iterator[ModelMemory]:
    made = ModelMemory(world.memory)
    world.memory.detach(5)
    world.attach(5, REGION_OFFSET, 1 << 20)
    yield made
    # pytest holds the last test's fixtures beyond the leak check
    world.memory.use_copy_on_write(lambda kind, number: None)
    world.memory.detach(5)
    made.__dict__.clear()


def mappings(world: Bench) -> int:
    """How often this process has the client's object mapped."""
    return Path("/proc/self/maps").read_text().count(str(world.client.path))


def test_what_a_model_writes_nobody_sees(world: Bench, memory: ModelMemory) -> None:
    for place in (world.leased(b"a" * 3 * PAGE), world.spanned(0, b"a" * 3 * PAGE)):
        inputs = SharedInputs(memory)
        array = inputs.bytes_of(place)
        array[:] = 7
        assert world.content(place) == b"a" * 3 * PAGE
        del array
        inputs.finish()
        again = SharedInputs(memory)
        assert (again.bytes_of(place) == ord("a")).all()
        again.finish()


def test_what_rides_in_the_message_is_copied(memory: ModelMemory) -> None:
    content = bytearray(b"abc")
    array = SharedInputs(memory).bytes_of(inline(content))
    array[0] = 0
    assert content == b"abc"


def test_nothing_at_all(memory: ModelMemory) -> None:
    array, taken = memory.take(Lease(0, 0, 0))
    assert len(array) == 0 and taken is None


def test_what_is_kept_stays(world: Bench, memory: ModelMemory) -> None:
    place = world.spanned(0, b"a" * 3 * PAGE)
    inputs = SharedInputs(memory)
    kept = inputs.bytes_of(place)
    kept[5] = 9
    inputs.finish()
    inputs.finish()
    world.client.write(REGION_OFFSET, b"b" * 3 * PAGE)
    assert kept[5] == 9 and (np.delete(kept, 5) == ord("a")).all()
    later = SharedInputs(memory)
    assert (later.bytes_of(place) == ord("b")).all()
    later.finish()


@pytest.mark.parametrize("second", [(0, 3 * PAGE), (PAGE, PAGE), (3 * PAGE - 1, PAGE)])
def test_requests_over_the_same_bytes_do_not_see_each_other(world: Bench, memory: ModelMemory, second: tuple[int, int]) -> None:
    """Two requests of a batch, or two inputs of one, that a client has put into one region."""
    world.spanned(0, b"a" * 5 * PAGE)
    one, other = SharedInputs(memory), SharedInputs(memory)
    first = one.bytes_of(Span(5, 0, 3 * PAGE))
    first[:] = 1
    array = other.bytes_of(Span(5, *second))
    assert (array == ord("a")).all()
    array[:] = 2
    assert (first == 1).all()
    del first, array
    one.finish()
    other.finish()


def test_a_stream_beside_others_does_not_keep_their_bytes(world: Bench, memory: ModelMemory) -> None:
    """It shares a page with a part that comes again and again, with other content each time."""
    half = PAGE // 2 - REGION_OFFSET
    world.spanned(0, b"a" * 2 * PAGE)
    stream = SharedInputs(memory)
    beside = stream.bytes_of(Span(5, half, PAGE))
    for letter in b"bcd":
        world.client.write(REGION_OFFSET, bytes([letter]) * half)
        inputs = SharedInputs(memory)
        array = inputs.bytes_of(Span(5, 0, half))
        assert (array == letter).all()
        array[:] = 0
        del array
        inputs.finish()
    assert (beside == ord("a")).all()
    del beside
    stream.finish()


@pytest.mark.parametrize("datatype", ["INT32", "BYTES", "BF16"])
def test_a_tensor_that_was_not_read_before_its_request_ended(world: Bench, memory: ModelMemory, datatype: str) -> None:
    """It shows what it would have shown then, not what another request has put there."""
    elements = np.array([b"some text"] * 1000, np.object_) if datatype == "BYTES" else np.arange(4000, dtype=np.int32)
    content = stored(elements)
    place = world.leased(content)
    inputs = SharedInputs(memory)
    shape = (8000,) if datatype == "BF16" else elements.shape
    kept, dropped = (Tensor.received(WireTensor("A", datatype, shape, place), inputs) for _ in range(2))
    inputs.watch([kept, dropped])
    del dropped
    inputs.finish()
    world.requests.view(place)[:] = bytes(len(content))
    shown = Tensor.from_dlpack("A", kept).content() if datatype == "BF16" else kept.content()
    assert (shown if isinstance(shown, bytes) else shown.tobytes()) == content
    assert kept.place is None, "it is not passed on by where it lay"


def test_a_tensor_whose_region_has_shrunk_when_its_request_ends(world: Bench, memory: ModelMemory) -> None:
    inputs = SharedInputs(memory)
    kept = Tensor.received(WireTensor("A", "INT8", (10,), Span(5, 0, 10)), inputs)
    inputs.watch([kept])
    world.client.truncate(1)
    inputs.finish()
    with pytest.raises(StatusError, match="ended"):
        kept.as_numpy()


def test_a_region_that_is_unregistered_is_unmapped(world: Bench, memory: ModelMemory) -> None:
    before = mappings(world)
    inputs = SharedInputs(memory)
    array = inputs.bytes_of(world.spanned(0, b"a" * PAGE))
    assert mappings(world) > before
    kept = array.copy()
    del array
    inputs.finish()
    del inputs
    world.memory.detach(5)
    gc.collect()
    assert mappings(world) < before
    assert (kept == ord("a")).all()


def test_a_model_that_keeps_all_it_gets(world: Bench, memory: ModelMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every array it keeps holds a mapping: there is an end to that."""
    monkeypatch.setattr(memory_module, "MOST_KEPT", 5)
    place = world.spanned(0, b"a" * PAGE)
    before = mappings(world)
    kept = []
    for number in range(20):
        inputs = SharedInputs(memory)
        array = inputs.bytes_of(place)
        array[:] = number
        kept.append(array)
        del array
        inputs.finish()
    assert [int(array[7]) for array in kept] == list(range(20)) and mappings(world) <= before + 6
    kept.clear()
    inputs = SharedInputs(memory)
    inputs.bytes_of(place)
    inputs.finish()
    assert len(memory._kept) == 0


def test_what_lies_oddly_is_copied(world: Bench, memory: ModelMemory) -> None:
    array, taken = memory.take(world.spanned(1, b"abcdefghi"))
    assert taken is None and array.tobytes() == b"abcdefghi" and array.ctypes.data % 8 == 0


def test_many_threads_end_one_request(world: Bench, memory: ModelMemory) -> None:
    for _ in range(30):
        inputs = SharedInputs(memory)
        for number in range(4):
            inputs.bytes_of(Span(5, number * 2 * PAGE, PAGE))
        start = threading.Barrier(4)
        threads = [threading.Thread(target=lambda: (start.wait(5), inputs.finish())) for _ in range(4)]  # noqa: B023
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert not inputs._taken
    assert not any(pages._in_use for pages in memory._mappings.values())


# outputs of calls


class Loan:
    """Outputs that were lent; ``ended`` gets what is to be given back."""

    def __init__(self, memory: ModelMemory, *places: Any) -> None:
        self.ended: queue.SimpleQueue[list[Taken]] = queue.SimpleQueue()
        lent = LentInputs(memory, self.ended.put)
        self.tensors = [Tensor.received(WireTensor(f"T{at}", "UINT8", (place.byte_size,), place), lent) for at, place in enumerate(places)]

    @property
    def over(self) -> bool:
        return not self.ended.empty()


def test_a_loan_ends_with_the_last_that_is_made_of_it(world: Bench, memory: ModelMemory) -> None:
    loan = Loan(memory, world.leased(b"a" * PAGE), world.leased(b"b" * PAGE))
    view = loan.tensors[0].as_numpy().reshape(2, -1)[1, 5:10]
    other = memoryview(loan.tensors[1].as_numpy())
    loan.tensors.clear()
    assert not loan.over
    del other
    assert not loan.over and bytes(view) == b"aaaaa"
    del view
    assert loan.over
    (taken, second) = loan.ended.get()
    for part in (taken, second):
        memory.give_back(part)
    assert loan.ended.empty(), "once"


def test_a_loan_that_nobody_reads(world: Bench, memory: ModelMemory) -> None:
    loan = Loan(memory, world.leased(b"a" * PAGE))
    assert not loan.over
    loan.tensors.clear()
    assert loan.over and loan.ended.get() == []
