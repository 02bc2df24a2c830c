"""Typed lists as the bytes that models take. Texts were asked of release 24.10."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from tensorfarm.server.grpc.typed_contents import typed_bytes
from tensorfarm.workers.contract.status import Code, StatusError


def contents(**lists: Any) -> Any:
    """Typed contents, through the wire."""
    return service_pb2.InferTensorContents.FromString(service_pb2.InferTensorContents(**lists).SerializeToString())


def stored(datatype: str, **lists: Any) -> bytes:
    return typed_bytes(contents(**lists), datatype, "I", "types")


@pytest.mark.parametrize(
    ("datatype", "kind", "values", "expected"),
    [
        ("BOOL", "bool_contents", [True, False, True], b"\1\0\1"),
        ("INT8", "int_contents", [1, 300, -1], b"\x01\x2c\xff"),
        ("INT16", "int_contents", [70_000, -2], b"\x70\x11\xfe\xff"),
        ("INT32", "int_contents", [-(2**31), 2**31 - 1], np.array([-(2**31), 2**31 - 1], np.int32).tobytes()),
        ("INT64", "int64_contents", [-(2**63), 2**63 - 1], np.array([-(2**63), 2**63 - 1], np.int64).tobytes()),
        ("UINT8", "uint_contents", [300, 255], b"\x2c\xff"),
        ("UINT16", "uint_contents", [70_000], b"\x70\x11"),
        ("UINT32", "uint_contents", [2**32 - 1], b"\xff" * 4),
        ("UINT64", "uint64_contents", [2**64 - 1, 1], b"\xff" * 8 + b"\1" + bytes(7)),
        ("FP32", "fp32_contents", [0.5, float("inf")], np.array([0.5, np.inf], np.float32).tobytes()),
        ("FP64", "fp64_contents", [0.1], np.array([0.1], np.float64).tobytes()),
        ("BYTES", "bytes_contents", [b"ab", b"", b"\xff"], b"\2\0\0\0ab\0\0\0\0\1\0\0\0\xff"),
    ],
)
def test_lists(datatype: str, kind: str, values: list[Any], expected: bytes) -> None:
    assert stored(datatype, **{kind: values}) == expected


def test_no_list_is_nothing() -> None:
    assert stored("INT32") == stored("FP16") == stored("FOO") == b""


PREFIX = "unexpected explicit tensor data for input tensor 'I' for model 'types'"
SUPPLIED = f"{PREFIX}, binary data was already supplied."


@pytest.mark.parametrize(
    ("datatype", "lists", "text"),
    [
        ("FP16", {"fp32_contents": [1]}, f"{PREFIX} of type 'FP32', expected datatype 'FP16'"),
        ("BF16", {"fp64_contents": [1]}, f"{PREFIX} of type 'FP64', expected datatype 'BF16'"),
        ("INT8", {"uint_contents": [1]}, f"{PREFIX} of type 'UINT32', expected datatype 'INT8'"),
        ("INT32", {"bool_contents": [True]}, f"{PREFIX} of type 'BOOL', expected datatype 'INT32'"),
        ("INT32", {"int64_contents": [1]}, f"{PREFIX} of type 'INT64', expected datatype 'INT32'"),
        ("INT32", {"uint64_contents": [1]}, f"{PREFIX} of type 'UINT64', expected datatype 'INT32'"),
        ("INT32", {"bytes_contents": [b""]}, f"{PREFIX} of type 'BYTES', expected datatype 'INT32'"),
        ("BYTES", {"int_contents": [1]}, f"{PREFIX} of type 'INT32', expected datatype 'BYTES'"),
        ("FOO", {"int_contents": [1]}, f"{PREFIX} of type 'INT32', expected datatype '<invalid>'"),
        ("", {"int_contents": [1]}, f"{PREFIX} of type 'INT32', expected datatype '<invalid>'"),
        ("INT32", {"int_contents": [1], "int64_contents": [1]}, SUPPLIED),
        ("INT32", {"bool_contents": [True], "int_contents": [1]}, f"{PREFIX} of type 'BOOL', expected datatype 'INT32'"),
        ("BOOL", {"bool_contents": [True], "int_contents": [1]}, SUPPLIED),
    ],
)
def test_lists_that_are_refused(datatype: str, lists: dict[str, Any], text: str) -> None:
    with pytest.raises(StatusError) as caught:
        stored(datatype, **lists)
    assert (caught.value.code, caught.value.message) == (Code.INVALID_ARG, text)
