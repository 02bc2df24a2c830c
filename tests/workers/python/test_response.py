from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tensorfarm.workers.python import triton_python_backend_utils as pb
from tensorfarm.workers.python.errors import TritonError, TritonModelException
from tensorfarm.workers.python.response import InferenceResponse
from tensorfarm.workers.python.tensor import Tensor

TENSOR = Tensor("O", np.zeros(2))


def test_tensors() -> None:
    response = InferenceResponse([TENSOR])
    assert response.output_tensors() == [TENSOR] and not response.has_error() and response.error() is None
    assert InferenceResponse((TENSOR,)).output_tensors() == [TENSOR]
    assert InferenceResponse().output_tensors() == []
    assert pb.get_output_tensor_by_name(response, "O") is TENSOR
    assert pb.get_output_tensor_by_name(response, "P") is None


def test_a_response_keeps_to_the_tensors_it_was_made_of() -> None:
    given = [TENSOR]
    response = InferenceResponse(given)
    given.clear()
    response.output_tensors().clear()
    assert response.output_tensors() == [TENSOR]


def test_an_error() -> None:
    response = InferenceResponse(error=TritonError("bad luck", TritonError.CANCELLED))
    error = response.error()
    assert response.has_error() and error is not None
    assert (error.message(), error.code()) == ("bad luck", TritonError.CANCELLED)


def test_parameters() -> None:
    given = {"a": 1, "b": True, "c": "é"}
    response = InferenceResponse([], None, given)
    given.clear()
    assert response.parameters() == '{"a": 1, "b": true, "c": "\\u00e9"}'
    assert response.parameters_dict == {"a": 1, "b": True, "c": "é"}
    assert InferenceResponse().parameters() == "{}" and InferenceResponse().parameters_dict == {}
    assert InferenceResponse.received([], None, {"f": 1.5, "c": "é"}).parameters() == '{"f":1.5,"c":"é"}'


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (([None],), "Output tensor for inference response should not be empty."),
        (([], None, {1: 1}), "Expect parameters keys to have type str, found type <class 'int'>"),
        (([], None, {"a": 1.5}), "Expect parameters values to have type bool/int/str, found type <class 'float'>"),
        (([], None, {"a": None}), "Expect parameters values to have type bool/int/str, found type <class 'NoneType'>"),
        (([], None, {"a": 2**63}), "Expect parameters values of type int to have 64 bits, found 9223372036854775808"),
    ],
)
def test_what_the_protocol_does_not_have(arguments: tuple[Any, ...], text: str) -> None:
    with pytest.raises(TritonModelException) as raised:
        InferenceResponse(*arguments)
    assert str(raised.value) == text


@pytest.mark.parametrize("arguments", [([3],), (TENSOR,), (None,), ([], "error"), ([], ValueError("x"))])
def test_other_types(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(TypeError, match="incompatible"):
        InferenceResponse(*arguments)
