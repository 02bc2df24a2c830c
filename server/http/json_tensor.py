"""Tensor data in JSON: nested arrays to stored bytes, and stored bytes to a flat array."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

import msgspec
import numpy as np

from ...shm.datatypes import DATATYPES, iter_bytes, serialize_bytes
from ...workers.contract.status import internal, invalid
from .json_text import DEPTH_MESSAGE, MAX_DEPTH, doubles, quote, wrong_type

_MISFIT = "Unable to parse 'data': Shape does not match true shape of 'data' field"
_SIGNED = (frozenset((int,)), "signed-integer", -(2**63), 2**63)
_UNSIGNED = (frozenset((int,)), "unsigned-integer", 0, 2**64)
_DOUBLE = (frozenset((int, float)), "number", None, None)
_RULES: dict[str, tuple[frozenset[type], str, int | None, int | None]] = {
    "BOOL": (frozenset((bool,)), "boolean", None, None),
    **{f"INT{width}": _SIGNED for width in (8, 16, 32, 64)},
    **{f"UINT{width}": _UNSIGNED for width in (8, 16, 32, 64)},
    "FP32": _DOUBLE,
    "FP64": _DOUBLE,
}
_WIDE = {"signed-integer": np.dtype(np.int64), "unsigned-integer": np.dtype(np.uint64), "number": np.dtype(np.float64)}


def tensor_bytes(values: list[Any], datatype: str, count: int) -> bytes:
    """The stored form of a JSON array of ``count`` elements, nested in any way; ``datatype`` is neither BYTES nor 16-bit float.

    Integers wrap to the width of the datatype. Raises StatusError: INTERNAL for elements of a wrong
    type or number, INVALID_ARG for too deep a nesting.
    """
    types, kind, least, beyond = _RULES[datatype]
    flat = _flat(values, "Unable to parse 'data': ")
    unfit = not types.issuperset(map(type, flat))
    if not unfit and least is not None and beyond is not None and flat:
        unfit = min(flat) < least or max(flat) >= beyond
    if unfit:
        for value in flat[:count]:
            if type(value) not in types or (least is not None and beyond is not None and not least <= value < beyond):
                raise internal(f"Unable to parse 'data': {wrong_type(kind)}")
    if len(flat) != count:
        raise internal(_MISFIT)
    dtype = DATATYPES[datatype].dtype
    with np.errstate(over="ignore"):
        return np.array(flat, dtype=_WIDE.get(kind, dtype)).astype(dtype, copy=False).tobytes()


def string_tensor_bytes(values: list[Any]) -> bytes:
    """The stored form of a JSON array of strings, nested in any way: a BYTES tensor of as many elements as there are.

    Raises StatusError: INTERNAL for elements that are no strings, INVALID_ARG for too deep a nesting.
    """
    flat = _flat(values, "")
    for value in flat:
        if type(value) is not str:
            raise internal(f"Unable to parse JSON bytes array: {wrong_type('string')}")
    return serialize_bytes(value.encode("utf-8", "surrogateescape") for value in flat)


def _flat(values: list[Any], prefix: str) -> list[Any]:
    depth = 1
    while True:
        kinds = set(map(type, values))
        if list not in kinds:
            return values
        if len(kinds) > 1:
            return list(_uneven(values, depth, prefix))
        depth += 1
        if depth > MAX_DEPTH:
            raise invalid(prefix + DEPTH_MESSAGE)
        values = list(chain.from_iterable(values))


def _uneven(values: list[Any], depth: int, prefix: str) -> Iterator[Any]:
    stack = [iter(values)]
    while stack:
        for value in stack[-1]:
            if type(value) is list:
                if depth + len(stack) > MAX_DEPTH:
                    raise invalid(prefix + DEPTH_MESSAGE)
                stack.append(iter(value))
                break
            yield value
        else:
            stack.pop()


def json_array(content: memoryview, datatype: str) -> tuple[bytes, int]:
    """A tensor as one flat JSON array, and its element count. Raises ValueError where the bytes are no whole elements."""
    if datatype == "BYTES":
        strings = [quote(element) for element in iter_bytes(content)]
        return b"[" + b",".join(strings) + b"]", len(strings)
    array = np.frombuffer(content, DATATYPES[datatype].dtype)
    if datatype == "BOOL":
        # any byte but zero is true
        array = array.view(np.uint8) != 0
    values = array.tolist()
    return (doubles(values) if array.dtype.kind == "f" else msgspec.json.encode(values)), len(values)
