"""Writes the responses of the generate extension: one JSON object each, members in the order of their names."""

from __future__ import annotations

from ...shm.datatypes import element_count
from ...workers.contract.json_writing import quote, write
from ...workers.contract.messages import Tensor
from ...workers.contract.status import invalid
from ..dispatch.request import Response
from .json_tensor import json_array
from .long_reply import SHORT_BYTE_SIZE, array_pieces, unequal
from .turns import Steps

EXPECTS_ONE = (
    "generate expects model to produce exactly 1 response, use generate stream for model that generates various number of responses"
)


def response_steps(model: str, version: int, id_text: bytes, response: Response) -> Steps[list[bytes]]:
    """Write a response that is no error, in one step unless it is long; the parts make up the object.

    A tensor of one element is that element, any other a flat array. Where names are the same, what describes the response
    goes before its parameters, and these before its outputs. Raises StatusError for what has no JSON form.
    """
    members: dict[str, bytes | Tensor] = {"model_name": quote(model), "model_version": b'"%d"' % version}
    if id_text:
        members["id"] = id_text
    for name, value in response.parameters.items():
        members.setdefault(name, write(value))
    for tensor in response.outputs:
        if tensor.datatype in ("FP16", "BF16"):
            raise invalid(f"sending {tensor.datatype} data via JSON is not supported. Please use the binary data format for output")
        members.setdefault(tensor.name, tensor)
    parts: list[bytes] = []
    between = b"{"
    for name in sorted(members):
        member = members[name]
        parts += (between, quote(name), b":")
        between = b","
        if isinstance(member, bytes):
            parts.append(member)
            continue
        content = response.read(member)
        if len(content) <= SHORT_BYTE_SIZE:
            parts.append(_short(member, content))
        elif element_count(member.shape) == 1:
            # One string: there is nothing that it could be cut into.
            parts.append(_short(member, content))
            yield
        else:
            for piece in array_pieces(content, member):
                parts.append(piece)
                yield
            parts.append(b"]")
    parts.append(b"}")
    return parts


def _short(tensor: Tensor, content: memoryview) -> bytes:
    try:
        text, count = json_array(content, tensor.datatype)
    except ValueError:
        raise unequal(tensor) from None
    if count != element_count(tensor.shape):
        raise unequal(tensor)
    return text[1:-1] if count == 1 else text
