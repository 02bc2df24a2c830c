"""The tensors that an ONNX model declares, in Triton's terms."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ...shm.datatypes import DATATYPES, Datatype
from ..contract.status import unsupported

_ELEMENTS = {
    "bool": ("BOOL", "BOOL"),
    "uint8": ("UINT8", "UINT8"),
    "uint16": ("UINT16", "UINT16"),
    "uint32": ("UINT32", "UINT32"),
    "uint64": ("UINT64", "UINT64"),
    "int8": ("INT8", "INT8"),
    "int16": ("INT16", "INT16"),
    "int32": ("INT32", "INT32"),
    "int64": ("INT64", "INT64"),
    "float16": ("FP16", "FLOAT16"),
    "float": ("FP32", "FLOAT"),
    "double": ("FP64", "DOUBLE"),
    "string": ("BYTES", "STRING"),
    "bfloat16": ("BF16", "BFLOAT16"),
}
"""Datatype and ONNX name by the element type in ONNX Runtime's type strings."""

ELEMENT_NUMBERS = {
    **{"FP32": 1, "UINT8": 2, "INT8": 3, "UINT16": 4, "INT16": 5, "INT32": 6, "INT64": 7, "BYTES": 8},
    **{"BOOL": 9, "FP16": 10, "FP64": 11, "UINT32": 12, "UINT64": 13, "BF16": 16},
}
"""The datatypes in ``TensorProto.DataType``."""

BF16_ELEMENT = ELEMENT_NUMBERS["BF16"]
"""numpy has no such type, so ONNX Runtime must be told."""

_KINDS = (
    ("seq(", "ONNX_TYPE_SEQUENCE"),
    ("map(", "ONNX_TYPE_MAP"),
    ("sparse_tensor(", "ONNX_TYPE_SPARSETENSOR"),
    ("opaque(", "ONNX_TYPE_OPAQUE"),
)


@dataclass(frozen=True, slots=True)
class GraphTensor:
    """An input, output or overridable initialiser of a model.

    ``datatype`` is None for element types that the protocol has no name for. ``shape`` includes the
    batch dim; symbolic and unknown dims are -1; empty for scalars, and where the model tells no rank.
    """

    name: str
    datatype: Datatype | None
    shape: tuple[int, ...]
    onnx_name: str

    @property
    def scalar(self) -> bool:
        """Has it no dims at all?"""
        return not self.shape

    @property
    def type_name(self) -> str:
        """The datatype as the message about a mismatch writes it: strings are TYPE_BYTES there."""
        return f"TYPE_{self.datatype.name}" if self.datatype is not None else "TYPE_<invalid>"


@dataclass(frozen=True, slots=True)
class Graph:
    """What a model takes and gives; ``initializers`` are inputs with a default, which a request may leave out."""

    inputs: dict[str, GraphTensor] = field(default_factory=dict)
    outputs: dict[str, GraphTensor] = field(default_factory=dict)
    initializers: dict[str, GraphTensor] = field(default_factory=dict)


def graph_of(session: Any) -> Graph:
    """Read the tensors of an ``InferenceSession``.

    Raises UNSUPPORTED where one of them is no dense tensor (a sequence or map of scikit-learn's converters, say).
    """
    return Graph(
        inputs=_tensors(session.get_inputs()),
        outputs=_tensors(session.get_outputs()),
        initializers=_tensors(session.get_overridable_initializers()),
    )


def _tensors(nodes: Iterable[Any]) -> dict[str, GraphTensor]:
    return {node.name: _tensor(node.name, node.type, node.shape) for node in nodes}


def _tensor(name: str, type_text: str, shape: Iterable[int | str | None]) -> GraphTensor:
    if not type_text.startswith("tensor("):
        kind = next((kind for prefix, kind in _KINDS if type_text.startswith(prefix)), "ONNX_TYPE_UNKNOWN")
        raise unsupported(f"Unsupported ONNX Type '{kind}' for I/O '{name}', expected 'ONNX_TYPE_TENSOR'.")
    dims = tuple([dim if isinstance(dim, int) and dim >= 0 else -1 for dim in shape])
    datatype_name, onnx_name = _ELEMENTS.get(type_text[len("tensor(") : -1], ("", "UNDEFINED"))
    return GraphTensor(name, DATATYPES.get(datatype_name), dims, onnx_name)
