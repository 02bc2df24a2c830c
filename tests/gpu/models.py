"""What the tests serve: models without an instance group, which go to the GPU, each with a twin on the CPU that must answer alike."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ..ensembles import Step, TestEnsemble, write_ensembles
from ..model_repository import (
    BATCHED_BYTES,
    IDENTITIES,
    IR_VERSION,
    OPSET,
    SIMPLE,
    Flavour,
    TestModel,
    TestTensor,
    write_repository,
)

PYTHON_MODELS = Path(__file__).resolve().parent / "python_models"
MIB = 1 << 20

ARITHMETIC = ("INT32", "INT64", "FP16", "FP32", "FP64")
"""Datatypes that ONNX Runtime adds on both sides."""


def on_gpu(model: TestModel) -> TestModel:
    """The model without an instance group: one instance on each GPU."""
    return replace(model, instances=0)


def on_cpu(model: TestModel) -> TestModel:
    """Its twin."""
    return replace(model, name=f"{model.name}_cpu", instances=1)


def add_sub(datatype: str) -> TestModel:
    """Sum and difference of tensors of any length, batches of up to 8."""
    inputs = tuple(TestTensor(name, datatype, (-1,)) for name in ("INPUT0", "INPUT1"))
    outputs = tuple(TestTensor(name, datatype, (-1,)) for name in ("OUTPUT0", "OUTPUT1"))
    return TestModel(f"add_sub_{datatype.lower()}", "add_sub", inputs, outputs, max_batch_size=8)


ADD_SUBS = tuple(add_sub(datatype) for datatype in ARITHMETIC)

GATHERED = replace(SIMPLE, name="gathered", instances=0, extra="dynamic_batching { max_queue_delay_microseconds: 50000 }")
"""Waits for other requests, and runs them together."""

LARGE = TestModel("large", "identity", (TestTensor("INPUT0", "FP32", (-1,)),), (TestTensor("OUTPUT0", "FP32", (-1,)),))
"""Identity for tensors of any size."""

CHAIN = TestEnsemble(
    "chain",
    (
        Step("large", {"INPUT0": "IN"}, {"OUTPUT0": "between"}),
        Step("large", {"INPUT0": "between"}, {"OUTPUT0": "OUT"}),
    ),
    (TestTensor("IN", "FP32", (-1,)),),
    (TestTensor("OUT", "FP32", (-1,)),),
)
"""Twice through the same model on the GPU."""

MIXED_CHAIN = replace(
    CHAIN,
    name="mixed_chain",
    steps=(Step("large", {"INPUT0": "IN"}, {"OUTPUT0": "between"}), Step("large_cpu", {"INPUT0": "between"}, {"OUTPUT0": "OUT"})),
)
"""From the GPU to the CPU."""

DENSE_WIDTH, DENSE_CLASSES = 64, 10


def write_gpu_repository(root: Path) -> Path:
    """Write all of them; returns ``root``."""
    twice = (SIMPLE, *IDENTITIES, *ADD_SUBS, BATCHED_BYTES, LARGE)
    write_repository(root, [on_gpu(model) for model in twice] + [on_cpu(model) for model in twice] + [GATHERED], Flavour.ONNX)
    write_dense(root, "dense")
    write_dense(root, "dense_cpu", "instance_group [ { count: 1, kind: KIND_CPU } ]")
    write_dense(root, "dense_graphs", "optimization { cuda { graphs: true } }")
    write_distinct(root)
    write_ensembles(root, (CHAIN, MIXED_CHAIN))
    return root


def dense(width: int = DENSE_WIDTH, layers: int = 2) -> onnx.ModelProto:
    """FP32[N, width] through matrix products to the likelihood of ``DENSE_CLASSES`` classes."""
    random = np.random.default_rng(17)
    nodes, constants, before = [], [], "X"
    for layer in range(layers):
        size = DENSE_CLASSES if layer == layers - 1 else width
        weights = (random.standard_normal((width, size)) / np.sqrt(width)).astype(np.float32)
        constants.append(numpy_helper.from_array(weights, f"W{layer}"))
        nodes.append(helper.make_node("MatMul", [before, f"W{layer}"], [f"product{layer}"]))
        before = f"product{layer}"
        if layer < layers - 1:
            nodes.append(helper.make_node("Relu", [before], [f"activation{layer}"]))
            before = f"activation{layer}"
    nodes.append(helper.make_node("Softmax", [before], ["Y"], axis=-1))
    graph = helper.make_graph(
        nodes,
        "dense",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, ["batch", width])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, ["batch", DENSE_CLASSES])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


def write_dense(root: Path, name: str, extra: str = "", width: int = DENSE_WIDTH, layers: int = 2) -> None:
    """Write a model of matrix products, batches of up to 8."""
    version = root / name / "1"
    version.mkdir(parents=True)
    (version / "model.onnx").write_bytes(dense(width, layers).SerializeToString())
    (version.parent / "config.pbtxt").write_text(
        f'name: "{name}" backend: "onnxruntime" max_batch_size: 8\n'
        f'input [ {{ name: "X" data_type: TYPE_FP32 dims: [ {width} ] }} ]\n'
        f'output [ {{ name: "Y" data_type: TYPE_FP32 dims: [ {DENSE_CLASSES} ] }} ]\n'
        f"{extra}\n"
    )


def write_distinct(root: Path) -> None:
    """Write ``distinct``: of FP32[-1] the numbers that differ, in their order, so that the shape follows from the content."""
    graph = helper.make_graph(
        [helper.make_node("Unique", ["X"], ["Y"], sorted=1)],
        "distinct",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, ["count"])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, ["distinct"])],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    version = root / "distinct" / "1"
    version.mkdir(parents=True)
    (version / "model.onnx").write_bytes(made.SerializeToString())
    (version.parent / "config.pbtxt").write_text(
        'name: "distinct" backend: "onnxruntime"\n'
        'input [ { name: "X" data_type: TYPE_FP32 dims: [ -1 ] } ]\n'
        'output [ { name: "Y" data_type: TYPE_FP32 dims: [ -1 ] } ]\n'
    )


def put_python(root: Path, name: str, kind: str, source: Path = PYTHON_MODELS, model: str = "", extra: Iterable[str] = ()) -> None:
    """A copy of a Python model under another name, with its instance on the kind of device that is said."""
    folder = Path(shutil.copytree(source / (model or name), root / name))
    config = folder / "config.pbtxt"
    text = config.read_text().replace(f'"{model or name}"', f'"{name}"').replace("KIND_CPU", kind)
    config.write_text("\n".join([text, *extra, ""]))


def parameter(name: str, value: str) -> str:
    """A line of a configuration."""
    return f'parameters {{ key: "{name}" value {{ string_value: "{value}" }} }}'
