"""Reading inference requests: the envelope, parameters, inputs and outputs.

Error texts and their order were asked of release 24.10, except where a test says otherwise.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tensorfarm.server.door.body import ArenaBody
from tensorfarm.server.door.scratch import NO_MEMORY, Scratch
from tensorfarm.server.http.infer_call import IN_BINARY, IN_JSON, infer_settings
from tensorfarm.server.http.infer_head import infer_head
from tensorfarm.server.http.infer_request import read_request
from tensorfarm.server.http.json_text import MAX_CONTAINERS
from tensorfarm.shm.placement import Inline, Lease, Span
from tensorfarm.workers.contract.messages import RequestContext, WantedOutput
from tensorfarm.workers.contract.status import Code, StatusError

from .doors import an_arena
from .echo_service import EchoService, echo_signature, http_request, private_arena, spec
from .infer_reading import (
    LIMIT,
    NOT_ARRAY,
    NOT_BOOLEAN,
    NOT_STRING,
    NOT_UNSIGNED,
    SOURCES,
    TYPES,
    absent,
    content_of,
    inputs,
    numbers,
    read,
    refusal,
    tensor,
)

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
    arena = private_arena()
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
    assert (call.form, call.priority, call.timeout_us, call.body.context) == (IN_JSON, 0, 0, None)


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
    return infer_head(request.head, "m", "").json_byte_size(size)


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
    request.head.headers = [(b"inference-header-content-length", b"1"), (b"inference-header-content-length", b"2")]
    with pytest.raises(StatusError, match="got: 1, 2"):
        infer_head(request.head, "m", "").json_byte_size(72)


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
    assert call.body.context == RequestContext(sequence_id, 1)
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
    (
        tensor(binary_data_size=8),
        b"1234",
        Code.INVALID_ARG,
        "unexpected size for input 'IINT32', expecting 4 additional bytes for model 'types'",
    ),
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
    (
        tensor(shared_memory_region="r", shared_memory_offset=-1),
        b"",
        Code.INTERNAL,
        f"Unable to parse 'shared_memory_offset': {NOT_UNSIGNED}",
    ),
    (
        tensor(shared_memory_region="r", shared_memory_byte_size="4"),
        b"",
        Code.INTERNAL,
        f"Unable to parse 'shared_memory_byte_size': {NOT_UNSIGNED}",
    ),
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
    (
        {"classification": -1, "shared_memory_region": 1},
        Code.INVALID_ARG,
        "Output can't set both 'shared_memory_region' and 'classification'",
    ),
    (
        {"binary_data": True, "shared_memory_region": "x"},
        Code.INVALID_ARG,
        "Output can't set both 'shared_memory_region' and 'binary_data'",
    ),
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


@pytest.mark.parametrize("list_", ["inputs", "outputs"])
def test_far_too_many_tensors_are_not_read(list_: str) -> None:
    """A hundred thousand distinct names, each with a fault of its own to find later."""
    known = {"inputs": len(TYPES.inputs), "outputs": len(TYPES.outputs)}[list_]
    items = {"inputs": [], list_: [{"name": f"X{at}", "datatype": "INT32", "shape": [1], "data": [1]} for at in range(100_000)]}
    assert refusal(items) == (Code.INVALID_ARG, f"request has far more {list_} than the {known} of the model")


@pytest.mark.parametrize("data", ["1" * 400, "-" + "1" * 400])
def test_numbers_beyond_a_double(data: str) -> None:
    text = b'{"parameters":{"x":%s},"inputs":[{"name":"IFP32","datatype":"FP32","shape":[1],"data":[%s]}]}'
    for fields in ((data, "1"), ("1", data)):
        code, message = refusal(text % tuple(field.encode() for field in fields))
        assert code is Code.INTERNAL
        assert "Number too big to be stored in double. at " in message


def test_json_that_would_grow_too_much() -> None:
    """Empty arrays are two bytes long as text and seventy as objects, wherever they stand."""
    bomb = b"[" + b"[]," * MAX_CONTAINERS + b"1]"
    for text in (b'{"inputs":[],"x":%s}', b'{"inputs":[{"name":"IFP32","datatype":"FP32","shape":[1],"data":%s}]}'):
        assert refusal(text % bomb) == (Code.INVALID_ARG, f"JSON holds more than {MAX_CONTAINERS} arrays and objects")


def test_full_arena_is_not_evaded() -> None:
    """What was decoded and has no room in the arena is refused, not kept beside it."""
    with an_arena(1 << 20) as arena:
        held = arena.reserve(1 << 20)
        request = inputs(tensor("IUINT8", "UINT8", [100_000], data=[1] * 100_000))
        assert refusal(request, scratch=Scratch(arena)) == (Code.UNAVAILABLE, NO_MEMORY)
        held.release()


@pytest.mark.parametrize("blank", ["", " ", "\t", "\n \r"])
def test_the_first_of_two_equal_members_counts_however_they_are_spaced(blank: str) -> None:
    """As in the original's document reader; a client and a proxy that disagree must not be told apart by blanks."""
    rest = '"inputs":[{"name":"IINT32","datatype":"INT32","shape":[1],"data":[1]}]}'
    assert read(f'{{"id"{blank}:"a","id":"b",{rest}'.encode()).id_text == b'"a"'
    assert read(f'{{"parameters":{{"priority"{blank}:1,"priority":2}},{rest}'.encode()).priority == 1
