"""Batches on the ONNX Runtime backend, against ONNX Runtime itself."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from tensorfarm.shm.datatypes import DATATYPES, serialize_bytes
from tensorfarm.shm.placement import Lease, Span
from tensorfarm.workers.backends.backend import Backend
from tensorfarm.workers.backends.onnxruntime import backend
from tensorfarm.workers.batch import Batch
from tensorfarm.workers.contract.messages import InstanceSpec, Tensor, WantedOutput
from tensorfarm.workers.contract.status import Code, StatusError

from ..model_repository import ONNX_TYPES
from .onnx_source import (
    INSTANCE,
    FakeMemory,
    add_sub,
    array_of,
    executor,
    identity,
    model,
    request,
    run,
    source,
    tensor,
    value,
    with_default,
)

NUMERIC = [name for name in DATATYPES if name != "BYTES"]


def strings(*elements: bytes) -> np.ndarray[Any, np.dtype[Any]]:
    array = np.empty(len(elements), np.object_)
    array[:] = elements
    return array


def test_backend_fulfils_the_protocol() -> None:
    made: Backend = backend()
    assert made is not None


def test_add_sub_equals_onnxruntime(tmp_path: Path) -> None:
    made = executor(tmp_path, add_sub())
    first = np.arange(32, dtype=np.int32).reshape(2, 16)
    second = np.full((2, 16), 7, np.int32)
    (result,) = run(made, [request([tensor("IN0", "INT32", first), tensor("IN1", "INT32", second)], batch_size=2)])
    session = onnxruntime.InferenceSession(add_sub().SerializeToString(), providers=["CPUExecutionProvider"])
    expected = session.run(None, {"IN0": first, "IN1": second})
    assert [output.name for output in result.outputs] == ["SUM", "DIFFERENCE"]
    for output, array in zip(result.outputs, expected, strict=True):
        assert output.datatype == "INT32" and output.shape == (2, 16)
        assert np.array_equal(array_of(output), array)


def test_requests_of_a_batch_get_their_own_rows(tmp_path: Path) -> None:
    made = executor(tmp_path, add_sub())
    requests = []
    for number, rows in enumerate((1, 3, 2)):
        array = np.full((rows, 16), number, np.int32)
        requests.append(request([tensor("IN0", "INT32", array), tensor("IN1", "INT32", array)], ["SUM"], batch_size=rows))
    results = run(made, requests)
    for number, (result, rows) in enumerate(zip(results, (1, 3, 2), strict=True)):
        (output,) = result.outputs
        assert output.name == "SUM"
        assert np.array_equal(array_of(output), np.full((rows, 16), 2 * number, np.int32))


@pytest.mark.parametrize("item_count", [4, 80_000], ids=["inline", "arena"])
@pytest.mark.parametrize("datatype", NUMERIC)
def test_identity_of_every_datatype(tmp_path: Path, datatype: str, item_count: int) -> None:
    made = executor(tmp_path, identity(datatype, ["batch", item_count]))
    dtype = DATATYPES[datatype].dtype
    random = np.random.default_rng(3).integers(0, 2, (2, item_count * dtype.itemsize), np.uint8)
    array = random.view(dtype)
    memory = FakeMemory()
    (result,) = run(made, [request([tensor("IN", datatype, array)], batch_size=2)], memory)
    (output,) = result.outputs
    assert (output.datatype, output.shape) == (datatype, (2, item_count))
    assert array_of(output, memory).tobytes() == array.tobytes()
    assert (type(output.place) is Lease) == (array.nbytes > 32 * 1024)


@pytest.mark.parametrize("datatype", ["FP32", "BF16"])
@pytest.mark.parametrize("item_count", [0, 3, 40_000])
def test_variable_dims(tmp_path: Path, datatype: str, item_count: int) -> None:
    made = executor(tmp_path, identity(datatype, ["batch", "items"]))
    array = np.arange(2 * item_count, dtype=DATATYPES[datatype].dtype).reshape(2, item_count)
    memory = FakeMemory()
    (result,) = run(made, [request([tensor("IN", datatype, array)], batch_size=2)], memory)
    assert result.outputs[0].shape == (2, item_count)
    assert np.array_equal(array_of(result.outputs[0], memory), array)


@pytest.mark.parametrize(
    "elements",
    [
        [b"abc", b""],
        ["é😀".encode(), b"a\0b"],
        [b"", b""],
        pytest.param([b"x" * 70_000, b"y"], id="long"),
    ],
)
def test_bytes(tmp_path: Path, elements: list[bytes]) -> None:
    made = executor(tmp_path, identity("BYTES", ["batch", 2]))
    memory = FakeMemory()
    (result,) = run(made, [request([tensor("IN", "BYTES", strings(*elements).reshape(1, 2))])], memory)
    assert result.outputs[0].shape == (1, 2)
    assert array_of(result.outputs[0], memory).tobytes() == serialize_bytes(elements)


def test_bytes_that_are_not_utf8_reach_the_model(tmp_path: Path) -> None:
    # Compared inside the model, because Python's interface cannot give such strings back.
    node = helper.make_node("Equal", ["A", "B"], ["SAME"])
    graph = model([node], [value("A", "BYTES", ["n"]), value("B", "BYTES", ["n"])], [value("SAME", "BOOL", ["n"])], opset=19)
    made = executor(
        tmp_path,
        graph,
        "max_batch_size: 0 input { name: 'A' data_type: TYPE_STRING dims: [ -1 ] } "
        "input { name: 'B' data_type: TYPE_STRING dims: [ -1 ] } output { name: 'SAME' data_type: TYPE_BOOL dims: [ -1 ] }",
    )
    left, right = strings(b"\xff\xfe", b"abc", b""), strings(b"\xff\xfe", b"\xff", b"")
    (result,) = run(made, [request([tensor("A", "BYTES", left), tensor("B", "BYTES", right)])])
    assert array_of(result.outputs[0]).tolist() == [True, False, True]
    one = strings(b"\xff\0\xfe")
    (result,) = run(made, [request([tensor("A", "BYTES", one), tensor("B", "BYTES", one)])])
    assert array_of(result.outputs[0]).tolist() == [True]
    with pytest.raises(StatusError, match="^input 'A' has strings that are not UTF-8, differ in length") as caught:
        run(made, [request([tensor("A", "BYTES", strings(b"\xff\0", b"a")), tensor("B", "BYTES", strings(b"a", b"b"))])])
    assert caught.value.code == Code.INVALID_ARG


def test_bytes_output_that_is_not_utf8_is_an_error(tmp_path: Path) -> None:
    made = executor(tmp_path, identity("BYTES", [1]))
    with pytest.raises(StatusError, match="^a BYTES output of model 'm' is not UTF-8") as caught:
        run(made, [request([tensor("IN", "BYTES", strings(b"\xff"))])])
    assert caught.value.code == Code.INTERNAL


def test_large_tensor_is_read_and_written_where_it_lies(tmp_path: Path) -> None:
    count = 1 << 20
    made = executor(tmp_path, identity("FP32", ["batch", count]))
    byte_size = 4 * count
    memory = FakeMemory(np.arange(count, dtype=np.float32).tobytes() + bytes(byte_size))
    body = request([], [WantedOutput("OUT", Span(3, byte_size, byte_size))])
    place = Span(3, 0, byte_size)
    body.inputs.append(Tensor("IN", "FP32", (1, count), place))
    bound: list[int] = []

    class Watched(Batch):
        __slots__ = ()

        def set_output(self, name: str, datatype: str, array: np.ndarray[Any, np.dtype[Any]]) -> None:
            bound.append(array.__array_interface__["data"][0])
            super().set_output(name, datatype, array)

    watched = Watched([body], memory)
    made.execute(watched)
    (result,) = watched.finish()
    start = np.frombuffer(memory.region, np.uint8).ctypes.data
    assert bound == [start + byte_size]
    assert result.outputs[0].place == Span(3, byte_size, byte_size)
    assert memory.region[byte_size:] == memory.region[:byte_size]
    assert not memory.blocks


def test_large_batch_is_divided_in_the_arena(tmp_path: Path) -> None:
    count = 40_000
    made = executor(tmp_path, identity("FP32", ["batch", count]))
    memory = FakeMemory()
    arrays = [np.full((rows, count), rows, np.float32) for rows in (1, 2)]
    requests = [request([tensor("IN", "FP32", array)], batch_size=len(array)) for array in arrays]
    for result, array in zip(run(made, requests, memory), arrays, strict=True):
        assert np.array_equal(array_of(result.outputs[0], memory), array)
    assert len(memory.blocks) == 1


@pytest.mark.parametrize("wanted", [["B"], ["C", "A"], ["A", "B", "C"], []])
@pytest.mark.parametrize("count", [3, 40_000])
def test_only_wanted_outputs_are_fetched(tmp_path: Path, wanted: list[str], count: int) -> None:
    nodes = [helper.make_node(kind, ["IN"], [name]) for kind, name in (("Identity", "A"), ("Neg", "B"), ("Abs", "C"))]
    made = executor(tmp_path, model(nodes, [value("IN", "FP32", ["b", count])], [value(name, "FP32", ["b", count]) for name in "ABC"]))
    memory = FakeMemory()
    (result,) = run(made, [request([tensor("IN", "FP32", np.full((1, count), -2, np.float32))], wanted)], memory)
    values = {output.name: float(array_of(output, memory)[0, -1]) for output in result.outputs}
    assert values == {name: number for name, number in (("A", -2.0), ("B", 2.0), ("C", 2.0)) if not wanted or name in wanted}


def test_requests_that_want_different_outputs(tmp_path: Path) -> None:
    made = executor(tmp_path, add_sub())
    array = np.ones((1, 16), np.int32)
    inputs = [tensor("IN0", "INT32", array), tensor("IN1", "INT32", array)]
    first, second = run(made, [request(inputs, ["SUM"]), request(inputs, ["DIFFERENCE"])])
    assert [(output.name, int(array_of(output)[0, 0])) for output in (*first.outputs, *second.outputs)] == [("SUM", 2), ("DIFFERENCE", 0)]


@pytest.mark.parametrize("count", [4, 65_536])
def test_reshape_of_inputs_and_outputs(tmp_path: Path, count: int) -> None:
    made = executor(
        tmp_path,
        identity("FP32", ["batch", 2, count // 2]),
        f"max_batch_size: 8 input {{ name: 'IN' data_type: TYPE_FP32 dims: [ {count} ] reshape {{ shape: [ 2, {count // 2} ] }} }} "
        f"output {{ name: 'OUT' data_type: TYPE_FP32 dims: [ {count} ] reshape {{ shape: [ 2, {count // 2} ] }} }}",
    )
    array = np.arange(2 * count, dtype=np.float32).reshape(2, 2, count // 2)  # the server has rewritten the shape
    memory = FakeMemory()
    (result,) = run(made, [request([tensor("IN", "FP32", array)], batch_size=2)], memory)
    assert result.outputs[0].shape == (2, count)
    assert np.array_equal(array_of(result.outputs[0], memory), array.reshape(2, count))


def test_reshape_keeps_variable_dims(tmp_path: Path) -> None:
    made = executor(
        tmp_path,
        identity("INT64", ["a", "b", 1]),
        "input { name: 'IN' data_type: TYPE_INT64 dims: [ -1, -1 ] reshape { shape: [ -1, -1, 1 ] } } "
        "output { name: 'OUT' data_type: TYPE_INT64 dims: [ 1, -1, -1 ] reshape { shape: [ -1, -1, 1 ] } }",
    )
    array = np.arange(6).reshape(2, 3, 1)
    (result,) = run(made, [request([tensor("IN", "INT64", array)])])
    assert result.outputs[0].shape == (1, 2, 3)


def test_batched_scalars_have_an_empty_reshape(tmp_path: Path) -> None:
    made = executor(tmp_path, identity("INT32", ["batch"]))
    arrays = [np.array([5], np.int32), np.array([6, 7], np.int32)]
    results = run(made, [request([tensor("IN", "INT32", array)], batch_size=len(array)) for array in arrays])
    assert [result.outputs[0].shape for result in results] == [(1, 1), (2, 1)]
    assert [array_of(result.outputs[0]).ravel().tolist() for result in results] == [[5], [6, 7]]


def test_rank_0_tensors_are_one_element(tmp_path: Path) -> None:
    made = executor(tmp_path, identity("FP64", []))
    (result,) = run(made, [request([tensor("IN", "FP64", np.array([2.5]))])])
    assert result.outputs[0].shape == (1,)
    assert array_of(result.outputs[0]).tolist() == [2.5]


def test_scalar_beside_batched_tensors(tmp_path: Path) -> None:
    nodes = [helper.make_node("Mul", ["IN", "FACTOR"], ["OUT"]), helper.make_node("Identity", ["FACTOR"], ["USED"])]
    graph = model(
        nodes,
        [value("IN", "FP32", ["batch", 2]), value("FACTOR", "FP32", [])],
        [value("OUT", "FP32", ["batch", 2]), value("USED", "FP32", [])],
    )
    tensors = "data_type: TYPE_FP32 dims:"
    made = executor(
        tmp_path,
        graph,
        f"max_batch_size: 4 input {{ name: 'IN' {tensors} [ 2 ] }} input {{ name: 'FACTOR' {tensors} [ 1 ] }} "
        f"output {{ name: 'OUT' {tensors} [ 2 ] }} output {{ name: 'USED' {tensors} [ 1 ] }}",
    )

    def body(rows: int, factor: float) -> Any:
        factors = np.full((rows, 1), factor, np.float32)
        return request([tensor("IN", "FP32", np.ones((rows, 2), np.float32)), tensor("FACTOR", "FP32", factors)], batch_size=rows)

    first, second = run(made, [body(1, 3), body(2, 3)])
    assert array_of(second.outputs[0]).tolist() == [[3, 3], [3, 3]]
    assert [array_of(result.outputs[1]).tolist() for result in (first, second)] == [[[3]], [[3], [3]]]
    with pytest.raises(StatusError, match="^input 'FACTOR' of model 'm' is a scalar: it must have the same value throughout the batch$"):
        run(made, [body(1, 3), body(1, 4)])


def test_optional_input(tmp_path: Path) -> None:
    made = executor(
        tmp_path,
        with_default(),
        "input { name: 'IN' data_type: TYPE_FP32 dims: [ 3 ] } input { name: 'BIAS' data_type: TYPE_FP32 dims: [ 1 ] optional: true } "
        "output { name: 'OUT' data_type: TYPE_FP32 dims: [ 3 ] }",
    )
    given = tensor("IN", "FP32", np.zeros(3, np.float32))
    bias = tensor("BIAS", "FP32", np.array([2], np.float32))
    for inputs, expected in (([given, bias], 2.0), ([given], 10.0), ([given, bias], 2.0)):
        (result,) = run(made, [request(inputs)])
        assert array_of(result.outputs[0]).tolist() == [expected] * 3


def test_optional_input_of_a_bound_run_does_not_stay(tmp_path: Path) -> None:
    bias = helper.make_tensor("BIAS", ONNX_TYPES["FP32"], [1], [10.0])
    node = helper.make_node("Add", ["IN", "BIAS"], ["OUT"])
    graph = model([node], [value("IN", "FP32", [40_000]), value("BIAS", "FP32", [1])], [value("OUT", "FP32", [40_000])], [bias])
    made = executor(
        tmp_path,
        graph,
        "input { name: 'IN' data_type: TYPE_FP32 dims: [ 40000 ] } input { name: 'BIAS' data_type: TYPE_FP32 dims: [ 1 ] optional: true } "
        "output { name: 'OUT' data_type: TYPE_FP32 dims: [ 40000 ] }",
    )
    given = tensor("IN", "FP32", np.zeros(40_000, np.float32))
    memory = FakeMemory()
    for inputs, expected in (([given, tensor("BIAS", "FP32", np.array([2], np.float32))], 2.0), ([given], 10.0)):
        (result,) = run(made, [request(inputs)], memory)
        assert array_of(result.outputs[0], memory)[0] == expected


def wrong_shape() -> onnx.ModelProto:
    """Declares [batch, 100000] and makes what DIMS says."""
    node = helper.make_node("Expand", ["IN", "DIMS"], ["OUT"])
    return model([node], [value("IN", "FP32", ["batch", 1]), value("DIMS", "INT64", ["batch"])], [value("OUT", "FP32", ["batch", 100_000])])


def test_a_model_that_makes_another_shape_than_it_declares(tmp_path: Path) -> None:
    made = executor(
        tmp_path,
        wrong_shape(),
        "max_batch_size: 2 "
        "input { name: 'IN' data_type: TYPE_FP32 dims: [ 1 ] } input { name: 'DIMS' data_type: TYPE_INT64 dims: [ 1 ] reshape { } } "
        "output { name: 'OUT' data_type: TYPE_FP32 dims: [ 100000 ] }",
    )
    inputs = [tensor("IN", "FP32", np.ones((2, 1), np.float32)), tensor("DIMS", "INT64", np.array([2, 200_000]))]
    memory = FakeMemory()
    for _ in range(2):
        (result,) = run(made, [request(inputs, batch_size=2)], memory)
        assert result.outputs[0].shape == (2, 200_000)
        assert array_of(result.outputs[0], memory).all()


def test_a_model_that_loses_the_batch_dim(tmp_path: Path) -> None:
    node = helper.make_node("Compress", ["IN", "KEEP"], ["OUT"], axis=0)
    graph = model([node], [value("IN", "FP32", ["batch", 2]), value("KEEP", "BOOL", ["batch"])], [value("OUT", "FP32", ["rows", 2])])
    made = executor(tmp_path, graph)
    inputs = [tensor("IN", "FP32", np.ones((2, 2), np.float32)), tensor("KEEP", "BOOL", np.array([True, False]))]
    with pytest.raises(StatusError, match=r"^model 'm' made output 'OUT' with shape \[1, 2\] for a batch of 2$"):
        run(made, [request(inputs, batch_size=2)])


@pytest.mark.parametrize("count", [16, 40_000], ids=["fed", "bound"])
def test_runtime_error_has_no_path_and_leaves_the_instance_usable(tmp_path: Path, count: int, capfd: pytest.CaptureFixture[str]) -> None:
    node = helper.make_node("Gather", ["IN", "AT"], ["OUT"], name="/block/Gather", axis=1)
    graph = model([node], [value("IN", "FP32", ["batch", 4]), value("AT", "INT64", [count])], [value("OUT", "FP32", ["batch", count])])
    made = executor(
        tmp_path,
        graph,
        "input { name: 'IN' data_type: TYPE_FP32 dims: [ -1, 4 ] } "
        f"input {{ name: 'AT' data_type: TYPE_INT64 dims: [ {count} ] }} "
        f"output {{ name: 'OUT' data_type: TYPE_FP32 dims: [ -1, {count} ] }}",
    )
    data = tensor("IN", "FP32", np.ones((1, 4), np.float32))
    bad, good = (tensor("AT", "INT64", np.full(count, at)) for at in (9, 3))
    for _ in range(2):
        with pytest.raises(StatusError) as caught:
            run(made, [request([data, bad])])
        assert caught.value.code == Code.INTERNAL
        assert caught.value.message.startswith("onnx runtime error 2: Non-zero status code returned while running Gather node. ")
        assert "Name:'/block/Gather'" in caught.value.message
        assert "onnxruntime_src" not in caught.value.message
    memory = FakeMemory()
    (result,) = run(made, [request([data, good])], memory)
    assert array_of(result.outputs[0], memory).all()
    assert capfd.readouterr() == ("", "")


def test_out_of_memory_is_an_answer(tmp_path: Path) -> None:
    node = helper.make_node("ConstantOfShape", ["SHAPE"], ["OUT"])
    made = executor(
        tmp_path,
        model([node], [value("SHAPE", "INT64", [2])], [value("OUT", "FP32", ["a", "b"])]),
        "input { name: 'SHAPE' data_type: TYPE_INT64 dims: [ 2 ] } output { name: 'OUT' data_type: TYPE_FP32 dims: [ -1, -1 ] }",
    )
    for shape in ([1 << 40, 1], [1 << 62, 1 << 10]):
        with pytest.raises(StatusError, match="^onnx runtime error 1: Non-zero status code"):
            run(made, [request([tensor("SHAPE", "INT64", np.array(shape))])])
    (result,) = run(made, [request([tensor("SHAPE", "INT64", np.array([2, 2]))])])
    assert result.outputs[0].shape == (2, 2)


def test_instances_share_one_session(tmp_path: Path) -> None:
    made = source(tmp_path, add_sub())
    backend().complete(made)
    loaded = backend().load(made)
    executors = [loaded.executor(InstanceSpec(number, f"m_{number}", "KIND_CPU", 0)) for number in range(2)]
    failures: list[str] = []

    def work(number: int) -> None:
        array = np.full((1, 16), number, np.int32)
        body = request([tensor("IN0", "INT32", array), tensor("IN1", "INT32", array)])
        for _ in range(200):
            (result,) = run(executors[number], [body])
            if array_of(result.outputs[0]).tolist() != [[2 * number] * 16]:
                failures.append(str(result))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    for each in executors:
        each.close()
    loaded.close()


def test_gpu_instances_are_refused(tmp_path: Path) -> None:
    made = source(tmp_path, add_sub())
    backend().complete(made)
    with pytest.raises(StatusError, match="^instance 'm_0' of model 'm' is to run on a GPU, this worker has none$") as caught:
        backend().load(made).executor(InstanceSpec(1, "m_0", "KIND_GPU", 0))
    assert caught.value.code == Code.UNSUPPORTED
    assert backend().load(made).executor(INSTANCE) is not None


class Watched(Batch):
    """Tells where the arrays lie that a backend hands over as outputs."""

    __slots__ = ("addresses",)

    def set_output(self, name: str, datatype: str, array: np.ndarray[Any, np.dtype[Any]]) -> None:
        self.addresses = [*getattr(self, "addresses", []), array.__array_interface__["data"][0]]
        super().set_output(name, datatype, array)


def test_an_output_of_variable_shape_is_placed_once_its_shape_is_known(tmp_path: Path) -> None:
    count = 1 << 18
    byte_size = 4 * count
    tensors = "input { name: 'IN' data_type: TYPE_FP32 dims: [ -1 ] } output { name: 'OUT' data_type: TYPE_FP32 dims: [ -1 ] }"
    made = executor(tmp_path, identity("FP32", ["N"]), tensors)
    memory = FakeMemory(np.arange(count, dtype=np.float32).tobytes() + bytes(byte_size))
    start = np.frombuffer(memory.region, np.uint8).ctypes.data
    inside = []
    for _ in range(3):
        body = request([Tensor("IN", "FP32", (count,), Span(3, 0, byte_size))], [WantedOutput("OUT", Span(3, byte_size, byte_size))])
        batch = Watched([body], memory)
        made.execute(batch)
        assert batch.finish()[0].fault is None
        assert memory.region[byte_size:] == memory.region[:byte_size]
        inside.append(batch.addresses == [start + byte_size])
    assert inside == [False, True, True]


def test_an_output_whose_shape_depends_on_values_is_never_trusted_twice(tmp_path: Path) -> None:
    nodes = [helper.make_node("Expand", ["IN", "DIMS"], ["OUT"])]
    made = executor(
        tmp_path, model(nodes, [value("IN", "FP32", [1]), value("DIMS", "INT64", [1])], [value("OUT", "FP32", ["N"])]), "max_batch_size: 0"
    )
    for count in (100_000, 100_000, 200_000, 100_000, 5):
        memory = FakeMemory()
        inputs = [tensor("IN", "FP32", np.ones(1, np.float32)), tensor("DIMS", "INT64", np.array([count]))]
        (result,) = run(made, [request(inputs)], memory)
        assert result.outputs[0].shape == (count,)
        assert array_of(result.outputs[0], memory).all()
