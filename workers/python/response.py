"""What a model answers a request with, and what it gets from the models it calls."""

from __future__ import annotations

import json
from collections.abc import Sequence

from ..contract.json_writing import write
from ..contract.messages import Parameters
from . import parameters as parameters_
from .errors import TritonError, TritonModelException, are, incompatible
from .tensor import Tensor


class InferenceResponse:
    """Output tensors, or an error; with an error the tensors do not count.

    Raises TypeError for other types, TritonModelException for None among the tensors and for parameters
    that are no dict of str to bool, int or str.
    """

    __slots__ = ("_error", "_spaced", "parameters_dict", "tensors")

    def __init__(
        self, output_tensors: Sequence[Tensor] = (), error: TritonError | None = None, parameters: dict[str, bool | int | str] | None = None
    ) -> None:
        # what one client's request costs is counted in microseconds: nothing is called for what is as it should be
        tensors = list(output_tensors) if output_tensors.__class__ is list or output_tensors.__class__ is tuple else None
        if tensors is None or error is not None and not are(TritonError, error):
            raise _incompatible(output_tensors, error, parameters)
        for tensor in tensors:
            if tensor.__class__ is not Tensor:
                _refuse(tensors, error, parameters)
        self.tensors: list[Tensor] = tensors
        self._error = error
        self._spaced = True
        self.parameters_dict: Parameters = {} if parameters is None else parameters_.checked(parameters)

    @classmethod
    def received(cls, tensors: list[Tensor], error: TritonError | None, parameters: Parameters) -> InferenceResponse:
        """The response of a model that was called; its parameters may be of any type that requests have."""
        response = cls(tensors, error)
        response.parameters_dict = parameters
        response._spaced = False
        return response

    def output_tensors(self) -> list[Tensor]:
        """The tensors."""
        return list(self.tensors)

    def has_error(self) -> bool:
        """Is it an error?"""
        return self._error is not None

    def error(self) -> TritonError | None:
        """The error, or None."""
        return self._error

    def parameters(self) -> str:
        """The parameters as the text of a JSON object."""
        return json_text(self.parameters_dict, spaced=self._spaced)


def json_text(parameters: Parameters, *, spaced: bool) -> str:
    """Parameters as JSON: ``spaced`` as Python writes it, for what a model made itself; otherwise as the server does."""
    if spaced:
        return json.dumps(parameters)
    return write(parameters).decode()


def _refuse(tensors: Sequence[object], error: object, parameters: object) -> None:
    if any(tensor is not None and not isinstance(tensor, Tensor) for tensor in tensors):
        raise _incompatible(tensors, error, parameters)
    if any(tensor is None for tensor in tensors):
        raise TritonModelException("Output tensor for inference response should not be empty.")


def _incompatible(*arguments: object) -> TypeError:
    signature = "InferenceResponse(output_tensors: list[Tensor] = [], error: TritonError = None, parameters: dict = None)"
    return incompatible(signature, *arguments)
