"""Reading inference requests. Error texts and their order were asked of release 24.10, except where the docstring of a test says otherwise."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorfarm.server.http.exchange import ArenaBody
from tensorfarm.server.http.infer_call import IN_BINARY, IN_JSON, INLINE_BYTE_SIZE, InferCall, Scratch, infer_settings
from tensorfarm.server.http.infer_request import header_length, read_request
from tensorfarm.shm.arena import Arena, create_memory
from tensorfarm.shm.datatypes import DATATYPES, serialize_bytes
from tensorfarm.shm.placement import Inline, Lease, Span
from tensorfarm.workers.contract.messages import WantedOutput
from tensorfarm.workers.contract.signature import Signature
from tensorfarm.workers.contract.status import Code, StatusError

from .echo_service import EchoService, echo_signature, http_request, spec

TYPES = echo_signature("types", [spec(f"I{name}", name, -1, optional=True) for name in DATATYPES])
LIMIT = 64 * 1024 * 1024


def read(
    content: Any,
    tail: bytes = b"",
    *,
    signature: Signature = TYPES,
    headers: dict[str, str] | None = None,
    limit: int = LIMIT,
    forward: str = "",
    scratch: Scratch | None = None,
) -> InferCall:
    """Read a request: JSON values or text, with a header length where a tail follows."""
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    request = http_request(text + tail, headers)
    service = EchoService({}, regions_by_name={"r": 7})
    return read_request(request, len(text), signature, service.regions, scratch or Scratch(), infer_settings(limit, forward))


def refusal(*args: Any, **more: Any) -> tuple[Code, str]:
    with pytest.raises(StatusError) as caught:
        read(*args, **more)
    return caught.value.code, caught.value.message


def tensor(name: str = "IINT32", datatype: str = "INT32", shape: Any = (1,), data: Any = None, **parameters: Any) -> dict[str, Any]:
    members: dict[str, Any] = {"name": name, "datatype": datatype, "shape": shape}
    if parameters:
        members["parameters"] = parameters
    if data is not None:
        members["data"] = data
    return members


def inputs(*items: Any, **more: Any) -> dict[str, Any]:
    return {**more, "inputs": list(items)}


def content_of(call: InferCall, at: int = 0) -> bytes:
    place = call.body.inputs[at].place
    assert type(place) is Inline
    return bytes(place.content)


def numbers(call: InferCall) -> list[Any]:
    return np.frombuffer(content_of(call), DATATYPES[call.body.inputs[0].datatype].dtype).tolist()


# the envelope


def test_binary_inputs_are_taken_in_order_and_not_copied() -> None:
    text = json.dumps(inputs(tensor(shape=[2], binary_data_size=8), tensor("IUINT8", "UINT8", [3], binary_data_size=3))).encode()
    request = http_request(text + b"abcdefghxyz")
    call = read_request(request, len(text), TYPES, EchoService({}).regions, Scratch(), infer_settings(LIMIT, ""))
    assert [content_of(call, at) for at in (0, 1)] == [b"abcdefgh", b"xyz"]
    assert [item.shape for item in call.body.inputs] == [(2,), (3,)]
    place = call.body.inputs[0].place
    assert type(place) is Inline and place.content.obj is request.body.view.obj


def test_a_body_in_the_arena_stays_there() -> None:
    arena = Arena(3, create_memory(1 << 16), 1 << 16)
    text = json.dumps(inputs(tensor(binary_data_size=4))).encode()
    block = arena.reserve(len(text) + 4)
    block.view[: len(text) + 4] = text + b"abcd"
    body = ArenaBody(block, len(text) + 4)
    call = read_request(http_request(body), len(text), TYPES, EchoService({}).regions, Scratch(), infer_settings(LIMIT, ""))
    place = call.body.inputs[0].place
    assert type(place) is Lease
    assert bytes(arena.view(place)) == b"abcd"
    body.release()
    assert arena.used_byte_size == 0


def test_defaults() -> None:
    call = read(inputs())
    assert (call.body.id, call.id_text, call.body.batch_size, call.body.inputs, call.body.outputs) == ("", b"", 1, [], [])
    assert (call.form, call.priority, call.timeout_us, call.sequence_id, call.sequence_start) == (IN_JSON, 0, 0, 0, False)


@pytest.mark.parametrize(
    ("text", "id", "id_text"),
    [
        (b'"a b"', "a b", b'"a b"'),
        (b'""', "", b""),
        ('"é"'.encode(), "é", '"é"'.encode()),
        (b'"a\\"\\u0001"', 'a"\x01', b'"a\\"\\u0001"'),
        (b'"\xff"', "\ufffd", b'"\xff"'),
        (b'"first","id":"second"', "first", b'"first"'),
    ],
)
def test_id(text: bytes, id: str, id_text: bytes) -> None:
    call = read(b'{"id":' + text + b',"inputs":[]}')
    assert (call.body.id, call.id_text) == (id, id_text)


def test_batch_size_is_the_first_dim_of_models_that_batch() -> None:
    model = echo_signature("m", [spec("I", "INT8", -1, batching=True)], max_batch_size=4)
    assert read(inputs(tensor("I", "INT8", [3, 2], [[1, 2]] * 3)), signature=model).body.batch_size == 3


NOT_STRING = "attempt to access JSON non-string as string"
NOT_UNSIGNED = "attempt to access JSON non-unsigned-integer as unsigned-integer"
NOT_BOOLEAN = "attempt to access JSON non-boolean as boolean"
NOT_ARRAY = "attempt to access JSON non-array as array"
SOURCES = (
    "Input must set only one of the following fields: 'data', 'binary_data_size' in 'parameters', 'shared_memory_region' in 'parameters'. But "
)


def absent(name: str) -> str:
    return f"Unable to parse '{name}': attempt to access non-existing object member '{name}'"


ENVELOPES: list[tuple[Any, str]] = [
    ([], absent("inputs")),
    (1, absent("inputs")),
    ({}, absent("inputs")),
    ({"id": 1}, f"Unable to parse 'id': {NOT_STRING}"),
    ({"id": None, "inputs": 1}, f"Unable to parse 'id': {NOT_STRING}"),
    ({"parameters": 1, "id": 1}, f"Unable to parse 'id': {NOT_STRING}"),
    ({"parameters": []}, "failed to get request params.: attempt to get members for non-object"),
    ({"inputs": {}}, f"Unable to parse 'inputs': {NOT_ARRAY}"),
    ({"inputs": [], "outputs": None}, f"Unable to parse 'outputs': {NOT_ARRAY}"),
    ({"inputs": [], "outputs": [1]}, absent("name")),
    ({"inputs": [], "outputs": [{"name": 1}]}, f"Unable to parse 'name': {NOT_STRING}"),
]


@pytest.mark.parametrize(("content", "text"), ENVELOPES)
def test_envelope_faults(content: Any, text: str) -> None:
    assert refusal(content) == (Code.INTERNAL, text)


def test_syntax_error() -> None:
    assert refusal(b'{"inputs":[1 2]}') == (
        Code.INTERNAL,
        "failed to parse the request JSON buffer: Missing a comma or ']' after an array element. at 13",
    )


# header length


def length(value: str | None, size: int = 72, **more: str) -> int:
    request = http_request(b"", {**({} if value is None else {"Inference-Header-Content-Length": value}), **more})
    return header_length(request, dict(request.headers), size)


@pytest.mark.parametrize(("value", "expected"), [(None, 72), ("0", 0), ("72", 72), ("072", 72), ("5", 5)])
def test_header_length(value: str | None, expected: int) -> None:
    assert length(value) == expected


@pytest.mark.parametrize("value", ["", "abc", "12abc", "0x10", "1 2", " 5", "+5", "٣", "5.5", "1e1"])
def test_header_length_that_is_no_number(value: str) -> None:
    """Stricter than release 24.10, which reads a number's beginning."""
    with pytest.raises(StatusError) as caught:
        length(value)
    assert caught.value.message == f"Unable to parse Inference-Header-Content-Length, got: {value}"


@pytest.mark.parametrize("value", ["99999999999", "2147483648", "-2147483649", "9" * 5000])
def test_header_length_out_of_range(value: str) -> None:
    """A later release's text: 24.10 compares with the body's size only."""
    with pytest.raises(StatusError) as caught:
        length(value)
    assert caught.value.message.startswith(
        "Unable to parse Inference-Header-Content-Length, value is out of range [ -2147483648, 2147483647 ], got: "
    )


@pytest.mark.parametrize("value", ["-1", "73", "2147483647"])
def test_header_length_beyond_the_body(value: str) -> None:
    with pytest.raises(StatusError) as caught:
        length(value)
    assert caught.value.message == f"inference header size should be in range (0, 72), got: {value}"


def test_header_length_twice() -> None:
    request = http_request(b"")
    request.headers = [(b"inference-header-content-length", b"1"), (b"inference-header-content-length", b"2")]
    with pytest.raises(StatusError, match="got: 1, 2"):
        header_length(request, dict(request.headers), 72)


# parameters


def test_parameters() -> None:
    given_parameters = {"a": "x", "b": 1, "c": True, "d": -5, "e": 1.5, "f": 2**63, "headers": "h", "": "", "é": "é"}
    call = read(inputs(parameters={**given_parameters, "priority": 2**64 - 1, "timeout": 7, "binary_data_output": True}))
    expected = {**given_parameters, "f": 2.0**63}
    assert call.body.parameters == expected
    assert [type(value) for value in call.body.parameters.values()] == [type(value) for value in expected.values()]
    assert (call.priority, call.timeout_us, call.form) == (2**64 - 1, 7, IN_BINARY)


@pytest.mark.parametrize("sequence_id", [5, 0, 2**64 - 1, "abc", "", "x" * 128])
def test_sequence(sequence_id: int | str) -> None:
    call = read(inputs(parameters={"sequence_id": sequence_id, "sequence_start": True, "sequence_end": False}))
    assert (call.sequence_id, call.sequence_start, call.sequence_end) == (sequence_id, True, False)
    assert call.body.parameters == {}


RESERVED = "parameter keys starting with 'triton_' are reserved for Triton usage and should not be specified."
PARAMETERS: list[tuple[str, Code, str]] = [
    ('{"a":null}', Code.INVALID_ARG, "parameter 'a' has invalid type. It should be either 'int', 'bool', or 'string'."),
    ('{"a":[1]}', Code.INVALID_ARG, "parameter 'a' has invalid type. It should be either 'int', 'bool', or 'string'."),
    ('{"a":{}}', Code.INVALID_ARG, "parameter 'a' has invalid type. It should be either 'int', 'bool', or 'string'."),
    ('{"triton_x":[]}', Code.INVALID_ARG, RESERVED),
    ('{"sequence_id":-1}', Code.INTERNAL, f"Unable to parse 'sequence_id': {NOT_STRING}"),
    ('{"sequence_id":18446744073709551616}', Code.INTERNAL, f"Unable to parse 'sequence_id': {NOT_STRING}"),
    ('{"sequence_id":"' + "x" * 129 + '"}', Code.UNSUPPORTED, "string correlation ID cannot be longer than 128 characters"),
    ('{"sequence_start":1}', Code.INTERNAL, f"Unable to parse 'sequence_start': {NOT_BOOLEAN}"),
    ('{"sequence_end":"x"}', Code.INTERNAL, f"Unable to parse 'sequence_end': {NOT_BOOLEAN}"),
    ('{"priority":-1}', Code.INTERNAL, f"Unable to parse 'priority': {NOT_UNSIGNED}"),
    ('{"priority":1.0}', Code.INTERNAL, f"Unable to parse 'priority': {NOT_UNSIGNED}"),
    ('{"priority":18446744073709551616}', Code.INTERNAL, f"Unable to parse 'priority': {NOT_UNSIGNED}"),
    ('{"timeout":true}', Code.INTERNAL, f"Unable to parse 'timeout': {NOT_UNSIGNED}"),
    ('{"binary_data_output":1}', Code.INTERNAL, f"Unable to parse 'binary_data_output': {NOT_BOOLEAN}"),
    ('{"priority":1,"triton_a":1,"timeout":-1}', Code.INVALID_ARG, RESERVED),
]


@pytest.mark.parametrize(("text", "code", "message"), PARAMETERS)
def test_parameter_faults(text: str, code: Code, message: str) -> None:
    assert refusal(b'{"parameters":' + text.encode() + b',"inputs":[]}') == (code, message)


def test_first_of_two_parameters_counts() -> None:
    assert read(b'{"parameters":{"priority":1,"priority":"x"},"inputs":[]}').priority == 1


def test_headers_become_parameters() -> None:
    call = read(inputs(parameters={"X-Fwd": "json"}), headers={"X-Fwd": "1", "Other": "2", "xx-FWD-y": "3"}, forward="x-fwd")
    assert call.body.parameters == {"X-Fwd": "1", "xx-FWD-y": "3"}


@pytest.mark.parametrize("name", ["priority", "headers", "sequence_id", "triton_x"])
def test_headers_with_reserved_names(name: str) -> None:
    """Later than release 24.10, which forwards them."""
    text = f"Header '{name}' is reserved for Triton usage and cannot be forwarded."
    assert refusal(inputs(), headers={name: "1"}, forward=".*") == (Code.INVALID_ARG, text)
    assert read(inputs(), headers={name.capitalize(): "1"}, forward=".*").body.parameters == {name.capitalize(): "1"}


# inputs


def without(member: str) -> dict[str, Any]:
    return {name: value for name, value in tensor(data=[1]).items() if name != member}


OBJECTS: list[tuple[Any, bytes, Code, str]] = [
    (1, b"", Code.INVALID_ARG, SOURCES + "no field is set"),
    ({}, b"", Code.INVALID_ARG, SOURCES + "no field is set"),
    ({"name": 1, "parameters": 1}, b"", Code.INVALID_ARG, SOURCES + "no field is set"),
    (tensor(binary_data_size=4, data=[1]), b"1234", Code.INVALID_ARG, SOURCES + "set 'data' 'binary_data_size'"),
    (tensor(shared_memory_region="r", data=[1]), b"", Code.INVALID_ARG, SOURCES + "set 'data' 'shared_memory_region'"),
    (
        tensor(shared_memory_region="r", data=[1], binary_data_size=1),
        b"",
        Code.INVALID_ARG,
        SOURCES + "set 'data' 'binary_data_size' 'shared_memory_region'",
    ),
    (tensor(shared_memory_byte_size=4), b"", Code.INVALID_ARG, SOURCES + "no field is set"),
    (without("name"), b"", Code.INTERNAL, absent("name")),
    (without("datatype"), b"", Code.INTERNAL, absent("datatype")),
    (without("shape"), b"", Code.INTERNAL, absent("shape")),
    (tensor(name=1, data=[1]), b"", Code.INTERNAL, f"Unable to parse 'name': {NOT_STRING}"),  # type: ignore[arg-type]
    (tensor(datatype=1, data=[1]), b"", Code.INTERNAL, f"Unable to parse 'datatype': {NOT_STRING}"),  # type: ignore[arg-type]
    (tensor(shape=1, data=[1]), b"", Code.INTERNAL, f"Unable to parse 'shape': {NOT_ARRAY}"),
    *(
        (tensor(shape=[dim], data=[1]), b"", Code.INTERNAL, f"Unable to parse 'shape': {NOT_UNSIGNED}")
        for dim in (-1, 1.0, "1", None, True, [1], 2**64)
    ),
    (tensor(datatype="INT33", data=["x"]), b"", Code.INVALID_ARG, "invalid datatype for input IINT32"),
    (tensor(datatype="int32", data=[1]), b"", Code.INVALID_ARG, "invalid datatype for input IINT32"),
    (tensor(datatype="INT33", data=5), b"", Code.INTERNAL, f"Unable to parse 'data': {NOT_ARRAY}"),
    (tensor(binary_data_size=-4), b"1234", Code.INTERNAL, f"Unable to parse 'binary_data_size': {NOT_UNSIGNED}"),
    (tensor(binary_data_size=4.0), b"1234", Code.INTERNAL, f"Unable to parse 'binary_data_size': {NOT_UNSIGNED}"),
    (tensor(binary_data_size="4"), b"1234", Code.INTERNAL, f"Unable to parse 'binary_data_size': {NOT_UNSIGNED}"),
    (tensor(binary_data_size=8), b"1234", Code.INVALID_ARG, "unexpected size for input 'IINT32', expecting 4 additional bytes for model 'types'"),
    (
        tensor(binary_data_size=2**64 - 1),
        b"1234",
        Code.INVALID_ARG,
        "unexpected size for input 'IINT32', expecting 18446744073709551611 additional bytes for model 'types'",
    ),
    (tensor(binary_data_size=4), b"12345", Code.INVALID_ARG, "unexpected additional input data for model 'types'"),
    (tensor(data=[1]), b"1", Code.INVALID_ARG, "unexpected additional input data for model 'types'"),
    (tensor(shared_memory_region="x"), b"", Code.NOT_FOUND, "Unable to find shared memory region: 'x'"),
    (tensor(shared_memory_region=1), b"", Code.INTERNAL, f"Unable to parse 'shared_memory_region': {NOT_STRING}"),
    (tensor(shared_memory_region="r", shared_memory_offset=-1), b"", Code.INTERNAL, f"Unable to parse 'shared_memory_offset': {NOT_UNSIGNED}"),
    (tensor(shared_memory_region="r", shared_memory_byte_size="4"), b"", Code.INTERNAL, f"Unable to parse 'shared_memory_byte_size': {NOT_UNSIGNED}"),
]


@pytest.mark.parametrize(("item", "tail", "code", "message"), OBJECTS)
def test_input_faults(item: Any, tail: bytes, code: Code, message: str) -> None:
    assert refusal(inputs(item), tail) == (code, message)


def test_input_twice() -> None:
    twice = [tensor(data=[1]), tensor(datatype="INT33", data=["x"])]
    assert refusal(inputs(*twice)) == (Code.INVALID_ARG, "[request id: <id_unknown>] input 'IINT32' already exists in request")
    assert refusal(inputs(*twice, id="q")) == (Code.INVALID_ARG, "[request id: q] input 'IINT32' already exists in request")


def test_first_fault_in_order_of_inputs_is_reported() -> None:
    code, message = refusal(inputs(tensor(data=["x"]), tensor(name="IINT8", shape=["x"], data=[])))
    assert message == "Unable to parse 'data': attempt to access JSON non-signed-integer as signed-integer"


def test_unknown_datatype_of_binary_data_is_left_to_validation() -> None:
    assert read(inputs(tensor(datatype="INT33", binary_data_size=4)), b"1234").body.inputs[0].datatype == "<invalid>"


def test_input_in_a_region() -> None:
    item = tensor(shared_memory_region="r", shared_memory_offset=64, shared_memory_byte_size=4)
    assert read(inputs(item)).body.inputs[0].place == Span(7, 64, 4)


@pytest.mark.parametrize("parameters", [1, None, [], "x", {}, {"unknown": [1]}])
def test_parameters_of_an_input_that_mean_nothing(parameters: Any) -> None:
    assert numbers(read(inputs({**tensor(data=[1]), "parameters": parameters}))) == [1]


def test_first_of_two_members_counts() -> None:
    assert numbers(read(b'{"inputs":[{"name":"IINT32","datatype":"INT32","shape":[1],"data":[1],"data":[2],"name":"X"}]}')) == [1]


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


@pytest.mark.parametrize("text", [b"[" * 250_000, b'{"x":' + b"[" * 500 + b"]" * 500 + b',"inputs":[]}', b'{"id":' * 250_000])
def test_bodies_nested_too_deep(text: bytes) -> None:
    assert refusal(text) == (Code.INVALID_ARG, "JSON nesting depth exceeds maximum allowed limit (100)")


def test_strings() -> None:
    text = b'{"inputs":[{"name":"IBYTES","datatype":"BYTES","shape":[5],"data":["a",["",["\xff"]],"\\udc00\\ud83d\\ude00","\\u0000"]}]}'
    assert content_of(read(text)) == serialize_bytes([b"a", b"", b"\xff", b"\xed\xb0\x80" + "😀".encode(), b"\0"])


def test_size_limits() -> None:
    content = inputs(tensor("IBYTES", "BYTES", data=["x" * 100]))
    size = len(json.dumps(content))
    message = f"request JSON size of {size} bytes exceeds the maximum allowed input size of {size - 1} bytes. Use --http-max-input-size to increase the limit."
    assert refusal(content, limit=size - 1) == (Code.INVALID_ARG, message)
    assert read(content, limit=size).body.inputs
    code, message = refusal(inputs(tensor("IFP64", "FP64", [100], [1] * 100)), limit=500)
    assert message.startswith("JSON input 'IFP64' has a byte_size (800 bytes) that exceeds the maximum allowed value of 500 bytes. ")


def test_large_json_tensors_go_to_the_arena() -> None:
    arena = Arena(1, create_memory(1 << 20), 1 << 20)
    scratch = Scratch(arena)
    count = INLINE_BYTE_SIZE // 4 + 1
    place = read(inputs(tensor(shape=[count], data=list(range(count)))), scratch=scratch).body.inputs[0].place
    assert type(place) is Lease
    assert np.array_equal(np.frombuffer(arena.view(place), np.int32), np.arange(count))
    scratch.release()
    assert arena.used_byte_size == 0


# outputs


def form(**parameters: Any) -> tuple[bool, int, bool]:
    call = read(inputs(outputs=[{"name": "O", "parameters": parameters}]))
    assert call.forms is not None
    chosen = call.forms["O"]
    return chosen.binary, chosen.classes, chosen.in_region


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, (False, 0, False)),
        ({"binary_data": True}, (True, 0, False)),
        ({"binary_data": False}, (False, 0, False)),
        ({"classification": 3}, (False, 3, False)),
        ({"classification": 0, "binary_data": True}, (True, 0, False)),
        ({"classification": 2**64 - 1, "binary_data": True}, (True, 2**64 - 1, False)),
        ({"shared_memory_region": "r", "binary_data": False}, (False, 0, True)),
        ({"shared_memory_offset": 5, "unknown": [1]}, (False, 0, False)),
    ],
)
def test_output_forms(parameters: dict[str, Any], expected: tuple[bool, int, bool]) -> None:
    assert form(**parameters) == expected


def test_output_in_a_region() -> None:
    wishes = {"shared_memory_region": "r", "shared_memory_offset": 1, "shared_memory_byte_size": 8}
    assert read(inputs(outputs=[{"name": "O", "parameters": wishes}])).body.outputs == [WantedOutput("O", Span(7, 1, 8))]


@pytest.mark.parametrize("parameters", [1, None, [], "x"])
def test_output_parameters_that_are_no_object(parameters: Any) -> None:
    assert read(inputs(outputs=[{"name": "O", "parameters": parameters}])).body.outputs == [WantedOutput("O")]


OUTPUTS: list[tuple[dict[str, Any], Code, str]] = [
    ({"binary_data": 1}, Code.INTERNAL, f"Unable to parse 'binary_data': {NOT_BOOLEAN}"),
    ({"binary_data": None, "classification": 1}, Code.INTERNAL, f"Unable to parse 'binary_data': {NOT_BOOLEAN}"),
    ({"binary_data": 1, "classification": -1}, Code.INTERNAL, f"Unable to set 'classification': {NOT_UNSIGNED}"),
    ({"classification": "1"}, Code.INTERNAL, f"Unable to set 'classification': {NOT_UNSIGNED}"),
    ({"classification": -1, "shared_memory_region": 1}, Code.INVALID_ARG, "Output can't set both 'shared_memory_region' and 'classification'"),
    ({"binary_data": True, "shared_memory_region": "x"}, Code.INVALID_ARG, "Output can't set both 'shared_memory_region' and 'binary_data'"),
    ({"binary_data": 1, "shared_memory_region": "x"}, Code.INTERNAL, f"Unable to set 'binary_data': {NOT_BOOLEAN}"),
    ({"shared_memory_region": 1}, Code.INTERNAL, f"Unable to parse 'shared_memory_region': {NOT_STRING}"),
    ({"shared_memory_region": "r", "shared_memory_offset": "a"}, Code.INTERNAL, f"Unable to parse 'shared_memory_offset': {NOT_UNSIGNED}"),
    ({"shared_memory_region": "x"}, Code.NOT_FOUND, "Unable to find shared memory region: 'x'"),
]


@pytest.mark.parametrize(("parameters", "code", "message"), OUTPUTS)
def test_output_faults(parameters: dict[str, Any], code: Code, message: str) -> None:
    assert refusal(inputs(outputs=[{"name": "O", "parameters": parameters}])) == (code, message)


def test_output_twice() -> None:
    """Refused by a later release; 24.10 takes no notice."""
    text = "[request id: <id_unknown>] output 'O' already exists in request"
    assert refusal(inputs(outputs=[{"name": "O"}, {"name": "O"}])) == (Code.INVALID_ARG, text)


def test_listed_outputs_do_not_follow_binary_data_output() -> None:
    call = read(inputs(parameters={"binary_data_output": True}, outputs=[{"name": "O"}]))
    assert call.form is IN_BINARY
    assert call.forms == {"O": IN_JSON}


def test_a_million_outputs_are_refused_quickly() -> None:
    outputs = b",".join([b'{"name":"O"}'] * 1_000_000)
    assert refusal(b'{"inputs":[],"outputs":[' + outputs + b"]}")[1].endswith("output 'O' already exists in request")


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
        ([spec("I", "FP32", 3)], bytes(8), "[request id: <id_unknown>] input byte size mismatch for input 'raw_input' for model 'm'. Expected 12, got 8"),
        ([spec("I", "FP32", 2, -1)], bytes(20), "[request id: <id_unknown>] input byte size mismatch for input 'raw_input' for model 'm'. Expected 16, got 20"),
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
    [b'{"inputs":[', b'{"name":"IINT32",', b'"datatype":"INT32",', b'"shape":[1],', b'"data":[1]}', b"]}", b'"id":"x",', b'"parameters":{', b"}", b",", b"[", b"]", b'"binary_data_size":4', b"NaN", b"\xff", b"-1", b'"outputs":[{"name":"O"}]', b":"]
)


@settings(max_examples=300)
@given(st.binary(max_size=200) | st.lists(_PIECES, max_size=20).map(b"".join), st.integers(0, 220))
def test_any_body_is_read_or_refused(content: bytes, json_size: int) -> None:
    request = http_request(content)
    try:
        read_request(request, min(json_size, len(content)), TYPES, EchoService({}).regions, Scratch(), infer_settings(LIMIT, ".*"))
    except StatusError as error:
        assert error.code in (Code.INTERNAL, Code.INVALID_ARG)
