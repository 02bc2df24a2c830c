"""The places of sequences at an instance: what a request finds at its place as state, and what its response leaves there."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from math import prod
from typing import TYPE_CHECKING

from ...shm.datatypes import DATATYPES
from ...shm.placement import Inline
from ..contract import messages
from ..contract.messages import RequestBody, WantedOutput
from ..contract.status import internal
from ..states import END, START, States, StateSpec
from .request import InferenceRequest
from .response import InferenceResponse
from .strings import decoded
from .tensor import Array, Tensor

if TYPE_CHECKING:
    from .execution import OpenRequest

_NOTHING = [WantedOutput("")]
"""What nobody waits for has no output that is wanted: none has this name."""

LARGEST_NOTHING_BYTE_SIZE = 1 << 28
"""Inputs that would have more zeros than this get dims of one instead."""

STRING_LENGTH_BYTE_SIZE = 4


class Places:
    """The places of one instance, and the states that lie there.

    The newest request at a place alone may change it: the sender of an older one may still answer when the place is another
    sequence's. ``rows``: a model may know its sequences by their rows in the batch.
    """

    def __init__(self, specs: Sequence[StateSpec], batching: bool, rows: bool = False) -> None:
        self._rows = rows
        self._states = States(specs, batching)
        self._specs = {spec.output_name: spec for spec in specs}
        self._batching = batching
        # A finalizer of a model may answer a request in the middle of this.
        self._lock = threading.RLock()
        self._newest: dict[int, tuple[int, int]] = {}

    def enter(self, bodies: Sequence[RequestBody], requests: Sequence[InferenceRequest], opened: Sequence[OpenRequest]) -> None:
        """A batch begins: give its requests what lies at their places. Those of ``bodies`` that are not opened have failed."""
        given = {open_request.index: (open_request, request) for open_request, request in zip(opened, requests, strict=True)}
        for index, body in enumerate(bodies):
            place = _place(body)
            open_request, request = given.get(index, (None, None))
            with self._lock:
                if place is not None:
                    self._newest.pop(place, None)
                # Also where nobody gets it: a sequence that begins has nothing left of the one before it.
                found = self._states.inputs(body)
                if open_request is None or request is None:
                    continue
                if place is not None:
                    self._newest[place] = _number(open_request)
            if body.context is None:
                # A warm-up sample may bring its own.
                brought = {tensor.name for tensor in body.inputs}
                found = [(spec, array) for spec, array in found if spec.input_name not in brought]
            elif place is None:
                request.want_nothing()
                open_request.body = RequestBody(body.id, body.batch_size, body.inputs, _NOTHING, body.parameters, body.context)
            if found:
                # Copies: the model may write to them.
                request.give([Tensor.holding(spec.input_name, spec.datatype, array.copy()) for spec, array in found])

    def needs(self, body: RequestBody) -> bool:
        """Must the model see a request whose inputs cannot be read? It may have state of its own, which begins, ends, or has a row."""
        return self._rows or (body.context is not None and bool(body.context.flags & (START | END)))

    def keep(self, request: OpenRequest, response: InferenceResponse) -> None:
        """Leave at a request's place what a response to it has as state; all of it or nothing. Raises StatusError for what is none."""
        place = _place(request.body)
        left = []
        for tensor in response.tensors:
            spec = self._specs.get(tensor.name())
            if spec is not None:
                self._check(spec, tensor)
                content = tensor.content()
                array: Array = decoded(content).reshape(tensor.dims()) if isinstance(content, bytes) else content
                left.append((spec.output_name, array))
        if not left:
            return
        with self._lock:
            if place is not None and self._newest.get(place) == _number(request):
                for name, array in left:
                    self._states.keep(request.body, name, array)

    def _check(self, spec: StateSpec, tensor: Tensor) -> None:
        shape = tensor.dims()
        wanted = (1, *spec.dims) if self._batching else spec.dims
        fits = len(shape) == len(wanted) and all(dim in (-1, size) for dim, size in zip(wanted, shape, strict=True))
        if tensor.datatype != spec.datatype or not fits:
            raise internal(
                f"state '{spec.output_name}' is {spec.datatype} of shape {list(wanted)}, "
                f"but the model has answered with {tensor.datatype} of shape {list(shape)}"
            )

    def leave(self, bodies: Iterable[RequestBody]) -> None:
        """Requests have been executed, and do not come again."""
        with self._lock:
            for body in bodies:
                self._states.ended(body)
                place = _place(body)
                if place is not None and body.context is not None and body.context.flags & END:
                    self._newest.pop(place, None)


def stands_empty(body: RequestBody) -> bool:
    """Does a request of a sequence model only stand in an empty place?"""
    return body.context is not None and body.context.slot < 0


def without_shared(body: RequestBody) -> RequestBody:
    """A request with nothing in the place of its inputs that lie in shared memory: zeros, or strings without content."""
    inputs = [tensor if type(tensor.place) is Inline else _nothing(tensor) for tensor in body.inputs]
    return RequestBody(body.id, body.batch_size, inputs, body.outputs, body.parameters, body.context)


def _nothing(tensor: messages.Tensor) -> messages.Tensor:
    shape = tensor.shape
    element_byte_size = DATATYPES[tensor.datatype].byte_size or STRING_LENGTH_BYTE_SIZE
    # Whether there is room for so many strings nobody may have checked.
    if prod(shape) * element_byte_size > min(tensor.place.byte_size, LARGEST_NOTHING_BYTE_SIZE):
        shape = tuple([min(dim, 1) for dim in shape])
    content = memoryview(bytes(prod(shape) * element_byte_size))
    return messages.Tensor(tensor.name, tensor.datatype, shape, Inline(content))


def _number(request: OpenRequest) -> tuple[int, int]:
    return request.batch, request.index


def _place(body: RequestBody) -> int | None:
    """The place of a request's sequence; None for what stands in an empty one, and for a warm-up sample."""
    context = body.context
    return None if context is None or context.slot < 0 else context.slot
