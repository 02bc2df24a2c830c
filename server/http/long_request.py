"""Reads an inference request with a long JSON part in steps: its large tensors are cut out, and read piece by piece into their place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from ...shm.arena import ArenaFull
from ...shm.datatypes import DATATYPES
from ...shm.placement import Inline, Placement
from ...workers.contract.signature import Signature
from ...workers.contract.status import Code, StatusError, invalid, unavailable
from ..door.scratch import INLINE_BYTE_SIZE, NO_MEMORY, Regions, Scratch
from .exchange import HttpRequest
from .infer_call import InferCall, InferSettings
from .infer_envelope import DECODER, Envelope, Input
from .infer_request import (
    OWN_DEPTH,
    UNDECODABLE,
    Reading,
    check_byte_size,
    check_datatype,
    forward_headers,
    input_of,
    is_regular,
    json_count,
    numbers_byte_size,
    read_request,
    too_large,
)
from .json_cutting import CutArray, CutDocument, cut_document
from .json_elements import Elements, Numbers, Strings, Unread, read_elements
from .json_tensor import NUMBERS
from .json_text import BAD_SURROGATE, MAX_DEPTH, NotJson, check_containers, parse_long
from .turns import Steps

LONG_BYTE_SIZE = 64 * 1024
"""Longer JSON parts are read in steps."""

REST_BYTE_SIZE = 1024 * 1024
"""The most JSON that is read in one step: what is left of a document when the data of its large tensors is cut out, or cannot be."""


class LongScratch(Scratch):
    """Scratch memory that is reserved first and written then."""

    __slots__ = ()

    def reserve(self, byte_size: int) -> tuple[memoryview, Callable[[int, int], Placement]]:
        """Memory, and what places a part of it. Raises StatusError UNAVAILABLE where the arena is full."""
        if self._arena is None or byte_size <= INLINE_BYTE_SIZE:
            view = memoryview(bytearray(byte_size))
            return view, lambda start, stop: Inline(view[start:stop])
        try:
            block = self._arena.reserve(byte_size)
        except ArenaFull:
            raise unavailable(NO_MEMORY) from None
        self._blocks.append(block)
        return block.view, block.place


class _Unforeseen(Exception):
    """An array was not read as what it turns out to be."""


class _Tensor:
    """A tensor of a cut-out array: its elements, and where they lie."""

    __slots__ = ("elements", "place")

    def __init__(self, elements: Elements, place: Callable[[int, int], Placement] | None = None) -> None:
        self.elements = elements
        self.place = place


def read_long_request(
    request: HttpRequest,
    json_size: int,
    signature: Signature,
    regions: Regions,
    scratch: LongScratch,
    settings: InferSettings,
) -> Steps[InferCall]:
    """Do what ``read_request`` does, in steps; only documents that are unusual in their form are read in one.

    Raises StatusError, of syntax in the text and the order that ``read_request`` would raise it in.
    """
    if json_size > settings.max_input_size:
        raise too_large("request JSON size", json_size, settings.max_input_size)
    view = request.body.view
    document = yield from cut_document(view, json_size)
    if (json_size if document is None else len(document.rest)) > REST_BYTE_SIZE:
        raise invalid(f"request JSON apart from the data of its tensors exceeds the maximum allowed size of {REST_BYTE_SIZE} bytes")
    if document is None:
        return read_request(request, json_size, signature, regions, scratch, settings)
    brackets = sum([array.brackets - 2 for array in document.arrays])
    check_containers(document.rest, brackets)
    rest = document.rest
    envelope, parsed, fault = _read_rest(rest)
    tensors = {array.mark: _Tensor(Elements()) for array in document.arrays}
    arrays = {array.mark: array for array in document.arrays}
    if fault is None:
        for item in _inputs_of(envelope, parsed):
            mark = _mark_of(item.data)
            if mark in arrays:
                tensors[mark] = _tensor_for(item, arrays[mark], scratch, settings.max_input_size)
    yield from _read_arrays(view, document, tensors, fault)
    reading = _LongReading(request, json_size, len(view), signature, regions, scratch, settings)
    reading.cut = tensors
    try:
        call = reading.typed(envelope, rest) if envelope is not None else reading.document(parsed)
    except _Unforeseen:
        return read_request(request, json_size, signature, regions, scratch, settings)
    if settings.forward is not None:
        forward_headers(request, settings.forward, call.body.parameters)
    return call


def _read_rest(rest: bytes) -> tuple[Envelope | None, Any, StatusError | None]:
    """The envelope; or what else the rest is where it is no regular one; or what is wrong with it."""
    try:
        envelope = DECODER.decode(rest)
        if is_regular(envelope, rest):
            return envelope, None, None
    except UNDECODABLE:
        pass
    try:
        return None, parse_long(rest.partition(b"\0")[0], MAX_DEPTH + OWN_DEPTH), None
    except StatusError as error:
        if error.code is Code.INVALID_ARG:
            raise
        return None, None, error


def _read_arrays(view: memoryview, document: CutDocument, tensors: dict[bytes, _Tensor], fault: StatusError | None) -> Steps[None]:
    """Read all arrays. Raises the first error of syntax in them, or the rest's ``fault`` where that comes before."""
    lone = []
    end = len(view)
    if isinstance(fault, NotJson):
        fault = NotJson(fault.why, document.offset(fault.offset))
        if fault.why == BAD_SURROGATE:
            lone.append(fault)
        else:
            end = fault.offset
    for array in document.arrays:
        if array.start < end:
            elements = tensors[array.mark].elements
            yield from read_elements(view, array, elements)
            if isinstance(elements.fault, NotJson):
                lone.append(elements.fault)
    if fault is not None and fault not in lone:
        raise fault
    if lone:
        raise min(lone, key=lambda error: error.offset)


def _inputs_of(envelope: Envelope | None, parsed: Any) -> Iterator[Input]:
    """The inputs, up to one that is none."""
    if envelope is not None:
        yield from envelope.inputs
        return
    items = parsed.get("inputs") if type(parsed) is dict else None
    for item in items if type(items) is list else ():
        try:
            yield input_of(item)
        except StatusError:
            return


def _mark_of(data: Any) -> bytes:
    """What stands for an array that was cut out; empty for what does not look like it."""
    if type(data) is msgspec.Raw:
        return bytes(data) if len(memoryview(data)) < 64 else b""
    if type(data) is list and len(data) == 1 and type(data[0]) is str:
        return b'["%b"]' % data[0].encode("utf-8", "replace")
    return b""


def _tensor_for(item: Input, array: CutArray, scratch: LongScratch, limit: int) -> _Tensor:
    """What reads an input's elements; where they will not be looked at, it only checks that they are JSON."""
    length = array.stop - array.start
    try:
        count = json_count(item.name, item.shape)
    except StatusError:
        return _Tensor(Unread())
    if not count:
        return _Tensor(Unread())
    if item.datatype == "BYTES":
        # an element takes three bytes at least, one of which becomes four
        memory, place = scratch.reserve(min(limit, length // 3 * 4 + 4))
        return _Tensor(Strings(memory), place)
    if item.datatype not in NUMBERS or count * DATATYPES[item.datatype].byte_size > limit:
        return _Tensor(Elements())
    if 2 * count > length:
        return _Tensor(Numbers(item.datatype, count, None))
    memory, place = scratch.reserve(count * DATATYPES[item.datatype].byte_size)
    return _Tensor(Numbers(item.datatype, count, memory), place)


class _LongReading(Reading):
    """A reading whose large arrays have been read."""

    __slots__ = ("cut",)

    cut: dict[bytes, _Tensor]

    def decoded(self, item: Input, datatype: str) -> Placement:
        tensor = self.cut.get(_mark_of(item.data))
        count = json_count(item.name, item.shape)
        if tensor is None or not count:
            return super().decoded(item, datatype)
        check_datatype(item.name, datatype)
        elements = tensor.elements
        limit = self.settings.max_input_size
        if datatype == "BYTES":
            if not isinstance(elements, Strings):
                raise _Unforeseen
            byte_size = elements.byte_size
        else:
            byte_size = numbers_byte_size(item.name, datatype, count)
            check_byte_size(item.name, byte_size, limit)
            if not isinstance(elements, Numbers):
                raise _Unforeseen
        if elements.fault is not None:
            raise elements.fault
        check_byte_size(item.name, byte_size, limit)
        if tensor.place is None:
            raise _Unforeseen
        return tensor.place(0, byte_size)
