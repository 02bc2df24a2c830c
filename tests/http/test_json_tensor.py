"""Tensor data in JSON, right and wrong. Asked of release 24.10, except where a test says otherwise."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import numpy as np
import pytest

from tensorfarm.server.door.scratch import INLINE_BYTE_SIZE, Scratch
from tensorfarm.shm.datatypes import serialize_bytes
from tensorfarm.shm.placement import Lease
from tensorfarm.workers.contract.status import Code

from .echo_service import private_arena
from .infer_reading import (
    NOT_ARRAY,
    NOT_BOOLEAN,
    NOT_STRING,
    NOT_UNSIGNED,
    content_of,
    inputs,
    numbers,
    read,
    refusal,
    tensor,
)

# JSON data


@pytest.mark.parametrize(
    ("datatype", "data", "expected"),
    [
        ("INT32", "[4294967297,-2147483649]", [1, 2147483647]),
        ("INT32", "[9223372036854775807,-9223372036854775808]", [-1, 0]),
        ("INT64", "[9223372036854775807,-9223372036854775808]", [2**63 - 1, -(2**63)]),
        ("INT8", "[128,-129,1000]", [-128, 127, -24]),
        ("INT16", "[32768,-0]", [-32768, 0]),
        ("UINT8", "[256,300]", [0, 44]),
        ("UINT32", "[4294967296]", [0]),
        ("UINT64", "[18446744073709551615]", [2**64 - 1]),
        ("BOOL", "[true,false]", [True, False]),
        ("FP32", "[1,1.5,-0,-0.0,1e39]", [1.0, 1.5, 0.0, -0.0, float("inf")]),
        ("FP32", "[Inf,-Infinity]", [float("inf"), float("-inf")]),
        ("FP64", "[0.1,18446744073709551615,123456789012345678901234567890]", [0.1, 2.0**64, 123456789012345678901234567890.0]),
        ("INT32", "[[1,2],[3,4]]", [1, 2, 3, 4]),
        ("INT32", "[1,[2,[3]],[]]", [1, 2, 3]),
        ("INT32", "[" * 100 + "1" + "]" * 100, [1]),
        ("INT32", "[[" + "[" * 98 + "1" + "]" * 98 + "],2]", [1, 2]),
    ],
)
def test_json_data(datatype: str, data: str, expected: list[Any]) -> None:
    text = f'{{"inputs":[{{"name":"I{datatype}","datatype":"{datatype}","shape":[{len(expected)}],"data":{data}}}]}}'
    got = numbers(read(text.encode()))
    assert repr(got) == repr(expected)


@pytest.mark.parametrize("data", [[], 5, [1], ["x"]])
def test_data_of_nothing_is_not_looked_at(data: Any) -> None:
    assert content_of(read(inputs(tensor(shape=[0], data=data)))) == b""


MISFIT = "Unable to parse 'data': Shape does not match true shape of 'data' field"
NOT_SIGNED = "Unable to parse 'data': attempt to access JSON non-signed-integer as signed-integer"
DATA: list[tuple[str, str, int, str]] = [
    ("INT32", "[1]", 2, MISFIT),
    ("INT32", "[1,2,3]", 2, MISFIT),
    ("INT32", '[1,2,"x"]', 2, MISFIT),
    ("INT32", "[[]]", 1, MISFIT),
    ("INT32", '[1,"x"]', 2, NOT_SIGNED),
    ("INT32", "[1,1.0]", 2, NOT_SIGNED),
    ("INT32", "[1,true]", 2, NOT_SIGNED),
    ("INT32", "[1,null]", 2, NOT_SIGNED),
    ("INT32", "[1,{}]", 2, NOT_SIGNED),
    ("INT32", "[NaN]", 1, NOT_SIGNED),
    ("INT32", "[9223372036854775808]", 1, NOT_SIGNED),
    ("INT64", "[-9223372036854775809]", 1, NOT_SIGNED),
    ("UINT8", "[-1,300]", 2, f"Unable to parse 'data': {NOT_UNSIGNED}"),
    ("UINT64", "[18446744073709551616]", 1, f"Unable to parse 'data': {NOT_UNSIGNED}"),
    ("BOOL", "[1]", 1, f"Unable to parse 'data': {NOT_BOOLEAN}"),
    ("FP32", '["1"]', 1, "Unable to parse 'data': attempt to access JSON non-number as double"),
    ("FP64", "[true]", 1, "Unable to parse 'data': attempt to access JSON non-number as double"),
    ("INT32", "{}", 1, f"Unable to parse 'data': {NOT_ARRAY}"),
    ("INT32", "null", 1, f"Unable to parse 'data': {NOT_ARRAY}"),
    ("BYTES", '"x"', 1, f"Unable to parse 'data': {NOT_ARRAY}"),
    ("BYTES", "[1]", 1, f"Unable to parse JSON bytes array: {NOT_STRING}"),
    ("BYTES", '["a",null]', 2, f"Unable to parse JSON bytes array: {NOT_STRING}"),
]


@pytest.mark.parametrize(("datatype", "data", "count", "message"), DATA)
def test_data_faults(datatype: str, data: str, count: int, message: str) -> None:
    text = f'{{"inputs":[{{"name":"I{datatype}","datatype":"{datatype}","shape":[{count}],"data":{data}}}]}}'
    assert refusal(text.encode()) == (Code.INTERNAL, message)


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_half_precision_has_no_json_form(datatype: str) -> None:
    text = f"receiving {datatype} data via JSON is not supported. Please use the binary data format for input I{datatype}"
    assert refusal(inputs(tensor(f"I{datatype}", datatype, data=[1]))) == (Code.INVALID_ARG, text)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ([2**63], "invalid shape for input 'IINT32': shape [-9223372036854775808] contains one or more invalid dimensions"),
        ([2**64 - 1], "invalid shape for input 'IINT32': shape [-1] contains one or more invalid dimensions"),
        (
            [2**4, 2**60 + 2],
            "invalid shape for input 'IINT32': shape [16,1152921504606846978] causes total element count to exceed maximum size of "
            "9223372036854775807",
        ),
        (
            [2**62],
            "byte size overflow for input 'IINT32': element count (4611686018427387904) * data type size (4) exceeds maximum allowed size "
            "(9223372036854775807)",
        ),
        (
            [2**40],
            "JSON input 'IINT32' has a byte_size (4398046511104 bytes) that exceeds the maximum allowed value of 67108864 bytes. "
            "Use --http-max-input-size to increase the limit.",
        ),
    ],
)
def test_sizes_that_overflow(shape: list[int], message: str) -> None:
    """Texts of a later release: these kill 24.10."""
    assert refusal(inputs(tensor(shape=shape, data=[1]))) == (Code.INVALID_ARG, message)


@pytest.mark.parametrize("data", ["[" * 101 + "1" + "]" * 101, "[2," + "[" * 100 + "1" + "]" * 101])
def test_data_nested_too_deep(data: str) -> None:
    """A limit of a later release."""
    text = f'{{"inputs":[{{"name":"IINT32","datatype":"INT32","shape":[1],"data":{data}}}]}}'
    assert refusal(text.encode()) == (Code.INVALID_ARG, "Unable to parse 'data': JSON nesting depth exceeds maximum allowed limit (100)")


@pytest.mark.parametrize(("depth", "prefix"), [(102, True), (497, True), (498, False), (700, False), (990, False), (5000, False)])
def test_who_is_blamed_for_too_deep_a_nesting(depth: int, prefix: bool) -> None:
    """The depth decides, not how much of its stack Python has left."""
    text = f'{{"inputs":[{{"name":"IINT32","datatype":"INT32","shape":[1],"data":{"[" * depth}1{"]" * depth}}}]}}'
    message = "JSON nesting depth exceeds maximum allowed limit (100)"

    def deeper(frames: int) -> tuple[Code, str]:
        return refusal(text.encode()) if not frames else deeper(frames - 1)

    for frames in (0, 200):
        assert deeper(frames) == (Code.INVALID_ARG, f"Unable to parse 'data': {message}" if prefix else message)


@pytest.mark.parametrize("text", [b"[" * 250_000, b'{"x":' + b"[" * 500 + b"]" * 500 + b',"inputs":[]}', b'{"id":' * 250_000])
def test_bodies_nested_too_deep(text: bytes) -> None:
    assert refusal(text) == (Code.INVALID_ARG, "JSON nesting depth exceeds maximum allowed limit (100)")


def test_strings() -> None:
    text = b'{"inputs":[{"name":"IBYTES","datatype":"BYTES","shape":[5],"data":["a",["",["\xff"]],"\\udc00\\ud83d\\ude00","\\u0000"]}]}'
    assert content_of(read(text)) == serialize_bytes([b"a", b"", b"\xff", b"\xed\xb0\x80" + "😀".encode(), b"\0"])


def test_names_that_are_not_utf_8_can_travel() -> None:
    call = read(
        b'{"parameters":{"\xff":"\xff"},"inputs":[{"name":"\xff","datatype":"INT8","shape":[0],"data":[]}],"outputs":[{"name":"\xff"}]}'
    )
    assert (call.body.inputs[0].name, call.body.outputs[0].name, call.body.parameters) == ("\ufffd", "\ufffd", {"\ufffd": "\ufffd"})
    msgspec.msgpack.encode(call.body)


def test_size_limits() -> None:
    content = inputs(tensor("IBYTES", "BYTES", data=["x" * 100]))
    size = len(json.dumps(content))
    message = f"request JSON size of {size} bytes exceeds the maximum allowed input size of {size - 1} bytes. Use --http-max-input-size to increase the limit."
    assert refusal(content, limit=size - 1) == (Code.INVALID_ARG, message)
    assert read(content, limit=size).body.inputs
    code, message = refusal(inputs(tensor("IFP64", "FP64", [100], [1] * 100)), limit=500)
    assert message.startswith("JSON input 'IFP64' has a byte_size (800 bytes) that exceeds the maximum allowed value of 500 bytes. ")


def test_large_json_tensors_go_to_the_arena() -> None:
    arena = private_arena()
    scratch = Scratch(arena)
    count = INLINE_BYTE_SIZE // 4 + 1
    place = read(inputs(tensor(shape=[count], data=list(range(count)))), scratch=scratch).body.inputs[0].place
    assert type(place) is Lease
    assert np.array_equal(np.frombuffer(arena.view(place), np.int32), np.arange(count))
    scratch.release()
    assert arena.used_byte_size == 0
