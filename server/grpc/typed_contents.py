"""Tensors that came as typed lists (``InferTensorContents``) in the bytes that models take."""

from __future__ import annotations

from typing import Any

from ...shm.arrays import np
from ...shm.datatypes import DATATYPES, serialize_bytes
from ...workers.contract.status import invalid

_KINDS = (
    ("bool_contents", ("BOOL",)),
    ("int_contents", ("INT32", "INT8", "INT16")),
    ("int64_contents", ("INT64",)),
    ("uint_contents", ("UINT32", "UINT8", "UINT16")),
    ("uint64_contents", ("UINT64",)),
    ("fp32_contents", ("FP32",)),
    ("fp64_contents", ("FP64",)),
    ("bytes_contents", ("BYTES",)),
)
"""The lists in the order that they are looked at, and the datatypes that each may hold, its own first."""

_WIDE = {"int_contents": "int32", "uint_contents": "uint32"}


def typed_bytes(contents: Any, datatype: str, name: str, model: str) -> bytes:
    """The bytes of an input of this datatype; 8-bit and 16-bit integers are cut off to their lowest bits. Raises INVALID_ARG."""
    content: bytes | None = None
    known = datatype if datatype in DATATYPES else "<invalid>"
    for kind, datatypes in _KINDS:
        values = getattr(contents, kind)
        if not values:
            continue
        prefix = f"unexpected explicit tensor data for input tensor '{name}' for model '{model}'"
        if content is not None:
            raise invalid(f"{prefix}, binary data was already supplied.")
        if known not in datatypes:
            raise invalid(f"{prefix} of type '{datatypes[0]}', expected datatype '{known}'")
        content = serialize_bytes(values) if kind == "bytes_contents" else _stored(values, kind, known)
    return content or b""


def _stored(values: Any, kind: str, datatype: str) -> bytes:
    dtype = DATATYPES[datatype].dtype
    wide = np.dtype(_WIDE[kind]) if kind in _WIDE else dtype
    return np.fromiter(values, wide, len(values)).astype(dtype, copy=False).tobytes()
