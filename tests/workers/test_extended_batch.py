"""Ragged batches and implicit state on real ONNX models: what each request of a batch gets, and what stays for the next."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tensorfarm.shm.datatypes import DATATYPES, iter_bytes
from tensorfarm.shm.placement import Inline, Lease, Span
from tensorfarm.workers.backends.backend import Runner
from tensorfarm.workers.backends.onnxruntime import backend
from tensorfarm.workers.batch import Batch
from tensorfarm.workers.batch_runner import BatchRunner
from tensorfarm.workers.contract.messages import Done, Execute, RequestBody, RequestContext, Tensor, WantedOutput
from tensorfarm.workers.contract.signature import Signature, TensorSpec
from tensorfarm.workers.contract.status import internal
from tensorfarm.workers.extended_batch import ExtendedRunner, runner_of
from tensorfarm.workers.ragged import Ragged
from tensorfarm.workers.states import END, START, StateSpec
from tensorfarm.workers.warmup import samples_of, warm_up

from .fakes import FakeExecutor
from .onnx_source import INSTANCE, FakeMemory, add_sub, array_of, model, request, source, tensor, value

Array = np.ndarray[Any, np.dtype[Any]]


def runner(folder: Path, made: onnx.ModelProto, config: str, memory: FakeMemory | None = None) -> Runner:
    return backend().load(source(folder, made, config)).runner(INSTANCE, memory or FakeMemory())


def outputs(done: Done, memory: FakeMemory | None = None) -> list[dict[str, Any]]:
    """The arrays of each request, or its error."""
    assert done.compute_start_ns <= done.input_end_ns <= done.output_start_ns <= done.compute_end_ns
    made: list[dict[str, Any]] = []
    for result in done.results:
        assert result is not None
        if result.fault is not None:
            made.append({"error": result.fault.message})
        else:
            made.append({output.name: _plain(output, memory) for output in result.outputs})
    return made


def _plain(output: Tensor, memory: FakeMemory | None) -> Any:
    array = array_of(output, memory)
    return list(iter_bytes(array.tobytes())) if output.datatype == "BYTES" else array.tolist()


def test_a_model_without_extras_has_a_plain_runner(tmp_path: Path) -> None:
    tensors = "input { name: 'IN0' data_type: TYPE_INT32 dims: 16 } input { name: 'IN1' data_type: TYPE_INT32 dims: 16 }"
    plain = runner(tmp_path, add_sub(), f"max_batch_size: 4 {tensors} output {{ name: 'SUM' data_type: TYPE_INT32 dims: 16 }}")
    assert type(plain) is BatchRunner


# ragged


def told(datatype: str, rank: int = 1) -> onnx.ModelProto:
    """Each row of SEEN is all that B holds, each row of SIZE its shape; Y is X doubled."""
    shape = ["k"] if rank == 1 else ["n", "k"]
    nodes = [
        helper.make_node("Cast", ["B"], ["BF"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["BF", "ROW"], ["FLAT"]),
        helper.make_node("Mul", ["N", "ZERO"], ["ZEROS"]),
        helper.make_node("Add", ["ZEROS", "FLAT"], ["SEEN"]),
        helper.make_node("Shape", ["B"], ["DIMS"]),
        helper.make_node("Cast", ["DIMS"], ["DIMSF"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["ZEROS", "DIMSF"], ["SIZE"]),
        helper.make_node("Add", ["X", "X"], ["Y"]),
    ]
    constants = [helper.make_tensor("ROW", TensorProto.INT64, [2], [1, -1]), helper.make_tensor("ZERO", TensorProto.FLOAT, [1], [0.0])]
    inputs = [value("X", "FP32", ["e"]), value("N", "FP32", ["b", 1]), value("B", datatype, shape)]
    return model(
        nodes, inputs, [value("SEEN", "FP32", ["b", "s"]), value("SIZE", "FP32", ["b", "r"]), value("Y", "FP32", ["f"])], constants
    )


def told_config(kind: str, datatype: str, dims: str = "-1", out_dims: str = "-1") -> str:
    rank = 2 if kind == "BATCH_ITEM_SHAPE" else 1
    return f"""max_batch_size: 8
        input {{ name: 'X' data_type: TYPE_FP32 dims: [ {dims} ] allow_ragged_batch: true }}
        input {{ name: 'N' data_type: TYPE_FP32 dims: 1 }}
        batch_input {{ kind: {kind} target_name: 'B' data_type: TYPE_{datatype} source_input: 'X' }}
        output [ {{ name: 'SEEN' data_type: TYPE_FP32 dims: -1 }}, {{ name: 'SIZE' data_type: TYPE_FP32 dims: {rank} }} ]
        output {{ name: 'Y' data_type: TYPE_FP32 dims: [ {out_dims} ] }}
        batch_output {{ target_name: 'Y' source_input: 'X' }}"""


def ragged_request(array: Array, wanted: Sequence[str | WantedOutput] = ()) -> RequestBody:
    rows = len(array)
    return request([tensor("X", "FP32", array), tensor("N", "FP32", np.ones((rows, 1), np.float32))], wanted, batch_size=rows)


X1 = np.arange(3, dtype=np.float32).reshape(1, 3)
X2 = np.arange(10, dtype=np.float32).reshape(2, 5)

KINDS: dict[str, tuple[list[float], list[float], list[float], list[float]]] = {
    # what one request sees and its shape, what two see and its shape
    "BATCH_ELEMENT_COUNT": ([3], [1], [3, 10], [2]),
    "BATCH_ACCUMULATED_ELEMENT_COUNT": ([3], [1], [3, 13], [2]),
    "BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO": ([0, 3], [2], [0, 3, 13], [3]),
    "BATCH_MAX_ELEMENT_COUNT_AS_SHAPE": ([0] * 3, [3], [0] * 10, [10]),
    "BATCH_ITEM_SHAPE": ([3], [1, 1], [3, 5, 5], [3, 1]),
    "BATCH_ITEM_SHAPE_FLATTEN": ([3], [1], [3, 5, 5], [3]),
}


@pytest.mark.parametrize("datatype", ["INT32", "FP32"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_batch_input(tmp_path: Path, kind: str, datatype: str) -> None:
    seen, size, both_seen, both_size = KINDS[kind]
    made = runner(tmp_path, told(datatype, 2 if kind == "BATCH_ITEM_SHAPE" else 1), told_config(kind, datatype))
    assert outputs(made.run(Execute(1, [ragged_request(X1)]))) == [{"SEEN": [seen], "SIZE": [size], "Y": (2 * X1).tolist()}]
    assert outputs(made.run(Execute(2, [ragged_request(X1), ragged_request(X2)]))) == [
        {"SEEN": [both_seen], "SIZE": [both_size], "Y": (2 * X1).tolist()},
        {"SEEN": [both_seen] * 2, "SIZE": [both_size] * 2, "Y": (2 * X2).tolist()},
    ]


def test_items_of_two_dims(tmp_path: Path) -> None:
    made = runner(tmp_path, told("INT32", 2), told_config("BATCH_ITEM_SHAPE", "INT32", "-1, 2", "-1, 2"))
    arrays = [np.arange(4, dtype=np.float32).reshape(1, 2, 2), np.arange(12, dtype=np.float32).reshape(2, 3, 2)]
    first, second = outputs(made.run(Execute(1, [ragged_request(array) for array in arrays])))
    assert first == {"SEEN": [[2, 2, 3, 2, 3, 2]], "SIZE": [[3, 2]], "Y": (2 * arrays[0]).tolist()}
    assert second["Y"] == (2 * arrays[1]).tolist()


def test_scattered_outputs_go_to_those_who_want_them(tmp_path: Path) -> None:
    memory = FakeMemory(bytes(64))
    made = runner(tmp_path, told("INT32"), told_config("BATCH_ELEMENT_COUNT", "INT32"), memory)
    requests = [
        ragged_request(X1, ["SEEN"]),
        ragged_request(X2, [WantedOutput("Y", Span(3, 8, 40))]),
        ragged_request(X1, [WantedOutput("Y", Span(3, 0, 8))]),
        ragged_request(X1, ["Y"]),
    ]
    first, second, third, fourth = outputs(made.run(Execute(1, requests)), memory)
    assert list(first) == ["SEEN"] and second == {"Y": (2 * X2).tolist()} and fourth == {"Y": (2 * X1).tolist()}
    assert "shared memory size specified with the request for output 'Y' (8 bytes)" in third["error"]
    assert np.frombuffer(memory.region[8:48], np.float32).tolist() == (2 * X2).ravel().tolist()


def test_large_ragged_tensors_lie_in_the_arena(tmp_path: Path) -> None:
    memory = FakeMemory()
    made = runner(tmp_path, told("INT32"), told_config("BATCH_ELEMENT_COUNT", "INT32"), memory)
    large = np.arange(100_000, dtype=np.float32).reshape(1, -1)
    for _ in range(2):
        first, second = outputs(made.run(Execute(1, [ragged_request(large, ["Y"]), ragged_request(X1, ["Y"])])), memory)
        assert first == {"Y": (2 * large).tolist()} and second == {"Y": (2 * X1).tolist()}


def test_shapes_that_numpy_does_not_take_are_no_matter_to_others(tmp_path: Path) -> None:
    """They have no elements, whatever their other dims are."""
    made = runner(tmp_path, told("INT32"), told_config("BATCH_ELEMENT_COUNT", "INT32", "-1, -1", "-1, -1"))
    odd = ragged_request(X1)
    odd.inputs[0] = Tensor("X", "FP32", (1, 0, 2**62), Inline(memoryview(b"")))
    deep = np.ones((1, 2, 3), np.float32)
    first, second = made.run(Execute(1, [odd, ragged_request(deep)])).results
    assert first is not None and first.outputs[-1].shape == (1, 0, 2**62)
    assert second is not None and array_of(second.outputs[-1]).tolist() == (2 * deep).tolist()


def test_an_output_too_small_to_scatter(tmp_path: Path) -> None:
    # Y is as long as X, but is to be cut into rows of two.
    config = told_config("BATCH_ELEMENT_COUNT", "INT32", "-1", "-1, 2")
    (only,) = outputs(runner(tmp_path, told("INT32"), config).run(Execute(1, [ragged_request(X1)])))
    assert only == {"error": "output 'Y' was made with 3 elements, too few to give each request one of its shape"}


def test_ragged_strings(tmp_path: Path) -> None:
    made = model([helper.make_node("Identity", ["X"], ["Y"])], [value("X", "BYTES", ["e"])], [value("Y", "BYTES", ["e"])])
    config = """max_batch_size: 8 input { name: 'X' data_type: TYPE_STRING dims: -1 allow_ragged_batch: true }
        output { name: 'Y' data_type: TYPE_STRING dims: -1 } batch_output { target_name: 'Y' source_input: 'X' }"""
    requests = [
        request([tensor("X", "BYTES", np.array([[b"a", b"bc"]], np.object_))]),
        request([tensor("X", "BYTES", np.array([[b"d"]], np.object_))]),
    ]
    assert outputs(runner(tmp_path, made, config).run(Execute(1, requests))) == [{"Y": [b"a", b"bc"]}, {"Y": [b"d"]}]


# state


def accumulator(batching: bool = True, datatype: str = "INT32") -> onnx.ModelProto:
    """OUT and ACC_OUT are IN plus ACC_IN."""
    dims: list[int | str] = ["b", 1] if batching else [1]
    nodes = [helper.make_node("Add", ["IN", "ACC_IN"], ["OUT"]), helper.make_node("Identity", ["OUT"], ["ACC_OUT"])]
    return model(
        nodes,
        [value("IN", datatype, dims), value("ACC_IN", datatype, dims)],
        [value("OUT", datatype, dims), value("ACC_OUT", datatype, dims)],
    )


IN = "input { name: 'IN' data_type: TYPE_INT32 dims: 1 } "
OUT = "output { name: 'OUT' data_type: TYPE_INT32 dims: 1 } "
VISIBLE = "output { name: 'ACC_OUT' data_type: TYPE_INT32 dims: 1 } "


def state(more: str = "", dims: str = "1") -> str:
    return f"state {{ input_name: 'ACC_IN' output_name: 'ACC_OUT' data_type: TYPE_INT32 dims: [ {dims} ] {more} }}"


def sequences(inside: str) -> str:
    return f"sequence_batching {{ {inside} }}"


BATCHING = "max_batch_size: 4 "


def step(number: int, slot: int, flags: int = 0, wanted: Sequence[str | WantedOutput] = (), shape: tuple[int, ...] = (1, 1)) -> RequestBody:
    body = request([tensor("IN", "INT32", np.full(shape, number, np.int32))], wanted)
    return RequestBody(body.id, 1, body.inputs, body.outputs, {}, RequestContext(slot + 1, flags, slot=slot))


def filler() -> RequestBody:
    return RequestBody("", 1, step(77, 0).inputs, [], {}, RequestContext())


def totals(done: Done) -> list[Any]:
    """OUT of each, or its error; None where nobody waits for it."""
    return [made.get("error") or made.get("OUT") for made in outputs(done)]


def play(made: Runner, *requests: RequestBody) -> list[Any]:
    return totals(made.run(Execute(1, list(requests))))


@pytest.mark.parametrize("more", ["", "use_same_buffer_for_input_output: true"])
def test_sequences_accumulate_each_in_its_place(tmp_path: Path, more: str) -> None:
    made = runner(tmp_path, accumulator(), BATCHING + IN + OUT + sequences(state(more)))
    assert type(made) is ExtendedRunner
    assert play(made, step(1, 0, START), step(10, 1, START), step(100, 2, START)) == [[[1]], [[10]], [[100]]]
    assert play(made, step(1, 0), step(10, 1), step(100, 2)) == [[[2]], [[20]], [[200]]]
    assert play(made, filler(), step(10, 1))[1] == [[30]]
    # A sequence that begins has nothing of the one before it; one that has ended leaves nothing.
    assert play(made, step(1, 0), step(5, 1, START), step(100, 2, END)) == [[[3]], [[5]], [[300]]]
    assert play(made, step(1, 0), step(5, 1), step(7, 2)) == [[[4]], [[10]], [[7]]]


def test_state_of_a_model_that_does_not_batch(tmp_path: Path) -> None:
    made = runner(tmp_path, accumulator(False), IN + OUT + sequences(state()))
    for flags, expected in ((START, 3), (0, 6), (0, 9), (START, 3), (END, 6)):
        assert play(made, step(3, 0, flags, shape=(1,))) == [[expected]]


def test_initial_state_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "m" / "initial_state").mkdir(parents=True)
    (tmp_path / "m" / "initial_state" / "start").write_bytes(np.array([40], np.int32).tobytes())
    initial = "initial_state { name: 's' data_type: TYPE_INT32 dims: 1 data_file: 'start' }"
    made = runner(tmp_path, accumulator(), BATCHING + IN + OUT + sequences(state(initial)))
    assert play(made, step(2, 0, START), step(3, 1, START)) == [[[42]], [[43]]]
    assert play(made, step(2, 0)) == [[[44]]] and play(made, step(2, 0, START)) == [[[42]]]


@pytest.mark.parametrize(("wanted", "names"), [((), ["OUT", "ACC_OUT"]), (("ACC_OUT",), ["ACC_OUT"]), (("OUT",), ["OUT"])])
def test_clients_get_state_that_the_model_lists(tmp_path: Path, wanted: Sequence[str], names: list[str]) -> None:
    made = runner(tmp_path, accumulator(), BATCHING + IN + OUT + VISIBLE + sequences(state()))
    (only,) = outputs(made.run(Execute(1, [step(1, 0, START, wanted)])))
    assert only == dict.fromkeys(names, [[1]])
    assert play(made, step(1, 0)) == [[[2]]]


def test_clients_do_not_get_state_that_it_does_not_list(tmp_path: Path) -> None:
    made = runner(tmp_path, accumulator(), BATCHING + IN + OUT + sequences(state()))
    assert outputs(made.run(Execute(1, [step(1, 0, START)]))) == [{"OUT": [[1]]}]


def test_state_that_clients_get_in_another_shape(tmp_path: Path) -> None:
    visible = "output { name: 'ACC_OUT' data_type: TYPE_INT32 dims: [ 1, 1 ] reshape { shape: 1 } } "
    made = runner(tmp_path, accumulator(), BATCHING + IN + OUT + visible + sequences(state()))
    for expected in (1, 2, 3):
        (only,) = outputs(made.run(Execute(1, [step(1, 0, START if expected == 1 else 0)])))
        assert only == {"OUT": [[expected]], "ACC_OUT": [[[expected]]]}


LARGE = 40_000


def wide() -> onnx.ModelProto:
    """OUT is the sum of the state, which has IN added to each element."""
    nodes = [
        helper.make_node("Add", ["IN", "ACC_IN"], ["ACC_OUT"]),
        helper.make_node("ReduceMean", ["ACC_OUT"], ["OUT"], axes=[1]),
    ]
    return model(
        nodes,
        [value("IN", "INT32", ["b", 1]), value("ACC_IN", "INT32", ["b", LARGE])],
        [value("OUT", "INT32", ["b", 1]), value("ACC_OUT", "INT32", ["b", LARGE])],
    )


class Busy(FakeMemory):
    """What is given back is another instance's the moment after, and clients change their regions whenever it suits them."""

    def free(self, lease: Lease) -> None:
        if (block := self.blocks.get(lease.offset)) is not None:
            block[:] = b"\x55" * len(block)


def busy(folder: Path) -> tuple[Runner, FakeMemory]:
    visible = VISIBLE.replace("dims: 1", f"dims: {LARGE}")
    memory = Busy(bytes(8))
    return runner(folder, wide(), BATCHING + IN + OUT + visible + sequences(state("", str(LARGE))), memory), memory


@pytest.mark.parametrize("wanted", [["OUT"], ["OUT", "ACC_OUT"]])
@pytest.mark.parametrize("count", [1, 2])
def test_a_large_state_is_kept_whoever_wants_it(tmp_path: Path, wanted: Sequence[str], count: int) -> None:
    """Also where the client did not ask for it: nothing is read where it has been given back."""
    made, memory = busy(tmp_path)
    for total, flags in ((1, START), (2, 0), (3, 0)):
        requests = [step(slot + 1, slot, flags, wanted if slot == 0 else ["OUT"]) for slot in range(count)]
        found = outputs(made.run(Execute(1, requests)), memory)
        assert [one["OUT"] for one in found] == [[[(slot + 1) * total]] for slot in range(count)]
        assert list(found[0]) == wanted and ("ACC_OUT" not in wanted or found[0]["ACC_OUT"] == [[total] * LARGE])


def test_a_large_state_that_its_client_has_no_room_for(tmp_path: Path) -> None:
    made, _ = busy(tmp_path)
    assert play(made, step(1, 0, START, ["OUT"]), step(2, 1, START, ["OUT"])) == [[[1]], [[2]]]
    failed, other = play(made, step(1, 0, 0, [WantedOutput("ACC_OUT", Span(3, 0, 8))]), step(2, 1, 0, ["OUT"]))
    assert "shared memory size specified with the request for output 'ACC_OUT'" in failed and other == [[4]]
    assert play(made, step(1, 0, 0, ["OUT"]), step(2, 1, 0, ["OUT"])) == [[[2]], [[6]]]


def test_nothing_is_stored_for_an_empty_place(tmp_path: Path) -> None:
    made, memory = busy(tmp_path)
    empty, real = made.run(Execute(1, [filler(), step(1, 1, START)])).results
    assert empty is not None and empty.outputs == [] and empty.fault is None
    assert real is not None and [output.name for output in real.outputs] == ["OUT", "ACC_OUT"] and len(memory.blocks) == 1


def test_strings_as_state(tmp_path: Path) -> None:
    nodes = [helper.make_node("Identity", ["ACC_IN"], ["OUT"]), helper.make_node("Identity", ["IN"], ["ACC_OUT"])]
    made = model(
        nodes,
        [value("IN", "BYTES", ["b", 1]), value("ACC_IN", "BYTES", ["b", 1])],
        [value("OUT", "BYTES", ["b", 1]), value("ACC_OUT", "BYTES", ["b", 1])],
    )
    config = (BATCHING + IN + OUT + sequences(state())).replace("INT32", "STRING")
    last = runner(tmp_path, made, config)

    def say(word: bytes, flags: int = 0) -> Any:
        array = np.array([[word]], np.object_)
        body = RequestBody("", 1, [tensor("IN", "BYTES", array)], [], {}, RequestContext(1, flags, slot=0))
        return outputs(last.run(Execute(1, [body])))

    assert say(b"a", START) == [{"OUT": [b""]}] and say(b"\xc3\xa9") == [{"OUT": [b"a"]}] and say(b"c") == [{"OUT": [b"\xc3\xa9"]}]


def growing() -> onnx.ModelProto:
    """Each step's state has one more element; OUT is how many."""
    nodes = [
        helper.make_node("Concat", ["ACC_IN", "IN"], ["ACC_OUT"], axis=1),
        helper.make_node("ReduceSum", ["ACC_OUT", "AXES"], ["OUT"], keepdims=1),
    ]
    return model(
        nodes,
        [value("IN", "INT32", ["b", 1]), value("ACC_IN", "INT32", ["b", "k"])],
        [value("OUT", "INT32", ["b", 1]), value("ACC_OUT", "INT32", ["b", "l"])],
        [helper.make_tensor("AXES", TensorProto.INT64, [1], [1])],
    )


def test_states_of_different_shapes_are_run_one_after_the_other(tmp_path: Path) -> None:
    made = runner(tmp_path, growing(), BATCHING + IN + OUT + sequences(state("", "-1")))
    assert play(made, step(1, 0, START)) == [[[1]]] and play(made, step(1, 0)) == [[[2]]]
    done = made.run(Execute(1, [step(1, 0), filler(), step(5, 2, START), step(7, 3, START)]))
    assert [total for index, total in enumerate(outputs(done)) if index != 1] == [{"OUT": [[3]]}, {"OUT": [[5]]}, {"OUT": [[7]]}]
    assert play(made, step(5, 2), step(7, 3)) == [[[10]], [[14]]]
    # What stands in an empty place takes the shape of the others.
    assert play(made, filler(), step(5, 2))[1] == [[15]]
    assert play(made, step(1, 0, START), step(1, 2, START)) == [[[1]], [[1]]]


def test_a_failed_request_leaves_its_state_as_it_was() -> None:
    fail: list[int] = []

    def work(batch: Batch) -> None:
        array = batch.input("IN") + batch.input("S")
        batch.set_output("T", "INT32", array)
        batch.set_output("OUT", "INT32", array)
        for index in fail:
            batch.fail(index, internal("no"))

    spec = StateSpec("S", "T", "INT32", (1,))
    known = TensorSpec("OUT", DATATYPES["INT32"], (1,), (-1, 1), None, 4)
    made = runner_of(FakeExecutor(work), FakeMemory(), Signature("m", 4, False, {}, {"OUT": known}), Ragged(), [spec])
    made.run(Execute(1, [step(1, 0, START), step(1, 1, START)]))
    fail.append(0)
    assert play(made, step(1, 0), step(1, 1)) == ["no", [[2]]]
    fail.clear()
    assert play(made, step(1, 0), step(1, 1)) == [[[2]], [[3]]]


def test_one_request_with_a_bad_input_costs_the_others_no_state(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Add", ["ACC_IN", "ONE"], ["ACC_OUT"]),
        helper.make_node("Identity", ["ACC_OUT"], ["OUT"]),
        helper.make_node("Identity", ["IN"], ["ECHO"]),
    ]
    made = model(
        nodes,
        [value("IN", "BYTES", ["b", 1]), value("ACC_IN", "INT32", ["b", 1])],
        [value("OUT", "INT32", ["b", 1]), value("ACC_OUT", "INT32", ["b", 1]), value("ECHO", "BYTES", ["b", 1])],
        [helper.make_tensor("ONE", TensorProto.INT32, [1], [1])],
    )
    config = BATCHING + IN.replace("INT32", "STRING") + OUT + sequences(state())
    counter = runner(tmp_path, made, config, FakeMemory(b"\x09\0\0\0ab"))

    def count(slot: int, flags: int, bad: bool = False) -> RequestBody:
        good = tensor("IN", "BYTES", np.array([[b"x"]], np.object_))
        given = Tensor("IN", "BYTES", (1, 1), Span(3, 0, 6)) if bad else good
        return RequestBody("", 1, [given], [WantedOutput("OUT")], {}, RequestContext(1, flags, slot=slot))

    assert play(counter, count(0, START), count(1, START)) == [[[1]], [[1]]]
    failed, counted = play(counter, count(0, 0, bad=True), count(1, END))
    assert failed.startswith("incomplete string data for inference input 'IN'") and counted == [[2]]
    # The failed one has left its state; the other's has ended.
    assert play(counter, count(0, 0), count(1, 0)) == [[[2]], [[1]]]


def controlled() -> onnx.ModelProto:
    """OUT is IN plus ACC_IN, and a hundred where the sequence begins."""
    nodes = [
        helper.make_node("Mul", ["START", "HUNDRED"], ["BONUS"]),
        helper.make_node("Add", ["IN", "ACC_IN"], ["ACC_OUT"]),
        helper.make_node("Add", ["ACC_OUT", "BONUS"], ["OUT"]),
    ]
    inputs = [value("IN", "INT32", ["b", 1]), value("START", "INT32", ["b", 1]), value("ACC_IN", "INT32", ["b", 1])]
    return model(
        nodes,
        inputs,
        [value("OUT", "INT32", ["b", 1]), value("ACC_OUT", "INT32", ["b", 1])],
        [helper.make_tensor("HUNDRED", TensorProto.INT32, [1], [100])],
    )


CONTROL = "control_input { name: 'START' control { kind: CONTROL_SEQUENCE_START int32_false_true: [ 0, 1 ] } } "


def test_controls_are_inputs_beside_state(tmp_path: Path) -> None:
    made = runner(tmp_path, controlled(), BATCHING + IN + OUT + sequences(CONTROL + state()))

    def one(number: int, flags: int) -> RequestBody:
        body = step(number, 0, flags)
        return RequestBody("", 1, [tensor("START", "INT32", np.array([[flags & 1]], np.int32)), *body.inputs], [], {}, body.context)

    assert [play(made, one(1, flags)) for flags in (START, 0, START)] == [[[[101]]], [[[2]]], [[[101]]]]


def test_completion_lists_neither_controls_nor_state(tmp_path: Path) -> None:
    made = source(tmp_path, controlled(), BATCHING + sequences(CONTROL + state()))
    backend().complete(made)
    assert [tensor.name for tensor in made.config.input] == ["IN"] and [tensor.name for tensor in made.config.output] == ["OUT"]
    assert not made.config.HasField("dynamic_batching")
    backend().compare(made)


def test_completion_of_a_model_whose_only_output_is_state(tmp_path: Path) -> None:
    made = source(tmp_path, growing(), BATCHING + sequences(state("", "-1").replace("'ACC_OUT'", "'OUT'")))
    made.config.output.add(name="ACC_OUT", data_type=8, dims=[-1])
    backend().complete(made)
    assert [tensor.name for tensor in made.config.output] == ["ACC_OUT"]


def test_a_sequence_model_is_warmed_up(tmp_path: Path) -> None:
    inputs = "".join(f"inputs {{ key: '{name}' value {{ data_type: TYPE_INT32 dims: 1 zero_data: true }} }}" for name in ("IN", "START"))
    own = "inputs { key: 'ACC_IN' value { data_type: TYPE_INT32 dims: 1 random_data: true } }"
    warm = f"model_warmup {{ name: 'w' batch_size: 2 count: 2 {inputs} }} model_warmup {{ name: 'own' batch_size: 1 {inputs} {own} }}"
    made_source = source(tmp_path, controlled(), BATCHING + IN + OUT + sequences(CONTROL + state()) + warm)
    made = backend().load(made_source).runner(INSTANCE, FakeMemory())
    assert [(warmed.batch_size, warmed.execution_count) for warmed in warm_up(samples_of(made_source), made, "m_0")] == [(2, 2), (1, 1)]
    body = step(1, 0)
    start = tensor("START", "INT32", np.array([[0]], np.int32))
    assert play(made, RequestBody("", 1, [*body.inputs, start], [], {}, body.context)) == [[[1]]]
