"""A batch as a backend sees it: gathered inputs, and places for its outputs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from math import prod
from typing import Any, Protocol

import numpy as np

from ..shm.datatypes import DATATYPES, Datatype, element_count, iter_bytes, serialize_bytes
from ..shm.placement import Inline, Lease, Placement, Span
from .contract.messages import Fault, Parameters, RequestBody, Result, Tensor, WantedOutput
from .contract.status import Code, StatusError, internal
from .contract.strings import check_strings
from .output import INLINE_BYTE_SIZE, store

Array = np.ndarray[Any, np.dtype[Any]]


class Memory(Protocol):
    """The memory that a worker can reach."""

    def view(self, place: Placement) -> memoryview:
        """The bytes at a placement, a copy of those in a GPU's memory. Raises StatusError where a client's region is not what it was."""

    def device_address(self, place: Placement) -> int | None:
        """Where in the GPU's memory a placement lies; None for one in ordinary memory. Raises StatusError as ``view`` does."""

    def write_device(self, address: int, content: bytes | memoryview) -> None:
        """Copy bytes to an address in the GPU's memory. Raises StatusError."""

    def reserve(self, byte_size: int) -> Lease:
        """A block of the worker's own arena. Raises StatusError when it is full."""

    def divide(self, lease: Lease, parts: list[Lease]) -> None:
        """Let ``parts`` of a reserved block be given back one by one."""

    def free(self, lease: Lease) -> None:
        """Give a reserved block, or a part of a divided one, back."""


class InputFault(StatusError):
    """An input that cannot be taken, of the request at ``index`` of its batch: the others can run without it."""

    def __init__(self, index: int, code: Code, message: str) -> None:
        super().__init__(code, message)
        self.index = index


class Batch:
    """The requests of one execution.

    Backends call ``input`` for each tensor, ``inputs_ready`` before they compute, ``computed``
    after, and then ``set_output`` for each output, or ``fail``. ``destination`` offers the final
    place of an output beforehand, so that it can be produced there. ``model`` is for error messages.
    """

    __slots__ = (
        "_clock_ns",
        "_destinations",
        "_faults",
        "_memory",
        "_model",
        "_outputs",
        "_spans_wanted",
        "_wanted",
        "batch_size",
        "compute_end_ns",
        "compute_start_ns",
        "input_end_ns",
        "output_start_ns",
        "requests",
    )

    def __init__(
        self, requests: list[RequestBody], memory: Memory, model: str = "", clock_ns: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self.compute_start_ns = clock_ns()
        self.requests = requests
        self.batch_size = requests[0].batch_size if len(requests) == 1 else sum([request.batch_size for request in requests])
        self.input_end_ns = 0
        self.output_start_ns = 0
        self.compute_end_ns = 0
        self._memory = memory
        self._model = model
        self._clock_ns = clock_ns
        self._destinations: dict[str, tuple[Array, list[Placement]]] = {}
        self._faults: dict[int, StatusError] = {}
        self._outputs: list[list[Tensor]] = [[] for _ in requests]
        self._wanted, self._spans_wanted = _wanted(requests)

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the inputs present: the same in every request of a batch."""
        return tuple([tensor.name for tensor in self.requests[0].inputs])

    def tensors(self, name: str) -> list[Tensor]:
        """An input's tensor of each request. Raises KeyError where a request has none of that name."""
        requests = self.requests
        try:
            position = [tensor.name for tensor in requests[0].inputs].index(name)
        except ValueError:
            raise KeyError(name) from None
        found = []
        for request in requests:
            tensor = request.inputs[position]
            found.append(tensor if tensor.name == name else _named(request, name))
        return found

    def input(self, name: str) -> Array:
        """One array for the whole batch, its first dim the summed batch size.

        Zero copy for a single request and where the parts lie back to back; else gathered.
        BYTES come as an object array of ``bytes``, BF16 as the uint16 of its bits. Raises InputFault, which a
        backend lets pass: the batch is then run again without that request.
        """
        tensors = self.tensors(name)
        first = tensors[0]
        datatype = DATATYPES[first.datatype]
        shape = first.shape if len(tensors) == 1 else (sum([tensor.shape[0] for tensor in tensors]), *first.shape[1:])
        if not datatype.byte_size:
            return self._strings(tensors).reshape(shape)
        return np.frombuffer(self._gather(tensors, datatype), datatype.dtype).reshape(shape)

    def _gather(self, tensors: list[Tensor], datatype: Datatype) -> bytes | memoryview | Array:
        places = [tensor.place for tensor in tensors]
        if all([type(place) is Inline for place in places]):
            # A fresh bytes object is aligned; the middle of a message is not.
            return b"".join([place.content for place in places])  # type: ignore[union-attr]
        joined = places[0] if len(places) == 1 else back_to_back(places)
        if joined is not None:
            view = self._memory.view(joined)
            return view if _aligned(view, datatype) else np.frombuffer(view, np.uint8).copy()
        views = [self._view(index, place) for index, place in enumerate(places)]
        gathered = np.empty(sum([len(view) for view in views]), np.uint8)
        at = 0
        for view in views:
            gathered[at : at + len(view)] = view
            at += len(view)
        return gathered

    def _view(self, index: int, place: Placement) -> memoryview:
        try:
            return self._memory.view(place)
        except StatusError as error:
            raise self._input_fault(index, error) from error

    @staticmethod
    def _input_fault(index: int, error: StatusError) -> InputFault:
        return InputFault(index, error.code, error.message)

    def _strings(self, tensors: list[Tensor]) -> Array:
        elements: list[bytes] = []
        for index, tensor in enumerate(tensors):
            view = self._view(index, tensor.place)
            if type(tensor.place) is Span:
                # The server, which has checked all others, never reads clients' pages; and the client may still change them.
                view = memoryview(bytes(view))
                try:
                    check_strings(tensor.name, self._model, view, prod(tensor.shape), self.requests[index].id)
                except StatusError as error:
                    raise self._input_fault(index, error) from error
            elements.extend(iter_bytes(view))
        array = np.empty(len(elements), np.object_)
        array[:] = elements
        return array

    def wants(self, name: str) -> bool:
        """Is this output asked for by any request?"""
        return any([not wanted or name in wanted for wanted in self._wanted])

    def inputs_ready(self) -> None:
        """Stamp the end of input handling: computing starts now."""
        self.input_end_ns = self._clock_ns()

    def computed(self) -> None:
        """Stamp the end of computing: output handling starts now."""
        self.output_start_ns = self._clock_ns()

    def destination(self, name: str, datatype: str, shape: Sequence[int]) -> Array | None:
        """A writable array of the whole batch's ``shape`` where the output may be produced in place.

        None where no such place exists: the output is small, BYTES, or goes to several places.
        """
        kind = DATATYPES[datatype]
        byte_size = element_count(shape) * kind.byte_size
        if not byte_size or name in self._destinations:
            return None
        spans = [wanted.get(name) for wanted in self._wanted]
        if len(self.requests) == 1 and spans[0] is not None:
            span = spans[0]
            if span.byte_size < byte_size or self._memory.device_address(span) is not None:
                return None
            view = self._memory.view(span)
            if not _aligned(view, kind):
                return None
            places: list[Placement] = [span]
        elif any([span is not None for span in spans]) or byte_size <= INLINE_BYTE_SIZE:
            return None
        else:
            lease = self._memory.reserve(byte_size)
            view = self._memory.view(lease)
            parts: list[Lease] = [lease]
            if len(self.requests) > 1:
                item_byte_size = byte_size // shape[0]
                parts = []
                at = lease.offset
                for request in self.requests:
                    part = Lease(lease.arena, at, request.batch_size * item_byte_size)
                    parts.append(part)
                    at += part.byte_size
                self._memory.divide(lease, parts)
            places = list(parts)
        array = np.frombuffer(view, kind.dtype, element_count(shape)).reshape(shape)
        self._destinations[name] = (array, places)
        return array

    def set_output(self, name: str, datatype: str, array: Array) -> None:
        """Hand over a whole-batch output, cut over the requests by their batch sizes.

        An array got from ``destination`` is where it belongs already. BYTES: an object array of ``bytes`` or ``str``.
        Raises INTERNAL for an array that cannot be cut over the requests.
        """
        several = len(self.requests) > 1
        if several and (not array.ndim or len(array) != self.batch_size):
            raise internal(f"output '{name}' was made with shape {list(array.shape)} for a batch of {self.batch_size}")
        made = self._destinations.pop(name, None)
        placed = made is not None and made[0] is array
        if made is not None and not placed:
            self._free(made[1])
        if (
            several
            and not placed
            and not self._spans_wanted
            and not self._faults
            and array.nbytes <= INLINE_BYTE_SIZE
            and datatype != "BYTES"
        ):
            self._scatter(name, datatype, array)
            return
        at = 0
        for index, request in enumerate(self.requests):
            part = array
            if several:
                part = array[at : at + request.batch_size]
                at += request.batch_size
            wanted = self._wanted[index]
            if index in self._faults or (wanted and name not in wanted):
                if placed and made is not None:
                    self._free(made[1][index : index + 1])
                continue
            try:
                place = made[1][index] if placed and made is not None else self._put(name, datatype, part, wanted.get(name))
            except StatusError as error:
                self.fail(index, error)
                continue
            self._outputs[index].append(Tensor(name, datatype, part.shape, place))

    def _scatter(self, name: str, datatype: str, array: Array) -> None:
        """Cut a small output over the requests by cutting its bytes: the way of nearly every batch of small requests."""
        content = memoryview(array.tobytes())
        item_byte_size = len(content) // self.batch_size
        dims = array.shape[1:]
        at = 0
        for request, outputs, wanted in zip(self.requests, self._outputs, self._wanted, strict=True):
            end = at + request.batch_size * item_byte_size
            if not wanted or name in wanted:
                outputs.append(Tensor(name, datatype, (request.batch_size, *dims), Inline(content[at:end])))
            at = end

    def _put(self, name: str, datatype: str, array: Array, span: Span | None) -> Placement:
        content: bytes | memoryview
        if datatype == "BYTES":
            content = serialize_bytes([element if isinstance(element, bytes) else str(element).encode() for element in array.flat])
        elif array.nbytes <= INLINE_BYTE_SIZE and span is None:
            return Inline(memoryview(array.tobytes()))
        else:
            content = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        return store(self._memory, name, content, span)

    def fail(self, index: int, error: StatusError) -> None:
        """Answer one request of the batch with an error; what it has got so far is given back."""
        self._faults[index] = error
        self._free([tensor.place for tensor in self._outputs[index]])
        self._outputs[index] = []

    def fail_all(self, error: StatusError) -> None:
        """Answer every request of the batch with an error."""
        for index in range(len(self.requests)):
            self.fail(index, error)

    def finish(self) -> list[Result]:
        """Close the batch; returns one result for each request, in order."""
        for _, places in self._destinations.values():
            self._free(places)
        self._destinations.clear()
        end_ns = self.compute_end_ns = self._clock_ns()
        self.output_start_ns = self.output_start_ns or end_ns
        self.input_end_ns = self.input_end_ns or self.output_start_ns
        if not self._faults:
            return [Result(outputs) for outputs in self._outputs]
        empty: Parameters = {}
        return [
            Result(outputs, empty, Fault(fault.code, fault.message) if (fault := self._faults.get(index)) else None)
            for index, outputs in enumerate(self._outputs)
        ]

    def _free(self, places: Sequence[Placement]) -> None:
        for place in places:
            if type(place) is Lease:
                self._memory.free(place)


def _wanted(requests: list[RequestBody]) -> tuple[list[dict[str, Span | None]], bool]:
    """What each request asks for, by name (requests that ask for the same share it), and whether any of it goes to a region."""
    wanted: dict[str, Span | None] = {}
    made = []
    outputs: list[WantedOutput] = []
    spans = False
    for request in requests:
        if request.outputs != outputs:
            outputs = request.outputs
            wanted = {output.name: output.span for output in outputs}
            spans = spans or any([output.span is not None for output in outputs])
        made.append(wanted)
    return made, spans


def _named(request: RequestBody, name: str) -> Tensor:
    for tensor in request.inputs:
        if tensor.name == name:
            return tensor
    raise KeyError(name)


def _aligned(view: memoryview, datatype: Datatype) -> bool:
    return not len(view) or np.frombuffer(view, datatype.dtype, 1).flags.aligned


def back_to_back(places: Sequence[Placement]) -> Placement | None:
    """The one placement that covers all of them, where they follow each other in the same memory."""
    first = places[0]
    if isinstance(first, Inline):
        return None
    end = first.offset
    for place in places:
        if isinstance(first, Lease):
            if not isinstance(place, Lease) or place.arena != first.arena or place.offset != end:
                return None
        elif not isinstance(place, Span) or place.region != first.region or place.offset != end:
            return None
        end += place.byte_size
    if isinstance(first, Lease):
        return Lease(first.arena, first.offset, end - first.offset)
    return Span(first.region, first.offset, end - first.offset)
