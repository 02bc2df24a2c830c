"""The test models, written once as ONNX for tensorfarm and once as Python models for the real server.

Both halves get the same names, tensors, labels, versions and scheduling; only ``backend`` and the
model files differ. So the same request has the same answer at both servers.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper


class Flavour(enum.Enum):
    """Which server a repository is for: the value is the backend's name in ``config.pbtxt``."""

    ONNX = "onnxruntime"
    PYTHON = "python"


@dataclass(frozen=True)
class TestTensor:
    """One input or output: ``dims`` as configured, ``reshape`` as the model itself sees it."""

    __test__ = False

    name: str
    datatype: str
    dims: tuple[int, ...]
    reshape: tuple[int, ...] | None = None
    label_filename: str = ""

    @property
    def model_dims(self) -> tuple[int, ...]:
        return self.dims if self.reshape is None else self.reshape


@dataclass(frozen=True)
class TestModel:
    """One model. ``operation`` names an entry of ``_NODES``; ``extra`` is appended to its config."""

    __test__ = False

    name: str
    operation: str
    inputs: tuple[TestTensor, ...]
    outputs: tuple[TestTensor, ...]
    max_batch_size: int = 0
    versions: tuple[int, ...] = (1,)
    extra: str = ""
    instances: int = 1
    files: Mapping[str, str] = field(default_factory=dict)
    folders: tuple[str, ...] = ()


ONNX_TYPES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
    "BF16": TensorProto.BFLOAT16,
}
"""ONNX element type by wire datatype."""

DATATYPES = tuple(ONNX_TYPES)
"""Every wire datatype."""

OPSET = 17
IR_VERSION = 8


def config_type(datatype: str) -> str:
    """The name of a wire datatype in ``config.pbtxt``."""
    return "TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}"


# ---- ONNX graphs ---------------------------------------------------------------------------------

Nodes = tuple[list[onnx.NodeProto], list[onnx.TensorProto]]


def _identity(model: TestModel, version: int) -> Nodes:
    return [
        helper.make_node("Identity", [source.name], [target.name]) for source, target in zip(model.inputs, model.outputs, strict=True)
    ], []


def _add_sub(model: TestModel, version: int) -> Nodes:
    names = [tensor.name for tensor in model.inputs]
    return [
        helper.make_node("Add", names, [model.outputs[0].name]),
        helper.make_node("Sub", names, [model.outputs[1].name]),
    ], []


def _add_version(model: TestModel, version: int) -> Nodes:
    constant = helper.make_tensor("VERSION", ONNX_TYPES[model.inputs[0].datatype], [1], [version])
    return [helper.make_node("Add", [model.inputs[0].name, "VERSION"], [model.outputs[0].name])], [constant]


def _fan_out(model: TestModel, version: int) -> Nodes:
    return [helper.make_node("Identity", [model.inputs[0].name], [target.name]) for target in model.outputs], []


def _spin(model: TestModel, version: int) -> Nodes:
    """A loop that multiplies a 96x96 matrix as many times as the input says, then answers that number."""
    size = 96
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["matrix_in", "weights"], ["product"]),
            helper.make_node("Clip", ["product", "low", "high"], ["matrix_out"]),
            helper.make_node("Identity", ["continue_in"], ["continue_out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("iteration", TensorProto.INT64, []),
            helper.make_tensor_value_info("continue_in", TensorProto.BOOL, []),
            helper.make_tensor_value_info("matrix_in", TensorProto.FLOAT, [size, size]),
        ],
        [
            helper.make_tensor_value_info("continue_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("matrix_out", TensorProto.FLOAT, [size, size]),
        ],
    )
    weights = np.random.default_rng(7).standard_normal((size, size)).astype(np.float32)
    constants = [
        onnx.numpy_helper.from_array(weights, "weights"),
        onnx.numpy_helper.from_array(np.array(-1, np.float32), "low"),
        onnx.numpy_helper.from_array(np.array(1, np.float32), "high"),
        onnx.numpy_helper.from_array(np.array(True), "go"),
        onnx.numpy_helper.from_array(np.array([], np.int64), "no_dims"),
        onnx.numpy_helper.from_array(np.array(0, np.int64), "nought"),
    ]
    source, target = model.inputs[0].name, model.outputs[0].name
    return [
        helper.make_node("Reshape", [source, "no_dims"], ["steps"]),
        helper.make_node("Loop", ["steps", "go", "weights"], ["matrix"], body=body),
        helper.make_node("ReduceMax", ["matrix"], ["largest"], keepdims=0),
        helper.make_node("Cast", ["largest"], ["whole"], to=TensorProto.INT64),
        helper.make_node("Mul", ["whole", "nought"], ["nothing"]),
        helper.make_node("Add", [source, "nothing"], [target]),
    ], constants


_NODES: dict[str, Callable[[TestModel, int], Nodes]] = {
    "identity": _identity,
    "add_sub": _add_sub,
    "add_version": _add_version,
    "fan_out": _fan_out,
    "spin": _spin,
}


def onnx_model(model: TestModel, version: int = 1) -> onnx.ModelProto:
    """The ONNX form of a model version; symbolic dims are named so that outputs follow inputs."""

    def value(tensor: TestTensor) -> onnx.ValueInfoProto:
        dims: list[int | str] = [f"d{at}" if dim == -1 else dim for at, dim in enumerate(tensor.model_dims)]
        if model.max_batch_size > 0:
            dims.insert(0, "batch")
        return helper.make_tensor_value_info(tensor.name, ONNX_TYPES[tensor.datatype], dims)

    nodes, constants = _NODES[model.operation](model, version)
    graph = helper.make_graph(nodes, model.name, list(map(value, model.inputs)), list(map(value, model.outputs)), constants)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(made)
    return made


# ---- Python models -------------------------------------------------------------------------------

_PYTHON_MODEL = """\
import json

import triton_python_backend_utils as pb_utils

OPERATION = "{operation}"


def compute(version, tensors, outputs):
    if OPERATION == "add_sub":
        first, second = (tensor.as_numpy() for tensor in tensors)
        return [pb_utils.Tensor(outputs[0], first + second), pb_utils.Tensor(outputs[1], first - second)]
    if OPERATION == "add_version":
        array = tensors[0].as_numpy()
        return [pb_utils.Tensor(outputs[0], array + array.dtype.type(version))]
    if OPERATION == "fan_out":
        tensors = tensors * len(outputs)
    made = []
    for tensor, name in zip(tensors, outputs):
        if {bf16}:
            made.append(pb_utils.Tensor.from_dlpack(name, tensor.to_dlpack()))
        else:
            made.append(pb_utils.Tensor(name, tensor.as_numpy()))
    return made


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        self.version = int(args["model_version"])
        self.inputs = [tensor["name"] for tensor in config["input"]]
        self.outputs = [tensor["name"] for tensor in config["output"]]
        if OPERATION == "fail":
            raise RuntimeError("this model fails to load")

    def execute(self, requests):
        responses = []
        for request in requests:
            tensors = [pb_utils.get_input_tensor_by_name(request, name) for name in self.inputs]
            responses.append(pb_utils.InferenceResponse(compute(self.version, tensors, self.outputs)))
        return responses
"""


# ---- folders -------------------------------------------------------------------------------------


def _shape_text(values: Iterable[int]) -> str:
    return "[ " + ", ".join(map(str, values)) + " ]"


def _tensor_text(tensor: TestTensor) -> str:
    lines = [f'    name: "{tensor.name}"', f"    data_type: {config_type(tensor.datatype)}", f"    dims: {_shape_text(tensor.dims)}"]
    if tensor.reshape is not None:
        lines.append(f"    reshape {{ shape: {_shape_text(tensor.reshape)} }}")
    if tensor.label_filename:
        lines.append(f'    label_filename: "{tensor.label_filename}"')
    return "  {\n" + "\n".join(lines) + "\n  }"


def config_text(model: TestModel, flavour: Flavour) -> str:
    """The ``config.pbtxt`` of a model."""
    parts = [f'name: "{model.name}"', f'backend: "{flavour.value}"', f"max_batch_size: {model.max_batch_size}"]
    for section, tensors in (("input", model.inputs), ("output", model.outputs)):
        parts.append(f"{section} [\n" + ",\n".join(map(_tensor_text, tensors)) + "\n]")
    if model.instances:
        parts.append(f"instance_group [ {{ count: {model.instances}, kind: KIND_CPU }} ]")
    if model.extra:
        parts.append(model.extra)
    return "\n".join(parts) + "\n"


def write_model(root: Path, model: TestModel, flavour: Flavour, config: str | None = None) -> Path:
    """Write a model's folder under ``root`` and return it. ``config`` replaces the generated text; "" means no file."""
    folder = root / model.name
    folder.mkdir(parents=True)
    text = config_text(model, flavour) if config is None else config
    if text:
        (folder / "config.pbtxt").write_text(text)
    for name, content in model.files.items():
        (folder / name).write_text(content)
    for name in model.folders:
        (folder / name).mkdir()
    for version in model.versions:
        place = folder / str(version)
        place.mkdir()
        write_model_file(place, model, flavour, version)
    return folder


def write_model_file(place: Path, model: TestModel, flavour: Flavour, version: int = 1) -> None:
    """Write the model file of one version into its folder."""
    if flavour is Flavour.PYTHON:
        bf16 = any(tensor.datatype == "BF16" for tensor in model.inputs)
        (place / "model.py").write_text(_PYTHON_MODEL.format(operation=model.operation, bf16=bf16))
    elif model.operation == "fail":
        (place / "model.onnx").write_bytes(b"this is no model")
    else:
        (place / "model.onnx").write_bytes(onnx_model(model, version).SerializeToString())


def write_repository(root: Path, models: Iterable[TestModel], flavour: Flavour) -> Path:
    """Write several models' folders and return ``root``."""
    root.mkdir(parents=True, exist_ok=True)
    for model in models:
        write_model(root, model, flavour)
    return root


# ---- the models ----------------------------------------------------------------------------------


def _one_to_one(
    name: str, operation: str, datatype: str, dims: tuple[int, ...], reshape: tuple[int, ...] | None = None, **options: Any
) -> TestModel:
    """A model from INPUT0 to an OUTPUT0 of the same datatype and shape."""
    source, target = (TestTensor(tensor, datatype, dims, reshape) for tensor in ("INPUT0", "OUTPUT0"))
    return TestModel(name, operation, (source,), (target,), **options)


SIMPLE = TestModel(
    "simple",
    "add_sub",
    (TestTensor("INPUT0", "INT32", (16,)), TestTensor("INPUT1", "INT32", (16,))),
    (TestTensor("OUTPUT0", "INT32", (16,)), TestTensor("OUTPUT1", "INT32", (16,))),
    max_batch_size=8,
    extra="dynamic_batching { }",
)
"""Sum and difference of two INT32[16], batches of up to 8, dynamic batching."""

PLAIN = replace(SIMPLE, name="plain", max_batch_size=0, extra="")
"""The same without a batch dimension."""

IDENTITIES = tuple(_one_to_one(f"identity_{datatype.lower()}", "identity", datatype, (-1,)) for datatype in DATATYPES)
"""One identity model for each datatype: INPUT0 to OUTPUT0, dims [-1], no batch dimension."""

BATCHED = _one_to_one("batched_fp32", "identity", "FP32", (-1,), max_batch_size=4)
"""Identity with a variable dim and a batch dimension of up to 4."""

BATCHED_BYTES = _one_to_one("batched_bytes", "identity", "BYTES", (2,), max_batch_size=4)
"""BYTES identity, dims [2], with a batch dimension of up to 4."""

MATRIX = _one_to_one("matrix", "identity", "FP32", (-1, -1))
"""Two variable dims: its raw input's shape cannot be deduced."""

FIXED = _one_to_one("fixed", "identity", "FP32", (2, 3), max_batch_size=0)
"""Fixed dims [2,3], no batch dimension."""

SCALAR = _one_to_one("scalar", "identity", "FP32", (1,), (), max_batch_size=8)
"""dims [1] that the model sees as no dims at all."""

FLAT = _one_to_one("flat", "identity", "FP32", (2, 2), (4,), max_batch_size=0)
"""dims [2,2] that the model sees as [4]."""

BYTES_ONE = _one_to_one("bytes_one", "identity", "BYTES", (1,))
"""BYTES with dims [1]: the one shape that a raw request may use."""

CLASSES = TestModel(
    "classes",
    "fan_out",
    (TestTensor("SCORES", "FP32", (4,)),),
    (TestTensor("LABELLED", "FP32", (4,), label_filename="labels.txt"), TestTensor("BARE", "FP32", (4,))),
    max_batch_size=8,
    files={"labels.txt": "cat\ndog\n\n"},
)
"""Identity with two outputs, one with a labels file that names classes 0 and 1 only."""

VERSIONS_LATEST = _one_to_one(
    "versions_latest", "add_version", "INT32", (-1,), versions=(1, 2, 3, 10), extra="version_policy { latest { num_versions: 2 } }"
)
VERSIONS_SPECIFIC = _one_to_one(
    "versions_specific",
    "add_version",
    "INT32",
    (-1,),
    versions=(1, 2, 3),
    extra="version_policy { specific { versions: [ 1, 3 ] } }",
)
VERSIONS_ALL = _one_to_one(
    "versions_all",
    "add_version",
    "INT32",
    (-1,),
    versions=(2, 5),
    extra="version_policy { all { } }",
    folders=("07", "notes", "warmup"),
)
VERSIONS_DEFAULT = _one_to_one("versions_default", "add_version", "INT32", (-1,), versions=(1, 4), instances=0)
"""Policies: each version adds its own number to its input."""

TUNED = _one_to_one(
    "tuned",
    "identity",
    "FP32",
    (4,),
    max_batch_size=8,
    instances=2,
    extra="""\
dynamic_batching {
  preferred_batch_size: [ 2, 4 ]
  max_queue_delay_microseconds: 100
  priority_levels: 3
  default_priority_level: 2
  default_queue_policy { timeout_action: REJECT, default_timeout_microseconds: 5000000, allow_timeout_override: true, max_queue_size: 100 }
  priority_queue_policy { key: 1 value { timeout_action: DELAY, default_timeout_microseconds: 7, max_queue_size: 3 } }
}
parameters { key: "intra_op_thread_count" value { string_value: "1" } }
metric_tags { key: "team" value: "red" }
model_transaction_policy { decoupled: false }
optimization { priority: PRIORITY_MAX, input_pinned_memory { enable: false }, gather_kernel_buffer_threshold: 3, eager_batching: true }
""",
)
"""A configuration that says much, for the configuration endpoint."""

SPIN = _one_to_one(
    "spin",
    "spin",
    "INT64",
    (1,),
    extra='parameters { key: "intra_op_thread_count" value { string_value: "1" } }',
)
"""Runs for as long as its input says (a number of matrix products), then answers its input. ONNX only."""

COUNTED = replace(SIMPLE, name="counted")
"""For tests that count: nobody else may ask it."""

PARITY_MODELS = (
    SIMPLE,
    COUNTED,
    PLAIN,
    *IDENTITIES,
    BATCHED,
    BATCHED_BYTES,
    MATRIX,
    FIXED,
    SCALAR,
    FLAT,
    BYTES_ONE,
    CLASSES,
    VERSIONS_LATEST,
    VERSIONS_SPECIFIC,
    VERSIONS_ALL,
    VERSIONS_DEFAULT,
    TUNED,
)
"""What the two servers of the parity tests serve."""
