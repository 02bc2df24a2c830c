"""Builds an ONNX graph node by node: constants by value, tensors by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike
from onnx import TensorProto, helper, numpy_helper

Shape = Sequence[int | str]


class Graph:
    """The nodes and constants collected so far."""

    def __init__(self) -> None:
        self._nodes: list[Any] = []
        self._constants: dict[str, Any] = {}

    def constant(self, value: ArrayLike, dtype: type[np.generic]) -> str:
        """Name a constant tensor; equal constants share one."""
        # ascontiguousarray would turn a scalar into a vector
        array = np.array(value, dtype, order="C")
        name = f"constant_{len(self._constants)}"
        if array.size <= 16:
            name = f"constant_{array.dtype}_{'x'.join(map(str, array.shape))}_{array.tobytes().hex()}"
        if name not in self._constants:
            self._constants[name] = numpy_helper.from_array(array, name)
        return name

    def add(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Add a node with one output and return that output's name."""
        output = output or f"{operator}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, list(inputs), [output], **attributes))
        return output

    def model(self, name: str, inputs: dict[str, tuple[int, Shape]], outputs: dict[str, tuple[int, Shape]], opset: int = 17) -> bytes:
        """The checked, serialised model. Inputs and outputs map a name to an ONNX element type and a shape."""
        graph = helper.make_graph(
            self._nodes,
            name,
            [helper.make_tensor_value_info(tensor, number, list(shape)) for tensor, (number, shape) in inputs.items()],
            [helper.make_tensor_value_info(tensor, number, list(shape)) for tensor, (number, shape) in outputs.items()],
            list(self._constants.values()),
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
        onnx.checker.check_model(model)
        return bytes(model.SerializeToString())


FLOAT, INT32, INT64 = int(TensorProto.FLOAT), int(TensorProto.INT32), int(TensorProto.INT64)
