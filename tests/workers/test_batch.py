"""Gather and scatter: what a backend gets of a batch, and where its outputs go."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorfarm.shm.datatypes import DATATYPES, iter_bytes, serialize_bytes
from tensorfarm.shm.placement import Inline, Lease, Placement, Span
from tensorfarm.workers.batch import Batch, InputFault
from tensorfarm.workers.contract.messages import Fault, RequestBody, Result, Tensor, WantedOutput
from tensorfarm.workers.contract.status import Code, StatusError, invalid
from tensorfarm.workers.output import INLINE_BYTE_SIZE

from .real_memory import ARENA_BYTE_SIZE, REGION, REGION_BYTE_SIZE, REGION_OFFSET, Array, Bench, bench, inline, request, sample, stored

FIXED = [name for name in DATATYPES if name != "BYTES"]
LARGE = 2 * INLINE_BYTE_SIZE


@pytest.fixture(scope="module")
def module_world() -> Iterator[Bench]:
    with bench() as made:
        yield made


@pytest.fixture
def world(module_world: Bench) -> Iterator[Bench]:
    """The same memory for every test, which must give back what it takes of the worker's arena."""
    yield module_world
    assert module_world.outputs.used_byte_size == 0


def tensor(datatype: str, array: Array, place: Placement | None = None, name: str = "IN") -> Tensor:
    return Tensor(name, datatype, array.shape, inline(stored(array)) if place is None else place)


def identity(world: Bench, requests: list[RequestBody], destination: bool = False) -> list[Result]:
    """Run a batch through a model that answers OUT with IN."""
    batch = Batch(requests, world.memory)
    datatype = requests[0].inputs[0].datatype
    array = batch.input("IN")
    batch.inputs_ready()
    made: Array | None = batch.destination("OUT", datatype, array.shape) if destination else None
    if made is None:
        made = array
    else:
        made[...] = array
    batch.computed()
    batch.set_output("OUT", datatype, made)
    return batch.finish()


def give_back(world: Bench, results: Sequence[Result]) -> None:
    """What the server does once the responses are sent."""
    for result in results:
        for output in result.outputs:
            if isinstance(output.place, Lease):
                world.memory.free(output.place)


def check_identity(world: Bench, requests: list[RequestBody], arrays: Sequence[Array], destination: bool = False) -> list[Result]:
    results = identity(world, requests, destination)
    assert len(results) == len(requests)
    for result, one, array in zip(results, requests, arrays, strict=True):
        assert result.fault is None
        (output,) = result.outputs
        assert (output.name, output.datatype, output.shape) == ("OUT", one.inputs[0].datatype, array.shape)
        assert world.content(output.place)[: len(stored(array))] == stored(array)
    give_back(world, results)
    return results


# inputs


@pytest.mark.parametrize("where", ["inline", "lease", "region"])
@pytest.mark.parametrize("datatype", list(DATATYPES))
def test_every_datatype_from_everywhere(world: Bench, datatype: str, where: str) -> None:
    arrays = [sample(datatype, (rows, 6), rows) for rows in (2, 1, 3)]
    requests = []
    offset = 3
    for array in arrays:
        content = stored(array)
        place: Placement = inline(content)
        if where == "lease":
            place = world.leased(content)
        elif where == "region":
            place = world.spanned(offset, content)
        offset += len(content) + 1
        requests.append(request([tensor(datatype, array, place)], len(array)))
    batch = Batch(requests, world.memory)
    assert batch.batch_size == 6 and batch.input_names == ("IN",)
    gathered = batch.input("IN")
    assert gathered.dtype == (np.object_ if datatype == "BYTES" else DATATYPES[datatype].dtype)
    assert gathered.shape == (6, 6)
    assert stored(gathered) == b"".join(map(stored, arrays))
    for one, array in zip(requests, arrays, strict=True):
        check_identity(world, [one], [array])
    check_identity(world, requests, arrays)


@pytest.mark.parametrize("datatype", FIXED)
def test_a_single_input_is_used_where_it_lies(world: Bench, datatype: str) -> None:
    content = stored(sample(datatype, (1, 32)))
    for place in (world.leased(content), world.spanned(0, content)):
        array = Batch([request([tensor(datatype, sample(datatype, (1, 32)), place)])], world.memory).input("IN")
        assert array.ctypes.data == world.address(place)


def test_what_a_client_writes_later_shows(world: Bench) -> None:
    place = world.spanned(64, bytes(16))
    array = Batch([request([Tensor("IN", "INT32", (1, 4), place)])], world.memory).input("IN")
    world.client.write(REGION_OFFSET + 64, b"\1\0\0\0")
    assert array.tolist() == [[1, 0, 0, 0]]


def test_parts_back_to_back_are_used_where_they_lie(world: Bench) -> None:
    contents = [stored(sample("FP32", (rows, 4), rows)) for rows in (1, 2, 3)]
    leases = world.leased_together(contents)
    spans = [Span(REGION, lease.offset - leases[0].offset, lease.byte_size) for lease in leases]
    world.spanned(0, b"".join(contents))
    for places in (leases, spans):
        requests = [
            request([Tensor("IN", "FP32", (rows, 4), place)], rows)
            for rows, place in zip((1, 2, 3), places, strict=True)
        ]  # fmt: skip
        array = Batch(requests, world.memory).input("IN")
        assert array.shape == (6, 4)
        assert array.tobytes() == b"".join(contents)
        assert array.ctypes.data == world.address(places[0])


def test_parts_of_different_memory_are_not_joined(world: Bench) -> None:
    first, second = (sample("INT16", (1, 8), seed) for seed in (1, 2))
    lease = world.leased(stored(first))
    span = Span(REGION, lease.offset + lease.byte_size, lease.byte_size)
    world.spanned(span.offset, stored(second))
    requests = [request([tensor("INT16", first, lease)]), request([tensor("INT16", second, span)])]
    assert stored(Batch(requests, world.memory).input("IN")) == stored(first) + stored(second)


@pytest.mark.parametrize("datatype", [name for name in FIXED if DATATYPES[name].byte_size > 1])
def test_misaligned_inputs_are_copied(world: Bench, datatype: str) -> None:
    array = sample(datatype, (1, 8))
    for offset in (1, 3, 5):
        place = world.spanned(offset, stored(array))
        made = Batch([request([tensor(datatype, array, place)])], world.memory).input("IN")
        assert made.flags.aligned
        assert stored(made) == stored(array)


@pytest.mark.parametrize("datatype", list(DATATYPES))
def test_nothing_is_a_tensor_too(world: Bench, datatype: str) -> None:
    empty = sample(datatype, (2, 0, 3))
    for place in (inline(b""), Span(REGION, 8, 0)):
        check_identity(world, [request([tensor(datatype, empty, place)], 2)], [empty], destination=True)
    requests = [request([tensor(datatype, empty)], 2) for _ in range(3)]
    check_identity(world, requests, [empty] * 3)
    region = request([tensor(datatype, empty)], 2, [WantedOutput("OUT", Span(REGION, 0, 16))])
    check_identity(world, [region], [empty])


@pytest.mark.parametrize("datatype", ["FP32", "BYTES"])
def test_a_model_may_take_a_scalar(world: Bench, datatype: str) -> None:
    content = stored(sample(datatype, (1,)))
    array = Batch([request([Tensor("IN", datatype, (), inline(content))])], world.memory).input("IN")
    assert array.shape == () and stored(array.reshape(1)) == content


def test_inputs_in_another_order(world: Bench) -> None:
    first, second = sample("INT8", (1, 4), 1), sample("INT8", (1, 4), 2)
    a, b = tensor("INT8", first, name="A"), tensor("INT8", second, name="B")
    batch = Batch([request([a, b]), request([b, a])], world.memory)
    assert stored(batch.input("A")) == stored(first) * 2
    assert stored(batch.input("B")) == stored(second) * 2
    with pytest.raises(KeyError):
        batch.input("C")
    with pytest.raises(KeyError):
        Batch([request([a, b]), request([b])], world.memory).input("A")


@pytest.mark.parametrize(("content", "text"), [
    (
        b"\1\0\0",
        "[request id: <id_unknown>] incomplete string length indicator for inference input 'IN' for model 'm', expecting 4 bytes but only 3 "
        "bytes available. Please make sure the string length indicator is in one buffer.",
    ),
    (b"\2\0\0\0a", "incomplete string data for inference input 'IN', expecting string of length 2 but only 1 bytes available"),
    (b"", "[request id: <id_unknown>] expected 1 string elements for inference input 'IN' for model 'm', got 0"),
    (
        b"\0\0\0\0" * 2,
        "[request id: <id_unknown>] unexpected number of string elements 2 for inference input 'IN' for model 'm', expecting 1",
    ),
])  # fmt: skip
def test_bad_strings_in_a_region_name_their_request(world: Bench, content: bytes, text: str) -> None:
    good = Tensor("IN", "BYTES", (1, 1), inline(serialize_bytes([b"x"])))
    bad = Tensor("IN", "BYTES", (1, 1), world.spanned(16, content))
    with pytest.raises(InputFault) as raised:
        Batch([request([good]), request([bad]), request([good])], world.memory, "m").input("IN")
    assert (raised.value.code, raised.value.message, raised.value.index) == (Code.INVALID_ARG, text, 1)


def test_an_input_that_is_gone_names_its_request(world: Bench) -> None:
    world.attach(6, 0, 4096)
    good = tensor("INT8", sample("INT8", (1, 8)))
    bad = Tensor("IN", "INT8", (1, 8), Span(6, 4095, 8))
    with pytest.raises(InputFault, match="^a span reaches beyond its region$") as raised:
        Batch([request([good]), request([good]), request([bad])], world.memory).input("IN")
    assert raised.value.index == 2
    world.memory.detach(6)


# outputs


@pytest.mark.parametrize("datatype", list(DATATYPES))
def test_outputs_lie_inline_up_to_the_limit(world: Bench, datatype: str) -> None:
    if datatype == "BYTES":
        small, large = (np.array([[b"x" * size]], np.object_) for size in (INLINE_BYTE_SIZE - 4, INLINE_BYTE_SIZE - 3))
    else:
        count = INLINE_BYTE_SIZE // DATATYPES[datatype].byte_size
        small, large = sample(datatype, (1, count)), sample(datatype, (1, count + 1))
    for array, kind in ((small, Inline), (large, Lease)):
        (result,) = check_identity(world, [request([tensor(datatype, array)])], [array])
        assert type(result.outputs[0].place) is kind


@pytest.mark.parametrize("datatype", list(DATATYPES))
def test_outputs_in_a_region_leave_the_rest_of_it_alone(world: Bench, datatype: str) -> None:
    array = sample(datatype, (1, 40))
    content = stored(array)
    world.client.write(REGION_OFFSET, b"\xaa" * 4096)
    for offset in (0, 1, 512):
        wanted = WantedOutput("OUT", Span(REGION, offset, len(content) + 7))
        (result,) = identity(world, [request([tensor(datatype, array)], 1, [wanted])], destination=True)
        assert result.outputs == [Tensor("OUT", datatype, (1, 40), wanted.span or Span(0, 0, 0))]
        assert world.client.read(REGION_OFFSET + offset, len(content) + 7) == content + b"\xaa" * 7
        world.client.write(REGION_OFFSET, b"\xaa" * 4096)


def test_long_strings_in_a_region(world: Bench) -> None:
    array = np.array([[b"x" * LARGE, b""]], np.object_)
    wanted = WantedOutput("OUT", Span(REGION, 0, LARGE + 8))
    (result,) = identity(world, [request([tensor("BYTES", array)], 1, [wanted])])
    assert result.fault is None
    assert list(iter_bytes(world.client.read(REGION_OFFSET, LARGE + 8))) == [b"x" * LARGE, b""]


@pytest.mark.parametrize("datatype", ["INT32", "BYTES"])
def test_a_region_too_small_for_its_output(world: Bench, datatype: str) -> None:
    array = sample(datatype, (1, 40))
    size = len(stored(array))
    wanted = WantedOutput("OUT", Span(REGION, 0, size - 1))
    (result,) = identity(world, [request([tensor(datatype, array)], 1, [wanted])], destination=True)
    assert result.outputs == []
    assert result.fault == Fault(
        Code.INTERNAL,
        f"shared memory size specified with the request for output 'OUT' ({size - 1} bytes) should be at least {size} bytes to hold the results",
    )


def test_each_request_of_a_batch_gets_its_output_where_it_wants_it(world: Bench) -> None:
    arrays = [sample("FP32", (1, LARGE // 4), seed) for seed in range(3)]
    wishes: list[list[WantedOutput]] = [[], [WantedOutput("OUT", Span(REGION, 4, LARGE))], [WantedOutput("OUT", Span(REGION, 0, 3))]]
    requests = [request([tensor("FP32", array)], 1, wanted) for array, wanted in zip(arrays, wishes, strict=True)]
    first, second, third = results = identity(world, requests, destination=True)
    assert isinstance(first.outputs[0].place, Lease) and world.content(first.outputs[0].place) == stored(arrays[0])
    assert second.fault is None and world.client.read(REGION_OFFSET + 4, LARGE) == stored(arrays[1])
    assert third.fault is not None and third.outputs == []
    give_back(world, results)


def test_an_output_over_its_own_input(world: Bench) -> None:
    array = sample("INT32", (1, 1000))
    span = world.spanned(0, stored(array))
    one = request([tensor("INT32", array, span)], 1, [WantedOutput("OUT", Span(REGION, 4, span.byte_size))])
    (result,) = identity(world, [one])
    assert result.fault is None
    assert world.client.read(REGION_OFFSET + 4, span.byte_size) == stored(array)


def test_only_wanted_outputs_are_kept(world: Bench) -> None:
    array = sample("INT8", (1, LARGE))
    requests = [request([tensor("INT8", array)], 1, names) for names in ([], ["A"], ["B"])]
    batch = Batch(requests, world.memory)
    assert batch.wants("A") and batch.wants("B")
    assert not Batch(requests[1:2], world.memory).wants("B")
    whole = batch.input("IN")
    for name in ("A", "B"):
        made = batch.destination(name, "INT8", whole.shape)
        assert made is not None
        made[...] = whole
        batch.set_output(name, "INT8", made)
    results = batch.finish()
    assert [[output.name for output in result.outputs] for result in results] == [["A", "B"], ["A"], ["B"]]
    give_back(world, results)


# destinations


def test_an_output_is_produced_in_the_region_it_belongs_to(world: Bench) -> None:
    array = sample("FP32", (1, 4))
    wanted = WantedOutput("OUT", Span(REGION, 8, 16))
    batch = Batch([request([tensor("FP32", array)], 1, [wanted])], world.memory)
    made = batch.destination("OUT", "FP32", (1, 4))
    assert made is not None and made.shape == (1, 4) and made.flags.writeable
    assert made.ctypes.data == world.address(Span(REGION, 8, 16))
    assert batch.destination("OUT", "FP32", (1, 4)) is None
    made[...] = array
    assert world.client.read(REGION_OFFSET + 8, 16) == stored(array)
    batch.set_output("OUT", "FP32", made)
    assert batch.finish()[0].outputs[0].place == wanted.span


def test_an_output_is_produced_in_the_arena_and_cut_without_a_copy(world: Bench) -> None:
    arrays = [sample("FP64", (rows, 5000), rows) for rows in (1, 3, 2)]
    requests = [request([tensor("FP64", array)], len(array)) for array in arrays]
    batch = Batch(requests, world.memory)
    made = batch.destination("OUT", "FP64", (6, 5000))
    assert made is not None
    made[...] = batch.input("IN")
    batch.set_output("OUT", "FP64", made)
    results = batch.finish()
    at = made.ctypes.data
    for result, array in zip(results, arrays, strict=True):
        place = result.outputs[0].place
        assert isinstance(place, Lease) and world.address(place) == at
        assert world.content(place) == stored(array)
        at += array.nbytes
    # the block goes with the last of its parts, whatever their order
    used = world.outputs.used_byte_size
    for index in (1, 0, 2):
        assert world.outputs.used_byte_size == used
        give_back(world, results[index : index + 1])
    assert world.outputs.used_byte_size == 0


def test_there_is_no_destination_for_what_is_small_or_scattered(world: Bench) -> None:
    one = request([tensor("INT8", sample("INT8", (1, 4)))])
    in_region = request([tensor("INT8", sample("INT8", (1, 4)))], 1, [WantedOutput("OUT", Span(REGION, 1, 1 << 19))])
    assert Batch([one], world.memory).destination("OUT", "INT8", (1, INLINE_BYTE_SIZE)) is None
    assert Batch([one], world.memory).destination("OUT", "BYTES", (1, LARGE)) is None
    assert Batch([one], world.memory).destination("OUT", "FP32", (1, 0)) is None
    assert Batch([one, in_region], world.memory).destination("OUT", "INT8", (2, LARGE)) is None
    assert Batch([in_region], world.memory).destination("OUT", "INT32", (1, LARGE)) is None  # misaligned
    assert Batch([in_region], world.memory).destination("OUT", "INT8", (1, 1 << 20)) is None  # too small


def test_unused_destinations_are_given_back(world: Bench) -> None:
    requests = [request([tensor("INT8", sample("INT8", (1, 4)))]) for _ in range(2)]
    batch = Batch(requests, world.memory)
    assert batch.destination("OUT", "INT8", (2, LARGE)) is not None
    assert batch.destination("OTHER", "INT8", (2, LARGE)) is not None
    # the backend made an array of its own after all
    other = sample("INT8", (2, LARGE))
    batch.set_output("OUT", "INT8", other)
    results = batch.finish()
    assert [world.content(result.outputs[0].place) for result in results] == [stored(other[:1]), stored(other[1:])]
    give_back(world, results)
    assert world.outputs.used_byte_size == 0


def test_a_full_arena_fails_the_requests_it_has_no_room_for(world: Bench) -> None:
    too_large = ARENA_BYTE_SIZE // 2
    array = np.zeros((3, too_large), np.uint8)
    requests = [request([tensor("UINT8", array[:1, :1])]) for _ in range(3)]
    batch = Batch(requests, world.memory)
    with pytest.raises(StatusError, match=r"no room for an output .* Use --pinned-memory-pool-byte-size to give it more\.") as raised:
        batch.destination("OUT", "UINT8", array.shape)
    assert raised.value.code is Code.UNAVAILABLE
    batch.set_output("OUT", "UINT8", array)
    results = batch.finish()
    assert [result.fault is None for result in results] == [True, True, False]
    give_back(world, results)


# faults


def test_a_failed_request_gives_back_what_it_has_got(world: Bench) -> None:
    requests = [request([tensor("INT8", sample("INT8", (1, 4)))]) for _ in range(3)]
    batch = Batch(requests, world.memory)
    first, second = (batch.destination(name, "INT8", (3, LARGE)) for name in ("A", "B"))
    assert first is not None and second is not None
    batch.set_output("A", "INT8", first)
    batch.fail(1, invalid("no"))
    batch.set_output("B", "INT8", second)
    results = batch.finish()
    assert [len(result.outputs) for result in results] == [2, 0, 2]
    assert [result.fault for result in results] == [None, Fault(Code.INVALID_ARG, "no"), None]
    give_back(world, results)


def test_a_batch_that_fails_keeps_nothing(world: Bench) -> None:
    requests = [request([tensor("INT8", sample("INT8", (1, 4)))]) for _ in range(2)]
    batch = Batch(requests, world.memory)
    batch.set_output("A", "INT8", sample("INT8", (2, LARGE)))
    assert batch.destination("B", "INT8", (2, LARGE)) is not None
    batch.fail_all(invalid("no"))
    assert [(result.outputs, result.fault) for result in batch.finish()] == [([], Fault(Code.INVALID_ARG, "no"))] * 2


@pytest.mark.parametrize("shape", [(), (2, 4), (4, 4)])
def test_an_output_that_cannot_be_cut_is_nobodys(world: Bench, shape: tuple[int, ...]) -> None:
    requests = [request([tensor("INT8", sample("INT8", (1, 4)))], 1) for _ in range(3)]
    with pytest.raises(StatusError, match="^output 'OUT' was made with shape .* for a batch of 3$"):
        Batch(requests, world.memory).set_output("OUT", "INT8", sample("INT8", shape))


def test_times_are_in_order_whatever_a_backend_marks(world: Bench) -> None:
    def clock() -> Iterator[int]:
        yield from range(100, 1000, 100)

    one = [request([tensor("INT8", sample("INT8", (1, 4)))])]
    batch = Batch(one, world.memory, clock_ns=clock().__next__)
    batch.inputs_ready()
    batch.computed()
    batch.finish()
    assert (batch.compute_start_ns, batch.input_end_ns, batch.output_start_ns, batch.compute_end_ns) == (100, 200, 300, 400)
    batch = Batch(one, world.memory, clock_ns=clock().__next__)
    batch.finish()
    assert (batch.compute_start_ns, batch.input_end_ns, batch.output_start_ns, batch.compute_end_ns) == (100, 200, 200, 200)


# everything at once


@settings(max_examples=60, deadline=None)
@given(
    datatype=st.sampled_from([*DATATYPES, "BYTES"]),
    rows=st.lists(st.integers(1, 3), min_size=1, max_size=5),
    columns=st.sampled_from([0, 1, 7, 5000]),
    sources=st.lists(st.sampled_from(["inline", "lease", "together", "region"]), min_size=5, max_size=5),
    targets=st.lists(st.sampled_from(["default", "region", "unwanted"]), min_size=5, max_size=5),
    gap=st.integers(0, 3),
    destination=st.booleans(),
)
def test_a_batch_answers_as_its_requests_would_alone(
    datatype: str,
    rows: list[int],
    columns: int,
    sources: list[str],
    targets: list[str],
    gap: int,
    destination: bool,
) -> None:
    with bench() as world:
        check_against_single_requests(world, datatype, rows, columns, sources, targets, gap, destination)


def check_against_single_requests(
    world: Bench,
    datatype: str,
    rows: list[int],
    columns: int,
    sources: list[str],
    targets: list[str],
    gap: int,
    destination: bool,
) -> None:
    arrays = [sample(datatype, (count, columns), seed) for seed, count in enumerate(rows)]
    contents = [stored(array) for array in arrays]
    together = world.leased_together(contents) if any(contents) else [inline(content) for content in contents]
    half = REGION_BYTE_SIZE // 2
    requests = []
    read = write = gap
    for index, (array, content) in enumerate(zip(arrays, contents, strict=True)):
        place: Placement = together[index] if content else inline(b"")
        if content and sources[index] == "inline":
            place = inline(content)
        elif content and sources[index] == "lease":
            place = world.leased(content)
        elif content and sources[index] == "region":
            place = world.spanned(read, content)
            read += len(content) + gap
        wanted = {
            "default": [],
            "unwanted": [WantedOutput("ELSE")],
            "region": [WantedOutput("OUT", Span(REGION, half + write, len(content)))],
        }[targets[index]]
        write += len(content) + gap
        requests.append(request([tensor(datatype, array, place)], len(array), wanted))
    results = identity(world, requests, destination)
    for result, target, array, content in zip(results, targets, arrays, contents, strict=False):
        assert result.fault is None
        if target == "unwanted":
            assert result.outputs == []
            continue
        (output,) = result.outputs
        assert output.shape == array.shape
        assert (type(output.place) is Span) == (target == "region")
        assert world.content(output.place) == content
    give_back(world, results)
    assert world.outputs.used_byte_size == 0
