"""ResNet-50 by the graph that the onnx package carries: its shapes and layers are real, its weights are constants."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto, helper, numpy_helper

BATCH_SIZE = 8
INPUT, OUTPUT = "gpu_0/data_0", "gpu_0/softmax_1"
DIMS, CLASSES = (3, 224, 224), 1000


def light_resnet50() -> onnx.ModelProto:
    """The graph for batches of any size; the package's is for one picture."""
    model = onnx.load(Path(onnx.__file__).parent / "backend" / "test" / "data" / "light" / "light_resnet50.onnx")
    graph = model.graph
    # Constants that are listed among the inputs count as changeable, and are not folded.
    del graph.input[:], graph.output[:]
    graph.input.append(helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["N", *DIMS]))
    graph.output.append(helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["N", CLASSES]))
    (reshape,) = (node for node in graph.node if node.op_type == "Reshape")
    (target,) = (constant for constant in graph.initializer if constant.name == reshape.input[1])
    shape = numpy_helper.to_array(target).copy()
    shape[0] = -1
    target.CopyFrom(numpy_helper.from_array(shape, target.name))
    # From 4 on, constants need not be inputs.
    model.ir_version = 4
    onnx.checker.check_model(model)
    return model


def write_resnet50(repository: Path, name: str = "resnet50") -> Path:
    """Write it as a model of a repository, one instance on each GPU; returns the ONNX file."""
    version = repository / name / "1"
    version.mkdir(parents=True)
    path = version / "model.onnx"
    onnx.save(light_resnet50(), path)
    (version.parent / "config.pbtxt").write_text(
        f'name: "{name}" backend: "onnxruntime" max_batch_size: {BATCH_SIZE}\n'
        f'input [ {{ name: "{INPUT}" data_type: TYPE_FP32 dims: [ {", ".join(map(str, DIMS))} ] }} ]\n'
        f'output [ {{ name: "{OUTPUT}" data_type: TYPE_FP32 dims: [ {CLASSES} ] }} ]\n'
    )
    return path
