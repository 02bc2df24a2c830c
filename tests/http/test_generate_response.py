"""Responses of the generate extension as JSON. Every expectation is what release 24.10 does."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tensorfarm.server.dispatch.request import Request, Response
from tensorfarm.server.http.generate_response import response_steps
from tensorfarm.server.http.long_reply import SHORT_BYTE_SIZE
from tensorfarm.shm.placement import Inline
from tensorfarm.workers.contract.messages import RequestBody, Tensor
from tensorfarm.workers.contract.status import Code, StatusError
from tests.http.generating_service import tensor
from tests.http.infer_reading import finish

REQUEST = Request(RequestBody("", 1, [], [], {}), 0, lambda response: None)
TAIL = b'"model_name":"m","model_version":"1"}'


def written(*outputs: Tensor, id_text: bytes = b"", parameters: Any = None) -> bytes:
    return b"".join(finish(response_steps("m", 1, id_text, Response(REQUEST, list(outputs), parameters or {}))))


@pytest.mark.parametrize(
    ("output", "text"),
    [
        (tensor("O", "FP32", [0.1, float("nan"), float("inf"), 1e20]), b"[0.10000000149011612,NaN,Infinity,100000002004087730000.0]"),
        (tensor("O", "FP32", [0.1]), b"0.10000000149011612"),
        (tensor("O", "FP64", [float("nan")]), b"NaN"),
        (tensor("O", "BOOL", [True]), b"true"),
        (tensor("O", "BOOL", [True, False]), b"[true,false]"),
        (tensor("O", "UINT64", [2**64 - 1]), b"18446744073709551615"),
        (tensor("O", "INT32", []), b"[]"),
        (tensor("O", "BYTES", list("abcdef"), (2, 3)), b'["a","b","c","d","e","f"]'),
        (tensor("O", "BYTES", ["0"], (1, 1)), b'"0"'),
        (tensor("O", "BYTES", [], (0, 3)), b"[]"),
        (tensor("O", "BYTES", ['ä"\\\n\x7f/']), '"ä\\"\\\\\\n\x7f/"'.encode()),
        (tensor("O", "BYTES", [b"\xff"]), b'"\xff"'),
    ],
)
def test_values(output: Tensor, text: bytes) -> None:
    """One element is itself, any other number of them a flat array."""
    assert written(output) == b'{"O":' + text + b"," + TAIL


def test_members_are_in_the_order_of_their_names() -> None:
    outputs = (tensor("z", "INT8", [1]), tensor("A", "INT8", [2]), tensor("n", "INT8", [3]), tensor("é", "INT8", [4]))
    text = written(*outputs, id_text=b'"q"', parameters={"b": "x", "a": True, "y": 1.0})
    assert text.decode() == '{"A":2,"a":true,"b":"x","id":"q","model_name":"m","model_version":"1","n":3,"y":1.0,"z":1,"é":4}'


def test_equal_names() -> None:
    """What tells of the response counts before parameters, and these before outputs."""
    outputs = [tensor(name, "BYTES", ["o"]) for name in ("id", "model_name", "p", "q")]
    assert json.loads(written(*outputs, parameters={"model_name": "x", "p": 1})) == {
        "id": "o",
        "model_name": "m",
        "model_version": "1",
        "p": 1,
        "q": "o",
    }
    assert json.loads(written(*outputs, id_text=b'"r"'))["id"] == "r"


def test_nothing_but_the_model() -> None:
    assert written() == b"{" + TAIL


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_no_json_form(datatype: str) -> None:
    with pytest.raises(StatusError) as refused:
        written(tensor("O", datatype, [1]))
    text = f"sending {datatype} data via JSON is not supported. Please use the binary data format for output"
    assert (refused.value.code, refused.value.message) == (Code.INVALID_ARG, text)


@pytest.mark.parametrize(
    "output",
    [
        Tensor("O", "INT32", (2,), Inline(memoryview(bytes(4)))),
        Tensor("O", "INT32", (1,), Inline(memoryview(bytes(3)))),
        Tensor("O", "BYTES", (1,), Inline(memoryview(b"\5\0\0\0ab"))),
        Tensor("O", "INT32", (5,), Inline(memoryview(bytes(2 * SHORT_BYTE_SIZE)))),
    ],
)
def test_a_wrong_size(output: Tensor) -> None:
    with pytest.raises(StatusError) as refused:
        written(output)
    assert (refused.value.code, refused.value.message) == (Code.INTERNAL, "output tensor shape does not match size of output for 'O'")


@pytest.mark.parametrize(
    ("datatype", "values"),
    [("INT32", list(range(50_000))), ("BYTES", [f"text {number}" for number in range(20_000)]), ("BYTES", ["x" * 100_000])],
)
def test_long_tensors_are_written_in_steps(datatype: str, values: list[Any]) -> None:
    """And as short ones are."""
    output = tensor("O", datatype, values)
    steps = response_steps("m", 1, b"", Response(REQUEST, [output, tensor("P", "INT8", [1])]))
    assert next(steps) is None
    expected = {"O": values if len(values) > 1 else values[0], "P": 1, "model_name": "m", "model_version": "1"}
    assert json.loads(b"".join(finish(steps))) == expected
