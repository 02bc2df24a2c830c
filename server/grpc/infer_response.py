"""Writes a ``ModelInferResponse``: the pieces of its bytes, tensors where they lie."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING

from ...shm.placement import Inline, Span
from ...workers.contract.messages import Parameters, Tensor
from ...workers.contract.status import invalid
from ..dispatch.request import Response
from ..door.classification import classify
from .protocol import messages
from .wire import field, field_head, packed_varints, varint

if TYPE_CHECKING:
    from ..inference_service import Version

MOST_BYTES = 2**31 - 1
"""No gRPC message is larger."""

_MODEL_NAME, _MODEL_VERSION, _ID, _PARAMETERS, _OUTPUTS, _RAW_OUTPUT_CONTENTS = range(1, 7)
_NAME, _DATATYPE, _SHAPE = range(1, 4)
_STREAM_ERROR, _STREAM_RESPONSE = 1, 2
_RAW_HEAD = varint(_RAW_OUTPUT_CONTENTS << 3 | 2)
_MAX_INT64 = 2**63 - 1

_FINAL = "triton_final_response"


def response_parts(
    version: Version, request_id: str, classes: Mapping[str, int] | None, response: Response, final: bytes = b""
) -> list[bytes | memoryview]:
    """The pieces of the message with a response's outputs, some of which lie where the response does. Raises StatusError.

    ``classes`` has how many classes an output is answered with, ``final`` is a field more.
    """
    parts: list[bytes | memoryview] = [_model_fields(version.name, version.version)]
    if request_id:
        parts.append(_id_field(request_id))
    if response.parameters:
        parts.append(_parameter_fields(response.parameters))
    if final:
        parts.append(final)
    raw: list[bytes | memoryview] = []
    for tensor in response.outputs:
        place = tensor.place
        wanted = classes.get(tensor.name) if classes is not None else None
        if wanted is not None:
            content, shape = _classes(version, tensor, response.read(tensor), wanted)
            parts.append(_output_field(tensor.name, "BYTES", shape))
            raw += (_RAW_HEAD, varint(len(content)), content)
            continue
        parts.append(_output_field(tensor.name, tensor.datatype, tensor.shape))
        if type(place) is Span:
            raw += (_RAW_HEAD, b"\0")
        else:
            view = place.content if type(place) is Inline else response.read(tensor)
            raw += (_RAW_HEAD, varint(len(view)), view)
    parts += raw
    byte_size = sum(map(len, parts))
    if byte_size > MOST_BYTES:
        raise invalid(f"Response has byte size {byte_size} which exceeds gRPC's byte size limit {MOST_BYTES}.")
    return parts


def stream_response(version: Version, request_id: str, classes: Mapping[str, int] | None, response: Response, final: bool) -> bytes:
    """As ``response_parts``, put together as a message of a stream; ``final``: it is the last one of its request. Raises StatusError."""
    parts = response_parts(version, request_id, classes, response, _FINAL_FIELDS[final])
    return b"".join((field_head(_STREAM_RESPONSE, sum(map(len, parts))), *parts))


def stream_refusal(message: str, request_id: str) -> bytes:
    """The message of a stream about a request that has not begun."""
    return _stream_error(message, _id_field(request_id))


def stream_error(message: str, request_id: str, model: str, final: bool) -> bytes:
    """The message of a stream about an error in place of a response. No version is told, as in the original."""
    named = field(_MODEL_NAME, model.encode())
    return _stream_error(message, named + _id_field(request_id) + _FINAL_FIELDS[final])


def stream_end(request_id: str, model: str) -> bytes:
    """The message of a stream that says only that a request has had its last response."""
    named = field(_MODEL_NAME, model.encode())
    return field(_STREAM_RESPONSE, named + _id_field(request_id) + _FINAL_FIELDS[True])


def _id_field(request_id: str) -> bytes:
    return field(_ID, request_id.encode()) if request_id else b""


def _stream_error(message: str, response: bytes) -> bytes:
    told = message.encode("utf-8", "replace")
    return (field(_STREAM_ERROR, told) if told else b"") + field(_STREAM_RESPONSE, response)


@lru_cache(maxsize=1024)
def _model_fields(name: str, version: int) -> bytes:
    return field(_MODEL_NAME, name.encode()) + field(_MODEL_VERSION, b"%d" % version)


@lru_cache(maxsize=8192)
def _output_field(name: str, datatype: str, shape: tuple[int, ...]) -> bytes:
    return field(_OUTPUTS, field(_NAME, name.encode()) + field(_DATATYPE, datatype.encode()) + packed_varints(_SHAPE, shape))


def _parameter_fields(parameters: Parameters) -> bytes:
    message = messages.ModelInferResponse()
    for name, value in parameters.items():
        found = message.parameters[name]
        if isinstance(value, bool):
            found.bool_param = value
        elif isinstance(value, int):
            if value > _MAX_INT64:
                found.uint64_param = value
            else:
                found.int64_param = value
        elif isinstance(value, str):
            found.string_param = value
        else:
            found.double_param = value
    return bytes(message.SerializeToString())


_FINAL_FIELDS = (_parameter_fields({_FINAL: False}), _parameter_fields({_FINAL: True}))


def _classes(version: Version, tensor: Tensor, content: memoryview, count: int) -> tuple[bytes, tuple[int, ...]]:
    labels = version.labels.get(tensor.name, ())
    return classify(content, tensor.datatype, tensor.shape, version.signature.batching, count, labels)
