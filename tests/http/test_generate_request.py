"""Requests of the generate extension: JSON members become inputs and parameters. Every expectation is what release 24.10 does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tensorfarm.server.door.scratch import INLINE_BYTE_SIZE, Scratch
from tensorfarm.server.http import generate_request, json_cutting
from tensorfarm.server.http.generate_request import GenerateCall, inferred_shape, read_generate, read_long_generate
from tensorfarm.shm.datatypes import DATATYPES, iter_bytes
from tensorfarm.shm.placement import Inline, Lease
from tensorfarm.workers.contract.configuration import parse_text
from tensorfarm.workers.contract.messages import Tensor
from tensorfarm.workers.contract.signature import Signature, signature_of
from tensorfarm.workers.contract.status import Code, StatusError
from tests.http.doors import an_arena
from tests.http.infer_reading import finish

MODELS = Path(__file__).resolve().parent.parent / "python_models"
LIMIT = 1 << 24
SCHEMA = "The schema can not convert input '{}' to tensor with proper shape"
TWICE = "input 'INT32' already exists in request"
KIND = "Unable to parse 'data': attempt to access JSON non-{0} as {0}"
NO_STRING = "Unable to parse JSON bytes array: attempt to access JSON non-string as string"
MISFIT = "Unable to parse 'data': Shape does not match true shape of 'data' field"
NO_PARAMETER = "parameter 'a' has invalid type. It should be either 'int', 'bool', or 'string'."
WITHIN = "Converting keyword: 'parameters': "
NO_OBJECT = "Expected JSON object for keyword: 'parameters': attempt to access JSON non-object as object"


def signature(name: str) -> Signature:
    """The signature of one of the models that the parity tests ask."""
    return signature_of(parse_text((MODELS / name / "config.pbtxt").read_text(), "the test"))


SEEN, BATCHED, PARAMETERS = (signature(f"generate_{name}") for name in ("seen", "batched", "parameters"))


def read(body: str | bytes, of: Signature = SEEN, limit: int = LIMIT) -> GenerateCall:
    return read_generate(body if isinstance(body, bytes) else body.encode(), of, Scratch(), limit)


def read_long(body: bytes, of: Signature = SEEN, limit: int = LIMIT, scratch: Scratch | None = None) -> GenerateCall:
    return finish(read_long_generate(body, of, scratch or Scratch(), limit))


def values(tensor: Tensor) -> list[Any]:
    """A tensor's elements."""
    assert type(tensor.place) is Inline
    content = tensor.place.content
    if tensor.datatype == "BYTES":
        return list(iter_bytes(content))
    return list(np.frombuffer(content, DATATYPES[tensor.datatype].dtype).tolist())


@pytest.mark.parametrize(
    ("body", "shape", "expected"),
    [
        ('{"INT32":5}', (1,), [5]),
        ('{"INT32":[1,2,3]}', (3,), [1, 2, 3]),
        ('{"INT32":[]}', (0,), []),
        ('{"INT32":[[1],[2]]}', (2,), [1, 2]),
        ('{"INT32":[[[1]],2]}', (2,), [1, 2]),
        ('{"INT32":3000000000}', (1,), [-1294967296]),
        ('{"INT8":200}', (1,), [-56]),
        ('{"UINT8":256}', (1,), [0]),
        ('{"INT64":9223372036854775807}', (1,), [2**63 - 1]),
        ('{"UINT64":18446744073709551615}', (1,), [2**64 - 1]),
        ('{"BOOL":[true,false]}', (2,), [True, False]),
        ('{"FP32":1}', (1,), [1.0]),
        ('{"FP32":1e300}', (1,), [float("inf")]),
        ('{"FP32":[Infinity,-Infinity]}', (2,), [float("inf"), float("-inf")]),
        ('{"FP64":18446744073709551615}', (1,), [2.0**64]),
        ('{"BYTES":"a"}', (1,), [b"a"]),
        ('{"BYTES":["a","bc",""]}', (3,), [b"a", b"bc", b""]),
        ('{"BYTES":[["a","b"]]}', (1,), [b"a", b"b"]),
        ('{"BYTES":[]}', (0,), []),
        ('{"BYTES":"\\u0000x"}', (1,), [b"\0x"]),
        (b'{"BYTES":"\xff\xfe"}', (1,), [b"\xff\xfe"]),
        ('{"ONE":[5]}', (1,), [5]),
        ('{"FIXED":[1,2,3,4,5,6]}', (2, 3), [1, 2, 3, 4, 5, 6]),
        ('{"WIDE":[1,2,3,4]}', (1, 4), [1, 2, 3, 4]),
        ('{"WIDE":[]}', (1, 0), []),
        ('{"LEFT":[1,2,3,4]}', (2, 2), [1, 2, 3, 4]),
        ('{"RIGHT":[1,2,3,4]}', (2, 2), [1, 2, 3, 4]),
        ('{"THREE":[1,2,3,4]}', (1, 2, 2), [1, 2, 3, 4]),
        ('{"THREE":[]}', (1, 2, 0), []),
        ('{"FLAT":[1,2,3,4]}', (2, 2), [1, 2, 3, 4]),
        ('{"parameters":{"INT32":7}}', (1,), [7]),
    ],
)
def test_inputs(body: str | bytes, shape: tuple[int, ...], expected: list[Any]) -> None:
    """One value or an array becomes a tensor; the last variable dim takes what the fixed ones leave."""
    call = read(body)
    (tensor,) = call.body.inputs
    assert (tensor.shape, values(tensor)) == (shape, expected)
    assert (call.body.parameters, call.body.id, call.body.outputs) == ({}, "", [])


@pytest.mark.parametrize(
    ("body", "shape"),
    [
        ('{"A":[1,2]}', (1, 2)),
        ('{"A":[1,2,3,4]}', (2, 2)),
        ('{"A":[]}', (0, 2)),
        ('{"B":1.5}', (1, 1)),
        ('{"B":[1,2,3]}', (1, 3)),
        ('{"SCALAR":[4,5]}', (2, 1)),
    ],
)
def test_the_batch_dim_is_inferred(body: str, shape: tuple[int, ...]) -> None:
    """It is one more variable dim, in front."""
    assert read(body, BATCHED).body.inputs[0].shape == shape


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ("", Code.INTERNAL, "failed to parse the request JSON buffer: The document is empty. at 0"),
        ("[]", Code.INTERNAL, "attempt to get members for non-object"),
        ("null", Code.INTERNAL, "attempt to get members for non-object"),
        (
            '{"INT32":1}x',
            Code.INTERNAL,
            "failed to parse the request JSON buffer: The document root must not be followed by other values. at 11",
        ),
        ('{"INT32":5.0}', Code.INTERNAL, KIND.format("signed-integer")),
        ('{"INT32":{"a":1}}', Code.INTERNAL, KIND.format("signed-integer")),
        ('{"INT32":null}', Code.INTERNAL, KIND.format("signed-integer")),
        ('{"INT64":9223372036854775808}', Code.INTERNAL, KIND.format("signed-integer")),
        ('{"UINT8":-1}', Code.INTERNAL, KIND.format("unsigned-integer")),
        ('{"BOOL":1}', Code.INTERNAL, KIND.format("boolean")),
        ('{"FP32":"1.5"}', Code.INTERNAL, "Unable to parse 'data': attempt to access JSON non-number as double"),
        ('{"INT32":[[1,2],[3]]}', Code.INTERNAL, MISFIT),
        ('{"INT32":[[]]}', Code.INTERNAL, MISFIT),
        ('{"FP16":1}', Code.INVALID_ARG, "receiving FP16 data via JSON is not supported. Please use the binary data format for input FP16"),
        (
            '{"FP16":[]}',
            Code.INVALID_ARG,
            "receiving FP16 data via JSON is not supported. Please use the binary data format for input FP16",
        ),
        ('{"BYTES":5}', Code.INTERNAL, NO_STRING),
        ('{"BYTES":["a",5]}', Code.INTERNAL, NO_STRING),
        ('{"ONE":[5,6]}', Code.INVALID_ARG, SCHEMA.format("ONE")),
        ('{"ONE":[]}', Code.INVALID_ARG, SCHEMA.format("ONE")),
        ('{"TWO":["a"]}', Code.INVALID_ARG, SCHEMA.format("TWO")),
        ('{"TWO":["a","b"]}', Code.INTERNAL, KIND.format("signed-integer")),
        ('{"LEFT":[1,2,3]}', Code.INVALID_ARG, SCHEMA.format("LEFT")),
        ('{"FIXED":[[1,2,3],[4,5,6]]}', Code.INVALID_ARG, SCHEMA.format("FIXED")),
        ('{"a":null}', Code.INVALID_ARG, NO_PARAMETER),
        ('{"a":[1]}', Code.INVALID_ARG, NO_PARAMETER),
        ('{"id":5}', Code.INTERNAL, "Unable to parse 'id': attempt to access JSON non-string as string"),
        ('{"INT32":"x","id":5}', Code.INTERNAL, "Unable to parse 'id': attempt to access JSON non-string as string"),
        ('{"INT32":"x","a":{}}', Code.INTERNAL, KIND.format("signed-integer")),
        ('{"a":{},"INT32":"x"}', Code.INVALID_ARG, NO_PARAMETER),
        ('{"parameters":5}', Code.INTERNAL, NO_OBJECT),
        ('{"parameters":null}', Code.INTERNAL, NO_OBJECT),
        ('{"parameters":{"a":{}}}', Code.INVALID_ARG, WITHIN + NO_PARAMETER),
        ('{"parameters":{"INT32":"x"}}', Code.INTERNAL, WITHIN + KIND.format("signed-integer")),
        ('{"INT32":1,"INT32":2}', Code.INVALID_ARG, f"[request id: <id_unknown>] {TWICE}"),
        ('{"id":"q","INT32":1,"parameters":{"INT32":2}}', Code.INVALID_ARG, f"{WITHIN}[request id: q] {TWICE}"),
        ('{"parameters":{"INT32":2},"INT32":1}', Code.INVALID_ARG, f"[request id: <id_unknown>] {TWICE}"),
        ('{"parameters":{"INT32":1,"INT32":2}}', Code.INVALID_ARG, f"{WITHIN}[request id: <id_unknown>] {TWICE}"),
        ('{"a\\u0000b":1}', Code.INTERNAL, "parameter key 'a' was not found in the JSON"),
        ('{"INT32\\u0000x":5}', Code.INVALID_ARG, "unexpected key not found in generate request, expecting key 'INT32'"),
        ('{"INT32":3,"INT32\\u0000x":5}', Code.INVALID_ARG, f"[request id: <id_unknown>] {TWICE}"),
        (
            '{"parameters\\u0000x":5}',
            Code.INTERNAL,
            "Expected JSON object for keyword: 'parameters': attempt to access non-existing object member 'parameters'",
        ),
    ],
)
def test_refusals(body: str, code: Code, message: str) -> None:
    with pytest.raises(StatusError) as refused:
        read(body)
    assert (refused.value.code, refused.value.message) == (code, message)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ('{"a":1,"b":"x","c":true,"d":1.5}', {"a": 1, "b": "x", "c": True, "d": 1.5}),
        ('{"a":9223372036854775807}', {"a": 2**63 - 1}),
        ('{"a":9223372036854775808}', {"a": 2.0**63}),
        ('{"":1}', {"": 1}),
        ('{"a":1,"a":2}', {"a": 1}),
        ('{"a":2,"parameters":{"a":1}}', {"a": 1}),
        ('{"parameters":{"a":1},"a":2}', {"a": 2}),
        ('{"parameters":{"a":1},"parameters":{"b":1}}', {"a": 1}),
        ('{"parameters":{"parameters":5,"id":6}}', {"parameters": 5, "id": 6}),
        ('{"sequence_id":5,"priority":"x","timeout":-1}', {"sequence_id": 5, "priority": "x", "timeout": -1}),
        ('{"triton_x":1,"binary_data_output":true}', {"triton_x": 1, "binary_data_output": True}),
        ('{"a":"x\\u0000y"}', {"a": "x"}),
        (b'{"a":"\xff"}', {"a": "\ufffd"}),
    ],
)
def test_parameters(body: str | bytes, expected: dict[str, Any]) -> None:
    """Whatever is no input is a parameter, and no name means anything."""
    call = read(body)
    assert (call.body.parameters, call.body.inputs) == (expected, [])
    assert {name: type(value) for name, value in call.body.parameters.items()} == {name: type(value) for name, value in expected.items()}


def test_the_id_is_a_parameter_too() -> None:
    call = read('{"id":"x \\"y\\u0000z"}')
    assert (call.body.id, call.id_text, call.body.parameters) == ('x "y', b'"x \\"y"', {"id": 'x "y'})
    assert read('{"id":""}').id_text == b""
    assert read('{"parameters":{"id":"z"}}').body.id == ""


@pytest.mark.parametrize("nested", ["5", "{}", '{"parameters":5}'])
def test_a_model_with_an_input_called_parameters(nested: str) -> None:
    with pytest.raises(StatusError) as refused:
        read(f'{{"parameters":{nested}}}', PARAMETERS)
    assert refused.value.message == "Keyword 'parameters' for nested schema also given as input tensor name"
    assert refused.value.code is Code.INVALID_ARG


@pytest.mark.parametrize(
    ("dims", "count", "shape"),
    [((2, 3), 6, (2, 3)), ((2, 3), 5, None), ((-1, -1, 2), 8, (1, 4, 2)), ((-1,), 0, (0,)), ((4,), 0, None), ((0, -1), 3, None)],
)
def test_inferred_shape(dims: tuple[int, ...], count: int, shape: tuple[int, ...] | None) -> None:
    assert inferred_shape(dims, count) == shape


def test_the_size_of_all_inputs_counts() -> None:
    """Numbers before they are converted, strings by what they take."""
    assert len(read('{"FP64":[1,2],"INT64":[1,2]}', limit=32).body.inputs) == 2
    with pytest.raises(StatusError) as refused:
        read('{"FP64":[1,2],"INT64":[1,2,3]}', limit=39)
    assert refused.value.message == (
        "request size of 40 bytes with input 'INT64' of size 24 bytes exceeds the maximum allowed input size of 39. "
        "Use --http-max-input-size to increase the limit."
    )
    assert refused.value.code is Code.INVALID_ARG
    with pytest.raises(StatusError, match="request JSON size of 24 bytes exceeds the maximum allowed input size of 23 bytes"):
        read('{"BYTES":["a","b","c"]}\n', limit=23)
    # an element takes three bytes of JSON, and four of memory
    assert len(read('{"BYTES":["","","","","","","","","","",""]}', limit=44).body.inputs) == 1
    with pytest.raises(StatusError, match="request size of 48 bytes with input 'BYTES' of size 48 bytes"):
        read('{"BYTES":["","","","","","","","","","","",""]}', limit=47)


def outcome(make: Any, body: bytes, of: Signature = SEEN) -> Any:
    """What a reader makes of a body, in a form that can be compared."""
    try:
        call = make(body, of)
    except StatusError as error:
        return error.code, error.message
    tensors = [(tensor.name, tensor.shape, values(tensor)) for tensor in call.body.inputs]
    return call.body.id, call.id_text, call.body.parameters, sorted(tensors, key=str)


LONG_BODIES = [
    {"INT32": list(range(30)), "FP32": [0.5, 1, 2e10] * 10, "BYTES": ["a", "é", "x\ny"] * 9, "a": 1, "id": "q"},
    {"BYTES": "x" * 300, "parameters": {"INT64": [2**40] * 20, "b": True}},
    {"INT32": [1, 2.5] * 20},
    {"INT32": [1, 2**70] * 20},
    {"UINT8": [1, -1] * 20},
    {"BYTES": ["a", 5] * 20},
    {"INT32": [[1], [2]] * 20},
    {"INT32": [[1, 2]] * 20},
    {"INT32": [1] * 50, "a": {}},
    {"a": [1] * 50},
    {"THREE": list(range(40))},
    {"THREE": list(range(41))},
    {"FP16": [1] * 50},
    {"id": 5, "INT32": [1] * 50},
    {"parameters": {"INT32": ["x"] * 50}},
    {"parameters": [1] * 50},
    [1] * 50,
]


@pytest.mark.parametrize("style", [{"separators": (",", ":")}, {}, {"indent": 2}, {"ensure_ascii": False}])
@pytest.mark.parametrize("document", LONG_BODIES, ids=lambda document: json.dumps(document)[:30])
def test_long_bodies_are_read_as_short_ones(monkeypatch: pytest.MonkeyPatch, document: Any, style: dict[str, Any]) -> None:
    """In steps, and with the same outcome, however they are written."""
    monkeypatch.setattr(generate_request, "LONG_BYTE_SIZE", 8)
    for name, size in (("PIECE_BYTE_SIZE", 32), ("_FIRST_WINDOW", 8)):
        monkeypatch.setattr(json_cutting, name, size)
    body = json.dumps(document, **style).encode()
    assert outcome(read_long, body) == outcome(read, body)


@pytest.mark.parametrize(
    "body", [b'{"INT32":[1,2],"INT32":[3]}', b'{"BYTES":"\xff\xff\xff"}', b'{"a":1}\0x', b'{"a":Inf}', b'{"a\\u0000":1}', b"{"]
)
def test_unusual_long_bodies_are_read_in_one(monkeypatch: pytest.MonkeyPatch, body: bytes) -> None:
    """And so they must not be long."""
    monkeypatch.setattr(generate_request, "LONG_BYTE_SIZE", 4)
    assert outcome(read_long, body) == outcome(read, body)
    monkeypatch.setattr(generate_request, "REST_BYTE_SIZE", 0)
    with pytest.raises(StatusError, match="apart from the data of its tensors exceeds the maximum allowed size of 0 bytes"):
        read_long(body)


@pytest.mark.parametrize("size", [100, 5000])
def test_blanks_do_not_matter(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Only what is read in one must not be long: here that is what stands around the tensors."""
    monkeypatch.setattr(generate_request, "REST_BYTE_SIZE", 400)
    body = b' \n{ "a" :1 ,\n "BYTES": "%b",\t"INT32" : [%b]}\r\n ' % (b"x" * size, b"1 , " * size + b"2")
    assert outcome(read_long, body)[2] == {"a": 1} if size > 400 else outcome(read_long, body)[0] is Code.INVALID_ARG
    twice = body.replace(b'"a" :1', b'"BYTES": "%b"' % (b"y" * size))
    assert outcome(read_long, twice)[0] is Code.INVALID_ARG


def test_large_tensors_lie_in_the_arena() -> None:
    count = INLINE_BYTE_SIZE // 4 + 1
    body = json.dumps({"INT32": list(range(count)), "BYTES": "x" * INLINE_BYTE_SIZE, "ONE": 5}).encode()
    with an_arena() as arena:
        scratch = Scratch(arena)
        call = read_long(body, scratch=scratch)
        numbers, text, one = call.body.inputs
        assert type(numbers.place) is Lease and type(text.place) is Lease and type(one.place) is Inline
        assert np.frombuffer(arena.view(numbers.place), np.int32).tolist() == list(range(count))
        assert list(iter_bytes(arena.view(text.place))) == [b"x" * INLINE_BYTE_SIZE]
        scratch.release()


def test_a_long_array_is_read_in_many_steps() -> None:
    body = json.dumps({"INT32": list(range(200_000))}).encode()
    steps = read_long_generate(body, SEEN, Scratch(), LIMIT)
    assert len(list(steps)) > 20
