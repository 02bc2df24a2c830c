"""Inputs of inference requests, right and wrong: shapes, datatypes, data, counts, batches, regions that are not there."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

import pytest

from ..model_repository import DATATYPES
from .case import Case, Difference, check, infer, tensor

ZEROS = [0] * 16


def _inputs(id: str, model: str, *inputs: Any, request_id: str = "", **more: Any) -> Case:
    return infer(id, model, {**({"id": request_id} if request_id else {}), "inputs": list(inputs), **more})


def _int32(id: str, **members: Any) -> Case:
    return _inputs(id, "identity_int32", {"name": "INPUT0", "datatype": "INT32", "shape": [2], "data": [1, 2], **members})


def _without(id: str, member: str) -> Case:
    content = {"name": "INPUT0", "datatype": "INT32", "shape": [2], "data": [1, 2]}
    del content[member]
    return _inputs(id, "identity_int32", content)


def _data(id: str, datatype: str, shape: list[int], text: str) -> Case:
    content = f'{{"inputs":[{{"name":"INPUT0","datatype":"{datatype}","shape":{shape},"data":{text}}}]}}'
    return infer(id, f"identity_{datatype.lower()}", content.encode())


def _values(content: Any) -> Any:
    """Compare numbers, not their digits: RapidJSON does not always print the digits nearest to a double."""
    return content


def _number(id: str, datatype: str, shape: list[int], text: str) -> Case:
    return replace(_data(id, datatype, shape, text), rewrite=_values)


def _simple(id: str, shape: list[int], other: list[int] | None = None, **more: Any) -> Case:
    count = 1
    for dim in shape:
        count *= dim
    other = shape if other is None else other
    other_count = 1
    for dim in other:
        other_count *= dim
    return _inputs(id, "simple", tensor("INPUT0", "INT32", shape, [1] * count), tensor("INPUT1", "INT32", other, [1] * other_count), **more)


OBJECTS = [
    _inputs("input is null", "identity_int32", None),
    _inputs("input is a string", "identity_int32", "INPUT0"),
    _inputs("input is an array", "identity_int32", []),
    _inputs("input is empty", "identity_int32", {}),
    _without("no name", "name"),
    _without("no datatype", "datatype"),
    _without("no shape", "shape"),
    _without("no data", "data"),
    _int32("name number", name=1),
    _int32("name null", name=None),
    _int32("name empty", name=""),
    _int32("name unknown", name="INPUTX"),
    _int32("name of an output", name="OUTPUT0"),
    _int32("datatype number", datatype=8),
    _int32("datatype null", datatype=None),
    _int32("datatype empty", datatype=""),
    _int32("datatype lower case", datatype="int32"),
    _int32("datatype of the configuration", datatype="TYPE_INT32"),
    _int32("datatype unknown", datatype="INT128"),
    _int32("datatype STRING", datatype="STRING"),
    _int32("datatype another", datatype="INT64"),
    _int32("datatype BYTES for INT32", datatype="BYTES", data=["a", "b"]),
    _int32("shape null", shape=None),
    _int32("shape number", shape=2),
    _int32("shape string", shape="2"),
    _int32("shape object", shape={}),
    _int32("shape empty", shape=[]),
    _int32("shape of strings", shape=["2"]),
    _int32("shape of floats", shape=[2.0]),
    _int32("shape of nulls", shape=[None]),
    _int32("shape of arrays", shape=[[2]]),
    _int32("shape of bools", shape=[True]),
    _int32("shape negative", shape=[-2]),
    _int32("shape wildcard", shape=[-1]),
    _int32("shape zero", shape=[0]),
    _int32("shape zero, no data", shape=[0], data=[]),
    _int32("shape zero, data not an array", shape=[0], data="x"),
    _int32("shape of two dims", shape=[1, 2]),
    _int32("shape too big for int64", shape=[2**63]),
    _int32("shape of the biggest int64", shape=[2**63 - 1]),
    _int32("shape too big for uint64", shape=[2**64]),
    _int32("element count overflow", shape=[2**32, 2**32]),
    _int32("byte size overflow", shape=[2**62]),
    _int32("element count overflow with zero", shape=[2**32, 2**32, 0]),
    _int32("parameters array", parameters=[]),
    _int32("parameters null", parameters=None),
    _int32("parameters string", parameters="x"),
    _int32("parameters empty", parameters={}),
    _int32("parameters unknown", parameters={"content": [1]}),
    _int32("parameters classification", parameters={"classification": 3}),
    _int32("unknown member", extra={"x": 1}),
    _int32("data and binary size", parameters={"binary_data_size": 8}),
    _int32("data and region", parameters={"shared_memory_region": "r", "shared_memory_byte_size": 8}),
    _int32("data, binary size and region", parameters={"binary_data_size": 8, "shared_memory_region": "r"}),
    _inputs("binary size and region", "identity_int32", tensor("INPUT0", "INT32", [2], binary_data_size=8, shared_memory_region="r")),
    _inputs("unknown region", "identity_int32", tensor("INPUT0", "INT32", [2], shared_memory_region="r", shared_memory_byte_size=8)),
    _inputs("region number", "identity_int32", tensor("INPUT0", "INT32", [2], shared_memory_region=7, shared_memory_byte_size=8)),
    _inputs("region without size", "identity_int32", tensor("INPUT0", "INT32", [2], shared_memory_region="r")),
    _inputs("region size string", "identity_int32", tensor("INPUT0", "INT32", [2], shared_memory_region="r", shared_memory_byte_size="8")),
    _inputs(
        "region offset negative",
        "identity_int32",
        tensor("INPUT0", "INT32", [2], shared_memory_region="r", shared_memory_byte_size=8, shared_memory_offset=-1),
    ),
    _inputs("region offset alone", "identity_int32", tensor("INPUT0", "INT32", [2], shared_memory_offset=1, shared_memory_byte_size=8)),
    _inputs("input twice", "identity_int32", *[tensor("INPUT0", "INT32", [1], [1])] * 2),
    _inputs("input twice, with an id", "identity_int32", *[tensor("INPUT0", "INT32", [1], [1])] * 2, request_id="seven"),
    _inputs("input too many", "identity_int32", tensor("INPUT0", "INT32", [1], [1]), tensor("INPUT1", "INT32", [1], [1])),
    _inputs("error with an id", "identity_int32", tensor("INPUT0", "INT64", [1], [1]), request_id="my id"),
    _inputs("error with an id to escape", "identity_int32", tensor("INPUT0", "INT64", [1], [1]), request_id='a"\n\\é'),
]

DATA = [
    _int32("data null", data=None),
    _int32("data string", data="12"),
    _int32("data number", data=1),
    _int32("data object", data={}),
    _int32("data empty", data=[]),
    _int32("data too few", data=[1]),
    _int32("data too many", data=[1, 2, 3]),
    _int32("data nested", data=[[1], [2]]),
    _int32("data nested unevenly", data=[[[1]], 2]),
    _int32("data with empty lists", data=[[], 1, [], 2, []]),
    _int32("data with an object", data=[1, {}]),
    _int32("data with null", data=[1, None]),
    _int32("data with strings", data=["1", "2"]),
    _int32("data with floats", data=[1.0, 2.0]),
    _int32("data with bools", data=[True, False]),
    _int32("data too many nested", data=[[1, 2], [3, 4]]),
    _int32("data too many with a string last", data=[1, 2, "x"]),
    _data("nested 99 deep", "INT32", [1], "[" * 99 + "1" + "]" * 99),
    _data("nested 100 deep", "INT32", [1], "[" * 100 + "1" + "]" * 100),
    _data("nested 101 deep", "INT32", [1], "[" * 101 + "1" + "]" * 101),
    _data("nested 102 deep", "INT32", [1], "[" * 102 + "1" + "]" * 102),
    _data("nested 12000 deep", "INT32", [1], "[" * 12_000 + "1" + "]" * 12_000),
    _data("bytes nested 99 deep", "BYTES", [1], "[" * 99 + '"a"' + "]" * 99),
    _data("bytes nested 101 deep", "BYTES", [1], "[" * 101 + '"a"' + "]" * 101),
    _data("bytes nested 102 deep", "BYTES", [1], "[" * 102 + '"a"' + "]" * 102),
    _data("int32 beyond", "INT32", [2], "[2147483648,-2147483649]"),
    _data("int32 far beyond", "INT32", [1], "[9223372036854775807]"),
    _data("int32 beyond int64", "INT32", [1], "[9223372036854775808]"),
    _data("int32 beyond uint64", "INT32", [1], "[18446744073709551616]"),
    _data("int32 minus zero", "INT32", [1], "[-0]"),
    _data("int32 exponent", "INT32", [1], "[1e3]"),
    _data("int32 nan", "INT32", [1], "[NaN]"),
    _data("int64 edges", "INT64", [2], "[9223372036854775807,-9223372036854775808]"),
    _data("int64 beyond", "INT64", [1], "[9223372036854775808]"),
    _data("int8 beyond", "INT8", [4], "[127,128,-129,300]"),
    _data("int16 beyond", "INT16", [3], "[32767,32768,-32769]"),
    _data("uint8 beyond", "UINT8", [3], "[255,256,1000]"),
    _data("uint8 negative", "UINT8", [1], "[-1]"),
    _data("uint16 beyond", "UINT16", [2], "[65535,65536]"),
    _data("uint32 beyond", "UINT32", [2], "[4294967295,4294967296]"),
    _data("uint64 edge", "UINT64", [1], "[18446744073709551615]"),
    _data("uint64 beyond", "UINT64", [1], "[18446744073709551616]"),
    _data("uint64 negative", "UINT64", [1], "[-1]"),
    _data("uint64 float", "UINT64", [1], "[1.0]"),
    _data("bool", "BOOL", [2], "[true,false]"),
    _data("bool as numbers", "BOOL", [2], "[1,0]"),
    _data("bool as strings", "BOOL", [1], '["true"]'),
    _data("bool null", "BOOL", [1], "[null]"),
    _number("fp32", "FP32", [8], "[0,1,-1,0.1,1e10,1.5e-7,3.4028235e38,16777217]"),
    _number("fp32 rounding", "FP32", [6], "[0.3,123456.789,1e-45,1e21,1e22,5e-324]"),
    _number("fp32 exponents", "FP32", [7], "[1e-5,1e-6,1e-7,123456789012,1e15,1e16,1e17]"),
    _data("fp32 beyond", "FP32", [2], "[1e39,-1e39]"),
    _data("fp32 nan and infinities", "FP32", [5], "[NaN,Infinity,-Infinity,Inf,-Inf]"),
    _data("fp32 minus nan", "FP32", [1], "[-NaN]"),
    _data("fp32 minus zero", "FP32", [2], "[-0.0,-0]"),
    _data("fp32 string", "FP32", [1], '["1.5"]'),
    _data("fp32 null", "FP32", [1], "[null]"),
    _data("fp32 bool", "FP32", [1], "[true]"),
    _number("fp32 big integers", "FP32", [3], "[9007199254740993,18446744073709551615,-9223372036854775808]"),
    _number("fp32 bigger integers", "FP32", [1], "[123456789012345678901234567890]"),
    _number("fp64", "FP64", [8], "[0.1,1e308,5e-324,2.2250738585072014e-308,123456789.125,1e21,1e22,-0.0]"),
    _data("fp64 of many digits", "FP64", [1], "[123456789.123456789]"),
    _data("fp64 exponents", "FP64", [9], "[1e-5,1e-6,1e-7,1e15,1e16,1e17,1e20,1e21,1.7976931348623157e308]"),
    _data("fp64 beyond", "FP64", [1], "[1e309]"),
    _data("fp64 nan", "FP64", [3], "[NaN,Infinity,-Infinity]"),
    _number("fp64 big integers", "FP64", [2], "[9007199254740993,18446744073709551615]"),
    _data("fp16 in json", "FP16", [1], "[1.0]"),
    _data("fp16 in json, nothing", "FP16", [0], "[]"),
    _data("bf16 in json", "BF16", [1], "[1.0]"),
    _data("bytes", "BYTES", [3], '["a","","héllo"]'),
    _data("bytes escapes", "BYTES", [4], '["\\u0000x","\\"\\\\/\\/","\\ud83d\\ude00","\\n\\t\\u001f\\u007f"]'),
    _data("bytes numbers", "BYTES", [1], "[1]"),
    _data("bytes null", "BYTES", [1], "[null]"),
    _data("bytes too few", "BYTES", [2], '["a"]'),
    _data("bytes too many", "BYTES", [1], '["a","b"]'),
    _data("bytes none", "BYTES", [1], "[]"),
    _data("bytes nested", "BYTES", [2], '[["a"],["b"]]'),
    _data("bytes not an array", "BYTES", [1], '"a"'),
    _data("bytes of nothing", "BYTES", [0], "[]"),
    _data("bytes of nothing with data", "BYTES", [0], '["a"]'),
]

BATCHES = [
    _simple("batch of one", [1, 16]),
    _simple("batch of eight", [8, 16]),
    _simple("batch of nine", [9, 16]),
    _simple("batch of nought", [0, 16]),
    _simple("batches differ", [1, 16], [2, 16]),
    _simple("no batch dim", [16]),
    _simple("item too short", [1, 8]),
    _simple("items differ", [1, 16], [1, 8]),
    _simple("one dim too many", [1, 16, 1]),
    _simple("shape empty on a batching model", []),
    _simple("batch too big with an id", [9, 16], request_id="b9"),
    _inputs("one of two", "simple", tensor("INPUT0", "INT32", [1, 16], ZEROS)),
    _inputs("the other of two", "plain", tensor("INPUT1", "INT32", [16], ZEROS)),
    _inputs("three of two", "simple", *(tensor(f"INPUT{at}", "INT32", [1, 16], ZEROS) for at in range(3))),
    _inputs("one right and one unknown", "simple", tensor("INPUT0", "INT32", [1, 16], ZEROS), tensor("X", "INT32", [1, 16], ZEROS)),
    _inputs("none", "simple"),
    _inputs("reversed", "plain", tensor("INPUT1", "INT32", [16], ZEROS), tensor("INPUT0", "INT32", [16], list(range(16)))),
    _inputs("second of another type", "simple", tensor("INPUT0", "INT32", [1, 16], ZEROS), tensor("INPUT1", "FP32", [1, 16], ZEROS)),
    _inputs("fixed shape wrong", "fixed", tensor("INPUT0", "FP32", [3, 2], [0] * 6)),
    _inputs("fixed shape flat", "fixed", tensor("INPUT0", "FP32", [6], [0] * 6)),
    _inputs("fixed shape right", "fixed", tensor("INPUT0", "FP32", [2, 3], [[1, 2, 3], [4, 5, 6]])),
    _inputs("matrix of wildcards", "matrix", tensor("INPUT0", "FP32", [1, 2], [1, 2])),
    _inputs("matrix with nought", "matrix", tensor("INPUT0", "FP32", [0, 2], [])),
    _inputs("matrix of one dim", "matrix", tensor("INPUT0", "FP32", [2], [1, 2])),
    _inputs("batched variable dim", "batched_fp32", tensor("INPUT0", "FP32", [2, 3], list(range(6)))),
    _inputs("batched too big", "batched_fp32", tensor("INPUT0", "FP32", [5, 1], list(range(5)))),
    _inputs("batched variable dim of nought", "batched_fp32", tensor("INPUT0", "FP32", [1, 0], [])),
    _inputs("batched without batch", "batched_fp32", tensor("INPUT0", "FP32", [3], list(range(3)))),
    _inputs("scalar", "scalar", tensor("INPUT0", "FP32", [2, 1], [1, 2])),
    _inputs("scalar without dims", "scalar", tensor("INPUT0", "FP32", [2], [1, 2])),
    _inputs("reshaped", "flat", tensor("INPUT0", "FP32", [2, 2], [1, 2, 3, 4])),
    _inputs("reshaped sent as the model sees it", "flat", tensor("INPUT0", "FP32", [4], [1, 2, 3, 4])),
    _inputs("batched bytes", "batched_bytes", tensor("INPUT0", "BYTES", [2, 2], ["a", "b", "c", "d"])),
    _inputs("batched bytes too few", "batched_bytes", tensor("INPUT0", "BYTES", [2, 2], ["a", "b", "c"])),
]


def _binary(id: str, datatype: str, shape: list[int], content: bytes, model: str = "") -> Case:
    inputs = [tensor("INPUT0", datatype, shape, binary_data_size=len(content))]
    return infer(id, model or f"identity_{datatype.lower()}", {"inputs": inputs}, content)


BINARY = [
    *(_binary(f"{name} empty", name, [0], b"") for name in DATATYPES),
    *(_binary(f"{name} short by a byte", name, [2], b"\0" * 7) for name in ("BOOL", "INT16", "INT64", "FP16", "FP32", "FP64", "BF16")),
    _binary("empty tensor with bytes", "INT32", [0], b"\0" * 4),
    _binary("BYTES two", "BYTES", [2], struct.pack("<I2sI", 2, b"ab", 0)),
    _binary("BYTES not utf-8", "BYTES", [1], struct.pack("<I3s", 3, b"\xff\xfe\x80")),
    _binary("BYTES with zero bytes", "BYTES", [1], struct.pack("<I3s", 3, b"a\0b")),
    _binary("BYTES three bytes of length", "BYTES", [1], b"\0\0\0"),
    _binary("BYTES length beyond the end", "BYTES", [1], struct.pack("<I2s", 3, b"ab")),
    _binary("BYTES length far beyond the end", "BYTES", [1], b"\xff\xff\xff\xff"),
    _binary("BYTES too few", "BYTES", [3], struct.pack("<I2sI", 2, b"ab", 0)),
    _binary("BYTES too many", "BYTES", [1], struct.pack("<I2sI", 2, b"ab", 0)),
    _binary("BYTES second cut", "BYTES", [2], struct.pack("<I2sI", 2, b"ab", 9)),
    _binary("BYTES second length cut", "BYTES", [2], struct.pack("<I2sH", 2, b"ab", 9)),
    _binary("BYTES nothing for one", "BYTES", [1], b""),
    _binary("BYTES something for none", "BYTES", [0], struct.pack("<I", 0)),
    _binary("BOOL of any byte", "BOOL", [3], b"\0\1\2"),
    _binary("FP32 into the wrong model", "FP32", [1], b"\0" * 4, "identity_int32"),
    _binary("unknown model", "FP32", [1], b"\0" * 4, "nosuch"),
]

_DEPTH = "newer releases bound the nesting of tensor data to 100"
_TOO_DEEP = "JSON nesting depth exceeds maximum allowed limit (100)"
_OVERFLOW = "newer releases check sizes for overflow; 24.10 lets them wrap or dies"
_SORTED = "newer releases sort the names; in 24.10 their order is that of a hash table"
_COUNT = "causes total element count to exceed maximum size of 9223372036854775807"
_SIZE = "* data type size (4) exceeds maximum allowed size (9223372036854775807)"
DIFFERENCES: dict[str, Difference] = {
    "nested 101 deep": Difference(_DEPTH, 400, "Unable to parse 'data': " + _TOO_DEEP),
    "nested 102 deep": Difference(_DEPTH, 400, "Unable to parse 'data': " + _TOO_DEEP),
    "nested 12000 deep": Difference(_DEPTH, 400, _TOO_DEEP),
    "bytes nested 101 deep": Difference(_DEPTH, 400, _TOO_DEEP),
    "bytes nested 102 deep": Difference(_DEPTH, 400, _TOO_DEEP),
    "BYTES not utf-8": Difference(
        "ONNX Runtime's Python interface has no way to return such strings",
        500,
        "a BYTES output of model 'identity_bytes' is not UTF-8, which ONNX Runtime cannot hand over to Python",
    ),
    "fp64 of many digits": Difference("RapidJSON reads this number one unit too low", 200),
    "shape too big for int64": Difference(
        _OVERFLOW, 400, "invalid shape for input 'INPUT0': shape [-9223372036854775808] contains one or more invalid dimensions"
    ),
    "shape of the biggest int64": Difference(
        _OVERFLOW, 400, f"byte size overflow for input 'INPUT0': element count ({2**63 - 1}) {_SIZE}", fatal=True
    ),
    "byte size overflow": Difference(_OVERFLOW, 400, f"byte size overflow for input 'INPUT0': element count ({2**62}) {_SIZE}", fatal=True),
    "element count overflow": Difference(_OVERFLOW, 400, f"invalid shape for input 'INPUT0': shape [4294967296,4294967296] {_COUNT}"),
    "element count overflow with zero": Difference(
        _OVERFLOW, 400, f"invalid shape for input 'INPUT0': shape [4294967296,4294967296,0] {_COUNT}"
    ),
    "input too many": Difference(
        _SORTED,
        400,
        "[request id: <id_unknown>] expected 1 inputs but got 2 inputs for model 'identity_int32'. "
        "Got input(s) ['INPUT0','INPUT1'], but missing required input(s) ]. Please provide all required input(s).",
    ),
    "three of two": Difference(
        _SORTED,
        400,
        "[request id: <id_unknown>] expected 2 inputs but got 3 inputs for model 'simple'. "
        "Got input(s) ['INPUT0','INPUT1','INPUT2'], but missing required input(s) ]. Please provide all required input(s).",
    ),
}


def _table(cases: list[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.id)


@_table(OBJECTS)
def test_objects(case: Case, oracle: int, farm: int) -> None:
    check(case, oracle, farm, DIFFERENCES)


@_table(DATA)
def test_data(case: Case, oracle: int, farm: int) -> None:
    check(case, oracle, farm, DIFFERENCES)


@_table(BATCHES)
def test_batches(case: Case, oracle: int, farm: int) -> None:
    check(case, oracle, farm, DIFFERENCES)


@_table(BINARY)
def test_binary(case: Case, oracle: int, farm: int) -> None:
    check(case, oracle, farm, DIFFERENCES)
