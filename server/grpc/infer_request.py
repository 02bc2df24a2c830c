"""Reads a ``ModelInferRequest``: a message without its raw tensors, and those, which stay where they were received.

Source of the order of checks and their texts: Triton's gRPC front end, see tests/parity.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ...shm.datatypes import DATATYPES
from ...shm.placement import Inline, Placement, Span
from ...workers.contract.messages import Parameters, RequestBody, RequestContext, Tensor, WantedOutput
from ...workers.contract.signature import Signature
from ...workers.contract.status import invalid, label
from ...workers.contract.validation import batch_size_of
from ..dispatch.sequence_controls import END, START
from ..door.correlation import checked_correlation_id
from ..door.forwarding import forward
from ..door.scratch import Regions, Scratch
from .infer_call import InferCall
from .infer_message import InferMessage
from .typed_contents import typed_bytes

_MAX_UINT64 = 2**64 - 1
_EMPTY_FINAL = "triton_enable_empty_final_response"
_CUSTOM = frozenset(("int64_param", "bool_param", "string_param", "double_param"))
_REGION, _OFFSET, _BYTE_SIZE = "shared_memory_region", "shared_memory_offset", "shared_memory_byte_size"
_REGION_PARAMETERS = ((_REGION, "string_param"), (_OFFSET, "int64_param"), (_BYTE_SIZE, "int64_param"))
_EMPTY = Inline(memoryview(b""))
_NO_BODY = RequestBody("", 1, [], [], {})


def read_request(
    message: InferMessage,
    signature: Signature,
    regions_of: Callable[[], Regions],
    scratch: Scratch,
    headers: Iterable[tuple[str, str]] = (),
    forwarded: re.Pattern[str] | None = None,
) -> InferCall:
    """Read a request. Its tensors refer to the bytes received, or to ``scratch`` where they came as typed lists. Raises StatusError.

    ``regions_of`` is only asked where the request uses regions.
    """
    return _Reading(message, signature, regions_of, scratch).call(headers, forwarded)


class _Reading:
    """One pass over a request: what has been read so far."""

    def __init__(self, message: InferMessage, signature: Signature, regions_of: Callable[[], Regions], scratch: Scratch) -> None:
        self._message = message
        self._signature = signature
        self._regions_of = regions_of
        self._scratch = scratch
        self._correlation_id: int | str = 0
        self._flags = 0
        self._parameters: Parameters = {}
        self._call = InferCall(_NO_BODY)

    def call(self, headers: Iterable[tuple[str, str]], forwarded: re.Pattern[str] | None) -> InferCall:
        """The whole request, in the order that decides which of several faults is told."""
        envelope = self._message.envelope
        call = self._call
        if envelope.parameters:
            self._take_parameters(envelope.parameters)
        self._check_unique("input", envelope.inputs)
        if envelope.outputs:
            self._check_unique("output", envelope.outputs)
        if forwarded is not None:
            forward(headers, forwarded, self._parameters)
        tensors = self._tensors(envelope.inputs)
        outputs = [self._output(output) for output in envelope.outputs] if envelope.outputs else []
        lends = self._message.large
        context = None
        if call.timeout_us or self._correlation_id != 0 or self._flags or lends:
            context = RequestContext(self._correlation_id, self._flags, call.timeout_us, "", lends)
        batch_size = batch_size_of(tensors, self._signature)
        call.body = RequestBody(self._message.id, batch_size, tensors, outputs, self._parameters, context)
        return call

    def _take_parameters(self, given: Mapping[str, Any]) -> None:
        call = self._call
        for name, value in given.items():
            kind = value.WhichOneof("parameter_choice")
            if name == "sequence_id":
                if kind == "int64_param":
                    self._correlation_id = value.int64_param & _MAX_UINT64
                elif kind == "string_param":
                    self._correlation_id = checked_correlation_id(value.string_param)
                else:
                    raise invalid("invalid value type for 'sequence_id' parameter, expected int64_param or string_param.")
            elif name == "sequence_start":
                self._flags |= START if _wanted(value, kind, "bool_param", name) else 0
            elif name == "sequence_end":
                self._flags |= END if _wanted(value, kind, "bool_param", name) else 0
            elif name == "priority":
                call.priority = _priority(value, kind)
            elif name == "timeout":
                call.timeout_us = _wanted(value, kind, "int64_param", name) & _MAX_UINT64
            elif name == _EMPTY_FINAL:
                call.empty_final = _wanted(value, kind, "bool_param", name)
            elif name.startswith("triton_"):
                raise invalid(
                    "parameter keys starting with 'triton_' are reserved for Triton usage. Only the following keys starting with "
                    f"'triton_' are allowed: {_EMPTY_FINAL}"
                )
            elif kind in _CUSTOM:
                self._parameters[name] = getattr(value, kind)
            else:
                raise invalid(f"invalid value type for '{name}' parameter, expected int64_param, bool_param, or string_param.")

    def _check_unique(self, what: str, given: Iterable[Any]) -> None:
        names: set[str] = set()
        for item in given:
            if item.name in names:
                raise invalid(f"{label(self._message.id)}{what} '{item.name}' already exists in request")
            names.add(item.name)

    def _tensors(self, inputs: Sequence[Any]) -> list[Tensor]:
        """The inputs, each with its place."""
        raw = self._message.sizes
        places: list[Placement] = []
        indices: list[int] = []
        for item in inputs:
            place = self._elsewhere(item)
            if place is None:
                if len(indices) >= len(raw):
                    raise invalid(f"unable to find data for input tensor '{item.name}' for model '{self._signature.model}' in request.")
                indices.append(len(places))
                place = _EMPTY
            places.append(place)
        for position, index in enumerate(indices):
            places[index] = self._message.place(position)
        return [
            Tensor(item.name, item.datatype if item.datatype in DATATYPES else "<invalid>", tuple(item.shape), place)
            for item, place in zip(inputs, places, strict=True)
        ]

    def _elsewhere(self, item: Any) -> Placement | None:
        """The place of an input that is no raw tensor of the message; None for one that should be."""
        model = self._signature.model
        if item.parameters:
            span = self._span(item.name, item.parameters)
            if span is not None:
                if item.HasField("contents"):
                    raise invalid(
                        f"unexpected 'content' provided when using shared memory for input tensor '{item.name}' for model '{model}'"
                    )
                return span
        if not item.HasField("contents"):
            return None
        if self._message.sizes:
            raise invalid(f"contents field must not be specified when using raw_input_contents for '{item.name}' for model '{model}'")
        return self._scratch.place(typed_bytes(item.contents, item.datatype, item.name, model))

    def _span(self, name: str, parameters: Mapping[str, Any]) -> Span | None:
        """The part of a region that parameters name; None where they name none."""
        found: dict[str, Any] = {}
        for key, wanted in _REGION_PARAMETERS:
            if key not in parameters:
                continue
            if key != _REGION and _REGION not in found:
                raise invalid(f"'{key}' can not be specified without '{_REGION}' parameter for tensor '{name}'")
            value = parameters[key]
            if value.WhichOneof("parameter_choice") != wanted:
                raise invalid(f"invalid value type for '{key}' parameter for tensor '{name}', expected {wanted}.")
            found[key] = getattr(value, wanted)
        if _REGION not in found:
            return None
        if _BYTE_SIZE not in found:
            raise invalid(f"'{_BYTE_SIZE}' must be specified along with '{_REGION}' parameter for tensor '{name}'")
        return self._regions_of().span(found[_REGION], found.get(_OFFSET, 0) & _MAX_UINT64, found[_BYTE_SIZE] & _MAX_UINT64)

    def _output(self, output: Any) -> WantedOutput:
        """An output that the request lists; how it is to be answered is noted."""
        parameters = output.parameters
        if not parameters:
            return WantedOutput(output.name, None)
        span = self._span(output.name, parameters)
        if "classification" in parameters:
            value = parameters["classification"]
            if value.WhichOneof("parameter_choice") != "int64_param":
                raise invalid("invalid value type for 'classification' parameter, expected int64_param")
            if value.int64_param <= 0:
                raise invalid("invalid value for 'classification' parameter, expected >= 0")
            if span is not None:
                raise invalid("output can't set both 'shared_memory_region' and 'classification'")
            self._call.classes = {**(self._call.classes or {}), output.name: value.int64_param}
        return WantedOutput(output.name, span)


def _wanted(value: Any, kind: str | None, wanted: str, name: str) -> Any:
    if kind != wanted:
        raise invalid(f"invalid value type for '{name}' parameter, expected {wanted}.")
    return getattr(value, wanted)


def _priority(value: Any, kind: str | None) -> int:
    if kind == "uint64_param":
        return int(value.uint64_param)
    if kind != "int64_param":
        raise invalid("invalid value type for 'priority' parameter, expected int64_param or uint64_param.")
    if value.int64_param < 0:
        raise invalid("invalid value for 'priority', expected value >= 0.")
    return int(value.int64_param)
