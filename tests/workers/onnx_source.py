"""Small ONNX models in a model folder, and batches to run on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf import text_format
from onnx import TensorProto, helper

from tensorfarm.shm.datatypes import DATATYPES, serialize_bytes
from tensorfarm.shm.placement import Inline, Lease, Placement, Span
from tensorfarm.workers.backends.backend import ModelSource
from tensorfarm.workers.backends.onnxruntime import OnnxExecutor, backend
from tensorfarm.workers.batch import Batch
from tensorfarm.workers.contract.configuration import ModelConfig, document
from tensorfarm.workers.contract.messages import InstanceSpec, RequestBody, Result, Tensor, WantedOutput

from ..model_repository import ONNX_TYPES

Dims = Sequence[int | str] | None
Array = np.ndarray[Any, np.dtype[Any]]

INSTANCE = InstanceSpec(1, "m_0", "KIND_CPU", 0)


def value(name: str, datatype: str, dims: Dims) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, ONNX_TYPES[datatype], dims)


def model(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    constants: Sequence[onnx.TensorProto] = (),
    opset: int = 17,
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "graph", inputs, outputs, list(constants))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def identity(datatype: str, dims: Dims, out_dims: Dims = ()) -> onnx.ModelProto:
    node = helper.make_node("Identity", ["IN"], ["OUT"])
    return model([node], [value("IN", datatype, dims)], [value("OUT", datatype, dims if out_dims == () else out_dims)])


def add_sub(dims: Dims = ("batch", 16), datatype: str = "INT32") -> onnx.ModelProto:
    nodes = [helper.make_node("Add", ["IN0", "IN1"], ["SUM"]), helper.make_node("Sub", ["IN0", "IN1"], ["DIFFERENCE"])]
    return model(
        nodes,
        [value("IN0", datatype, dims), value("IN1", datatype, dims)],
        [value("SUM", datatype, dims), value("DIFFERENCE", datatype, dims)],
    )


def with_default() -> onnx.ModelProto:
    """IN plus BIAS, which is 10 where it is left out."""
    bias = helper.make_tensor("BIAS", TensorProto.FLOAT, [1], [10.0])
    node = helper.make_node("Add", ["IN", "BIAS"], ["OUT"])
    return model([node], [value("IN", "FP32", [3]), value("BIAS", "FP32", [1])], [value("OUT", "FP32", [3])], [bias])


def source(
    folder: Path, made: onnx.ModelProto | bytes, config: str = "", settings: Mapping[str, str] | None = None, filename: str = "model.onnx"
) -> ModelSource:
    """Write version 1 of model ``m`` and its configuration (protobuf text)."""
    path = folder / "m" / "1" / filename
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(made if isinstance(made, bytes) else made.SerializeToString())
    message = ModelConfig()
    text_format.Parse(f'name: "m" backend: "onnxruntime" {config}', message)
    return ModelSource(str(folder / "m"), 1, document(message), dict(settings or {}))


def executor(folder: Path, made: onnx.ModelProto, config: str = "") -> OnnxExecutor:
    """Complete, load, and make an instance."""
    made_source = source(folder, made, config)
    backend().complete(made_source)
    return backend().load(made_source).executor(INSTANCE)


class FakeMemory:
    """Arena 7 and one client region (number 3), in plain bytearrays."""

    def __init__(self, region: bytes | bytearray = b"") -> None:
        self.region = bytearray(region)
        self.blocks: dict[int, bytearray] = {}

    def view(self, place: Placement) -> memoryview:
        if isinstance(place, Inline):
            return place.content
        if isinstance(place, Span):
            return memoryview(self.region)[place.offset : place.offset + place.byte_size]
        base = max(offset for offset in self.blocks if offset <= place.offset)
        return memoryview(self.blocks[base])[place.offset - base : place.offset - base + place.byte_size]

    def device_address(self, place: Placement) -> int | None:
        return None

    def write_device(self, address: int, content: bytes | memoryview) -> None:
        raise AssertionError("there is no GPU")

    def reserve(self, byte_size: int) -> Lease:
        offset = 1 << 30 | len(self.blocks) << 24
        self.blocks[offset] = bytearray(byte_size)
        return Lease(7, offset, byte_size)

    def divide(self, lease: Lease, parts: list[Lease]) -> None:
        assert sum(part.byte_size for part in parts) == lease.byte_size

    def free(self, lease: Lease) -> None:
        self.blocks.pop(lease.offset, None)


def tensor(name: str, datatype: str, array: Array) -> Tensor:
    """An input that rides in the message; BYTES: an object array of ``bytes``."""
    content = serialize_bytes(array.ravel().tolist()) if datatype == "BYTES" else array.tobytes()
    return Tensor(name, datatype, array.shape, Inline(memoryview(content)))


def request(inputs: Sequence[Tensor], outputs: Sequence[str | WantedOutput] = (), batch_size: int = 1) -> RequestBody:
    wanted = [output if isinstance(output, WantedOutput) else WantedOutput(output) for output in outputs]
    return RequestBody("", batch_size, list(inputs), wanted, {})


def run(made: OnnxExecutor, requests: list[RequestBody], memory: FakeMemory | None = None) -> list[Result]:
    batch = Batch(requests, memory or FakeMemory())
    made.execute(batch)
    results = batch.finish()
    assert batch.compute_start_ns <= batch.input_end_ns <= batch.output_start_ns <= batch.compute_end_ns
    return results


def array_of(made: Tensor, memory: FakeMemory | None = None) -> Array:
    """The array of a result's output; BYTES stay serialised."""
    view = (memory or FakeMemory()).view(made.place)
    if made.datatype == "BYTES":
        return np.frombuffer(view, np.uint8)
    return np.frombuffer(view, DATATYPES[made.datatype].dtype, count=int(np.prod(made.shape))).reshape(made.shape)
