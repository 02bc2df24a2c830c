"""Writes the HTTP reply to an inference: JSON, and binary tensors behind it that are not copied."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

from ...shm.datatypes import element_count
from ...shm.placement import Inline, Span
from ...workers.contract.json_writing import quote, write
from ...workers.contract.messages import Tensor
from ...workers.contract.status import StatusError, internal, invalid
from ..dispatch.request import Response
from ..door.classification import classify
from .errors import JSON_TYPE, error_reply
from .exchange import Reply
from .infer_call import InferCall
from .json_tensor import json_array
from .long_reply import SHORT_BYTE_SIZE, LongArray, LongReply, unequal

if TYPE_CHECKING:
    from ..inference_service import Version

_BINARY_TYPE = (b"Content-Type", b"application/octet-stream")
_JSON_HEADERS = (JSON_TYPE,)
_JSON_LENGTH = b"Inference-Header-Content-Length"

_BRIEF_COUNT = 8
"""The JSON parts of replies with more outputs are not kept: they are long, and made anew in little time beside the rest."""


def failure(error: StatusError, *, plain: bool = False) -> Reply:
    """The reply of a request that failed; ``plain`` where the protocol's own server calls it text/plain."""
    return error_reply(error, plain)


def infer_reply(version: Version, call: InferCall, response: Response) -> Reply | LongReply:
    """The reply with a response's outputs, each in the form that the request asked for; or what makes it, where that takes long.

    The response is released by the reply's ``on_sent``, or at once where nothing of it is left to
    send. Raises StatusError, and then the response is not released.
    """
    if response.error is not None:
        raise response.error
    tail: list[bytes | memoryview] = []
    form = call.form
    forms = call.forms
    objects: list[bytes] = []
    arrays: dict[int, LongArray] | None = None
    brief = not call.id_text and not response.parameters and len(response.outputs) <= _BRIEF_COUNT
    for tensor in response.outputs:
        if forms is not None:
            form = forms.get(tensor.name, call.form)
        if form.binary and not form.classes:
            place = tensor.place
            content = place.content if type(place) is Inline else response.read(tensor)
            objects.append(_binary_object(tensor.name, tensor.datatype, tensor.shape, len(content)))
            if len(content):
                tail.append(content)
        elif form.in_region:
            if type(tensor.place) is not Span:
                raise internal(f"output '{tensor.name}' was not written to its shared memory region")
            objects.append(_region_object(tensor.name, tensor.datatype, tensor.shape))
        elif form.classes:
            brief = False
            objects.append(_classes_object(version, tensor, response.read(tensor), form.classes, tail if form.binary else None))
        else:
            brief = False
            content = response.read(tensor)
            if len(content) > SHORT_BYTE_SIZE:
                arrays = arrays or {}
                arrays[len(objects)] = LongArray(_json_head(tensor), tensor, content)
                objects.append(b"")
            else:
                objects.append(_json_object(tensor, content))
    members = _model_members(version.name, version.version)
    if brief:
        text, headers = _brief_part(members, *objects)
        if tail:
            return Reply(200, headers, (text, *tail), response.release)
        response.release()
        return Reply(200, _JSON_HEADERS, (text,))
    lead = b"".join(
        (
            b'{"id":' + call.id_text + b"," if call.id_text else b"{",
            members,
            b',"parameters":' + write(response.parameters) if response.parameters else b"",
            b',"outputs":[',
        )
    )
    if arrays is not None:
        return LongReply(lead, objects, arrays, response, lambda text: _reply(text, tail, response.release))
    return _reply((b"".join((lead, b",".join(objects), b"]}")),), tail, response.release)


@lru_cache(maxsize=2048)
def _brief_part(members: bytes, *objects: bytes) -> tuple[bytes, tuple[tuple[bytes, bytes], ...]]:
    """The JSON part of a reply that has no other members and no data in it, and the headers for tensors behind it."""
    text = b'{%b,"outputs":[%b]}' % (members, b",".join(objects))
    return text, (_BINARY_TYPE, (_JSON_LENGTH, b"%d" % len(text)))


def packed(reply: Reply, encoding: str, content: bytes) -> Reply:
    """A reply with its whole body compressed to ``content``; what it held is released."""
    if reply.on_sent is not None:
        reply.on_sent()
    return Reply(reply.status, (*reply.headers, (b"Content-Encoding", encoding.encode())), (content,))


def _reply(text: tuple[bytes, ...], tail: list[bytes | memoryview], release: Callable[[], None]) -> Reply:
    if tail:
        return Reply(200, (_BINARY_TYPE, (_JSON_LENGTH, b"%d" % sum(map(len, text)))), (*text, *tail), release)
    release()
    return Reply(200, _JSON_HEADERS, text)


@lru_cache(maxsize=1024)
def _model_members(name: str, version: int) -> bytes:
    return b'"model_name":%b,"model_version":"%d"' % (quote(name), version)


@lru_cache(maxsize=8192)
def _head(name: str, datatype: str, shape: tuple[int, ...]) -> bytes:
    """The members that every form of an output has; the object is left open."""
    dims = ",".join(map(str, shape))
    return b'{"name":%b,"datatype":"%b","shape":[%b]' % (quote(name), datatype.encode(), dims.encode())


@lru_cache(maxsize=8192)
def _binary_object(name: str, datatype: str, shape: tuple[int, ...], byte_size: int) -> bytes:
    return b'%b,"parameters":{"binary_data_size":%d}}' % (_head(name, datatype, shape), byte_size)


def _region_object(name: str, datatype: str, shape: tuple[int, ...]) -> bytes:
    return _head(name, datatype, shape) + b"}"


def _classes_object(version: Version, tensor: Tensor, content: memoryview, count: int, tail: list[bytes | memoryview] | None) -> bytes:
    classes, shape = classify(
        content, tensor.datatype, tensor.shape, version.signature.batching, count, version.labels.get(tensor.name, ())
    )
    if tail is None:
        return _head(tensor.name, "BYTES", shape) + b',"data":' + json_array(memoryview(classes), "BYTES")[0] + b"}"
    if classes:
        tail.append(classes)
    return _binary_object(tensor.name, "BYTES", shape, len(classes))


def _json_head(tensor: Tensor) -> bytes:
    if tensor.datatype in ("FP16", "BF16"):
        raise invalid(f"sending {tensor.datatype} data via JSON is not supported. Please use the binary data format for output")
    return _head(tensor.name, tensor.datatype, tensor.shape) + b',"data":'


def _json_object(tensor: Tensor, content: memoryview) -> bytes:
    head = _json_head(tensor)
    try:
        text, count = json_array(content, tensor.datatype)
    except ValueError:
        raise unequal(tensor) from None
    # A tensor without dims has one element, though the protocol counts none in its shape.
    if count != (element_count(tensor.shape) if tensor.shape else 1):
        raise unequal(tensor)
    return head + text + b"}"
