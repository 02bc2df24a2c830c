"""Raw inference requests, and bodies of any kind."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorfarm.server.door.scratch import Scratch
from tensorfarm.server.http.infer_call import IN_BINARY, InferCall, infer_settings
from tensorfarm.server.http.infer_request import read_request
from tensorfarm.shm.datatypes import DATATYPES, serialize_bytes
from tensorfarm.workers.contract.signature import Signature
from tensorfarm.workers.contract.status import Code, StatusError

from .echo_service import EchoService, echo_signature, http_request, spec
from .infer_reading import (
    LIMIT,
    TYPES,
    content_of,
    inputs,
    read,
    tensor,
)

# raw requests


def raw(signature: Signature, content: bytes, limit: int = LIMIT) -> InferCall:
    return read_request(http_request(content), 0, signature, EchoService({}).regions, Scratch(), infer_settings(limit, ""))


@pytest.mark.parametrize(
    ("datatype", "dims", "batching", "content", "shape"),
    [
        ("INT32", (1,), False, b"1234", (1,)),
        ("FP32", (2, -1), False, bytes(24), (2, 3)),
        ("FP32", (2, -1), True, bytes(24), (1, 2, 3)),
        ("FP32", (2, -1), True, b"", (1, 2, 0)),
        ("BYTES", (1,), True, b"hello", (1, 1)),
        ("BYTES", (1,), False, b"", (1,)),
    ],
)
def test_raw(datatype: str, dims: tuple[int, ...], batching: bool, content: bytes, shape: tuple[int, ...]) -> None:
    call = raw(echo_signature("m", [spec("I", datatype, *dims, batching=batching)], 4 if batching else 0), content)
    (item,) = call.body.inputs
    assert (item.name, item.datatype, item.shape) == ("I", datatype, shape)
    assert content_of(call) == (struct.pack("<I", len(content)) + content if datatype == "BYTES" else content)
    assert (call.form, call.body.outputs) == (IN_BINARY, [])


@pytest.mark.parametrize(
    ("specs", "content", "message"),
    [
        (
            [spec("I", "INT8", 1), spec("J", "INT8", 1)],
            b"",
            "[request id: <id_unknown>] Raw request must only have 1 input (found 1) to be deduced but got 2 inputs in 'm' model configuration",
        ),
        (
            [spec("I", "FP32", -1, -1)],
            b"",
            "[request id: <id_unknown>] The shape of the raw input 'I' can not be deduced because there are more than one variable-sized dimension",
        ),
        ([spec("I", "BYTES", 2)], b"", "[request id: <id_unknown>] For BYTE datatype raw input 'I', the model must have input shape [1]"),
        (
            [spec("I", "FP32", 3)],
            bytes(8),
            "[request id: <id_unknown>] input byte size mismatch for input 'raw_input' for model 'm'. Expected 12, got 8",
        ),
        (
            [spec("I", "FP32", 2, -1)],
            bytes(20),
            "[request id: <id_unknown>] input byte size mismatch for input 'raw_input' for model 'm'. Expected 16, got 20",
        ),
        (
            [spec("I", "INT8", -1)],
            bytes(101),
            "Raw input has a byte_size (101 bytes) that exceeds the maximum allowed value of 100 bytes. "
            "Use --http-max-input-size to increase the limit.",
        ),
    ],
)
def test_raw_faults(specs: list[Any], content: bytes, message: str) -> None:
    with pytest.raises(StatusError) as caught:
        raw(echo_signature("m", specs), content, 100)
    assert caught.value.message == message


# anything


@st.composite
def tensors(draw: st.DrawFn) -> tuple[str, list[int], np.ndarray[Any, Any]]:
    datatype = draw(st.sampled_from(sorted(set(DATATYPES) - {"BYTES", "BF16"})))
    shape = draw(st.lists(st.integers(0, 4), min_size=1, max_size=3))
    dtype = DATATYPES[datatype].dtype
    content = draw(st.binary(min_size=int(np.prod(shape)) * dtype.itemsize, max_size=int(np.prod(shape)) * dtype.itemsize))
    array = np.frombuffer(content, dtype).reshape(shape)
    return datatype, shape, (array.view(np.uint8) != 0) if datatype == "BOOL" else array


@given(tensors(), st.booleans())
def test_tensors_arrive(given_tensor: tuple[str, list[int], np.ndarray[Any, Any]], flat: bool) -> None:
    datatype, shape, array = given_tensor
    name = f"I{datatype}"
    call = read(inputs(tensor(name, datatype, shape, binary_data_size=array.nbytes)), array.tobytes())
    assert content_of(call) == array.tobytes()
    if datatype != "FP16":
        call = read(inputs(tensor(name, datatype, shape, (array.ravel() if flat else array).tolist())))
        arrived = np.frombuffer(content_of(call), array.dtype).reshape(shape)
        assert np.array_equal(arrived, array, equal_nan=array.dtype.kind == "f")


@given(st.lists(st.binary(max_size=8), max_size=5))
def test_any_strings_arrive(elements: list[bytes]) -> None:
    texts = [element.decode("utf-8", "replace") for element in elements]
    call = read(inputs(tensor("IBYTES", "BYTES", [len(texts)], texts)))
    assert content_of(call) == serialize_bytes(text.encode() for text in texts)


_PIECES = st.sampled_from(
    [
        b'{"inputs":[',
        b'{"name":"IINT32",',
        b'"datatype":"INT32",',
        b'"shape":[1],',
        b'"data":[1]}',
        b"]}",
        b'"id":"x",',
        b'"parameters":{',
        b"}",
        b",",
        b"[",
        b"]",
        b'"binary_data_size":4',
        b"NaN",
        b"\xff",
        b"-1",
        b'"outputs":[{"name":"O"}]',
        b":",
    ]
)


@settings(max_examples=300)
@given(st.binary(max_size=200) | st.lists(_PIECES, max_size=20).map(b"".join), st.integers(0, 220))
def test_any_body_is_read_or_refused(content: bytes, json_size: int) -> None:
    request = http_request(content)
    try:
        read_request(request, min(json_size, len(content)), TYPES, EchoService({}).regions, Scratch(), infer_settings(LIMIT, ".*"))
    except StatusError as error:
        assert error.code in (Code.INTERNAL, Code.INVALID_ARG)
