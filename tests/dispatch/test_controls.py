"""The control tensors of sequence models: every kind, every datatype, and ids that do not fit."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorfarm.server.dispatch.sequence_controls import END, START, Controls, CorrelationControl, controls_of
from tensorfarm.shm.datatypes import DATATYPES, iter_bytes
from tensorfarm.shm.placement import Inline
from tensorfarm.workers.contract.configuration import parse_text
from tensorfarm.workers.contract.messages import Tensor

INTEGERS = {"UINT64": np.uint64, "INT64": np.int64, "UINT32": np.uint32, "INT32": np.int32}
KINDS = ("START", "END", "READY")


def controls_for(text: str, max_batch_size: int = 4) -> Controls:
    return controls_of(parse_text(f'name: "m" max_batch_size: {max_batch_size} sequence_batching {{ {text} }}', "config.pbtxt"))


def control(name: str, kind: str, rest: str) -> str:
    return f'control_input {{ name: "{name}" control {{ kind: CONTROL_SEQUENCE_{kind} {rest} }} }}'


def value(tensor: Tensor) -> Any:
    """The one element of a tensor, whose bytes are as many as its datatype has."""
    assert type(tensor.place) is Inline
    content = tensor.place.content
    datatype = DATATYPES[tensor.datatype]
    if tensor.datatype == "BYTES":
        (element,) = iter_bytes(content)
        return bytes(element)
    assert content.nbytes == datatype.byte_size
    (element,) = np.frombuffer(content, datatype.dtype)
    return element.item()


@pytest.mark.parametrize(
    ("field", "datatype", "pair"),
    [
        ("int32_false_true: [ 0, 1 ]", "INT32", (0, 1)),
        ("int32_false_true: [ 3, -5 ]", "INT32", (3, -5)),
        ("fp32_false_true: [ -1, 2.5 ]", "FP32", (-1.0, 2.5)),
        ("bool_false_true: [ false, true ]", "BOOL", (False, True)),
        ("bool_false_true: [ true, false ]", "BOOL", (True, False)),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_in_every_datatype(kind: str, field: str, datatype: str, pair: tuple[Any, Any]) -> None:
    controls = controls_for(control("C", kind, field))
    for flags, ready in itertools.product(range(8), (False, True)):
        (tensor,) = controls.tensors(flags, ready, 7)
        true = {"START": flags & START, "END": flags & END, "READY": ready}[kind]
        assert (tensor.name, tensor.datatype, tensor.shape) == ("C", datatype, (1, 1))
        assert value(tensor) == pair[bool(true)]


def test_each_control_is_there_once() -> None:
    text = " ".join(control(kind.lower(), kind, "int32_false_true: [ 0, 1 ]") for kind in ("READY", "END", "START"))
    controls = controls_for(f"{text} {control('id', 'CORRID', 'data_type: TYPE_INT32')}")
    assert {tensor.name: value(tensor) for tensor in controls.tensors(END, True, 7)} == {"start": 0, "end": 1, "ready": 1, "id": 7}
    assert [tensor.name for tensor in controls.tensors(0, False, 0)].count("id") == 1


def test_a_model_without_controls_gets_none() -> None:
    assert controls_for("").tensors(START, True, 7) == []
    assert controls_for("").correlation is None


@pytest.mark.parametrize(("max_batch_size", "shape"), [(0, (1,)), (1, (1, 1)), (8, (1, 1))])
def test_shapes(max_batch_size: int, shape: tuple[int, ...]) -> None:
    text = control("s", "START", "bool_false_true: [ false, true ]") + control("id", "CORRID", "data_type: TYPE_STRING")
    assert {tensor.shape for tensor in controls_for(text, max_batch_size).tensors(0, True, "x")} == {shape}


@pytest.mark.parametrize("datatype", INTEGERS)
@given(correlation_id=st.one_of(st.integers(1, 2**64 - 1), st.sampled_from([1, 2**31 - 1, 2**31, 2**32, 2**63, 2**64 - 1, 2**40 + 7])))
def test_ids_are_cut_to_their_low_bits(datatype: str, correlation_id: int) -> None:
    tensor = CorrelationControl("C", datatype, (1, 1)).tensor(correlation_id)
    assert tensor.datatype == datatype
    assert value(tensor) == np.array([correlation_id], np.uint64).astype(INTEGERS[datatype])[0]


def test_ids_that_the_original_was_asked_for() -> None:
    def seen(datatype: str, correlation_id: int) -> Any:
        return value(CorrelationControl("C", datatype, (1,)).tensor(correlation_id))

    assert [seen(datatype, 2**40 + 7) for datatype in ("INT32", "UINT32", "INT64", "UINT64")] == [7, 7, 2**40 + 7, 2**40 + 7]
    assert [seen(datatype, 2**64 - 1) for datatype in ("INT32", "UINT32", "INT64", "UINT64")] == [-1, 2**32 - 1, -1, 2**64 - 1]
    assert [seen(datatype, 2**63) for datatype in ("INT32", "UINT32")] == [0, 0]


@pytest.mark.parametrize("correlation_id", ["x", "a sequence", "grüße, 你好", "y" * 128])
def test_ids_that_are_text(correlation_id: str) -> None:
    tensor = CorrelationControl("C", "BYTES", (1, 1)).tensor(correlation_id)
    assert tensor.datatype == "BYTES" and value(tensor) == correlation_id.encode()


@pytest.mark.parametrize(("datatype", "none"), [*[(datatype, 0) for datatype in INTEGERS], ("BYTES", b"")])
def test_a_row_without_a_sequence_has_no_id(datatype: str, none: object) -> None:
    assert value(CorrelationControl("C", datatype, (1, 1)).tensor(0)) == none


@pytest.mark.parametrize("number", ["UINT64", "INT64", "UINT32", "INT32", "STRING"])
def test_the_datatype_of_ids_is_that_of_the_configuration(number: str) -> None:
    controls = controls_for(control("C", "CORRID", f"data_type: TYPE_{number}"))
    assert controls.correlation == CorrelationControl("C", number.replace("STRING", "BYTES"), (1, 1))


def test_ids_of_the_other_kind_are_refused() -> None:
    text = CorrelationControl("C", "BYTES", (1, 1))
    for datatype in INTEGERS:
        numeric = CorrelationControl("C", datatype, (1, 1))
        assert numeric.mismatch(7, "m") is None
        error = numeric.mismatch("7", "m")
        assert error is not None and error.code.name == "INVALID_ARG"
        assert error.message == f"sequence batching control 'C' data-type is 'BYTES', but model 'm' expects '{datatype}'"
    assert text.mismatch("7", "m") is None
    error = text.mismatch(7, "m")
    assert error is not None and "data-type is 'UINT64', but model 'm' expects 'BYTES'" in error.message


def test_tensors_that_are_shared_cannot_be_written() -> None:
    """The same two stand in every batch."""
    controls = controls_for(control("C", "START", "int32_false_true: [ 0, 1 ]"))
    (tensor,) = controls.tensors(0, True, 0)
    assert type(tensor.place) is Inline and tensor.place.content.readonly


def test_one_tensor_for_two_kinds() -> None:
    """The original loads it; a request can have only one tensor of a name."""
    both = "control { kind: CONTROL_SEQUENCE_START int32_false_true: [ 0, 1 ] } control { kind: CONTROL_SEQUENCE_READY int32_false_true: [ 0, 1 ] }"
    controls = controls_for(f'control_input {{ name: "C" {both} }}')
    assert [tensor.name for tensor in controls.tensors(START, True, 1)] == ["C"]
