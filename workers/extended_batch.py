"""Batches of models that take or give more than their clients know of: ragged tensors, what tells about them, and state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from ..shm.datatypes import DATATYPES
from ..shm.placement import Span
from .backends.backend import Executor
from .batch import Array, Batch, Memory
from .batch_runner import BatchRunner
from .contract.messages import Done, Execute, RequestBody, Result, Tensor
from .contract.signature import Signature, TensorSpec, reshaped
from .contract.status import StatusError, internal
from .ragged import Ragged
from .states import States, StateSpec

_NOTHING: dict[str, Span | None] = {"": None}
"""What is wanted where nobody waits for it: no output has this name."""


@dataclass(frozen=True, slots=True)
class Extras:
    """What the batches of one instance are extended by; ``outputs`` are those that clients know."""

    ragged: Ragged
    states: States
    outputs: Mapping[str, TensorSpec]
    batching: bool


class ExtendedBatch(Batch):
    """A batch whose inputs and outputs are also those of its ``extras``.

    ``input`` gives ragged inputs flat, of all requests one after the other, batch inputs, and the state of each request in its
    row. ``set_output`` takes scattered outputs flat, and keeps state for the next request of each sequence, once the batch ends
    and where the request has not failed.
    """

    __slots__ = ("_extras", "_found", "_left")

    def __init__(self, extras: Extras, requests: list[RequestBody], memory: Memory, model: str = "") -> None:
        super().__init__(requests, memory, model)
        self._extras = extras
        self._wanted = [_NOTHING if _filler(request) else wanted for request, wanted in zip(requests, self._wanted, strict=True)]
        self._found = _found(extras.states, requests)
        self._left: list[tuple[str, Array]] = []

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the inputs present: those of the requests, state, batch inputs."""
        return tuple(dict.fromkeys([*super().input_names, *self._found, *self._extras.ragged.made]))

    def input(self, name: str) -> Array:
        """As ``Batch`` says, and the tensors that the batch itself makes. Raises INTERNAL for states that fit no common tensor."""
        found = self._found.get(name)
        if found is not None:
            return found[0] if len(found) == 1 else _joined(name, found)
        ragged = self._extras.ragged
        made = ragged.made.get(name)
        if made is not None:
            return made.made(self._shapes(made.source))
        if name in ragged.flat:
            return self._flat(name)
        return super().input(name)

    def wants(self, name: str) -> bool:
        """Is this output asked for by any request, or state?"""
        return name in self._extras.states.outputs or super().wants(name)

    def destination(self, name: str, datatype: str, shape: Sequence[int]) -> Array | None:
        """As ``Batch`` says: a place for what goes to clients as it is made, and to nobody else."""
        extras = self._extras
        # State is read once more when the batch ends: by then its place may be given back, or in a client's hands.
        if name not in extras.outputs or name in extras.ragged.scattered or name in extras.states.outputs:
            return None
        return super().destination(name, datatype, shape)

    def set_output(self, name: str, datatype: str, array: Array) -> None:
        """As ``Batch`` says; clients get no state but where the model lists it as an output."""
        extras = self._extras
        spec = extras.outputs.get(name)
        if name in extras.states.outputs:
            if extras.batching and (not array.ndim or len(array) != self.batch_size):
                raise internal(f"state '{name}' was made with shape {list(array.shape)} for a batch of {self.batch_size}")
            shape = array.shape
            if spec is not None and spec.reshape is not None:
                shape = reshaped(shape, spec.dims, spec.reshape, extras.batching)
            self._left.append((name, array.reshape(shape)))
        if spec is None:
            return
        scattered = extras.ragged.scattered.get(name)
        if scattered is None:
            super().set_output(name, datatype, array)
            return
        for index, (shape, part) in enumerate(scattered.parts(name, array, self._shapes(scattered.source))):
            wanted = self._wanted[index]
            if index in self._faults or (wanted and name not in wanted):
                continue
            try:
                place = self._put(name, datatype, part, wanted.get(name))
            except StatusError as error:
                self.fail(index, error)
                continue
            self._outputs[index].append(Tensor(name, datatype, shape, place))

    def finish(self) -> list[Result]:
        """As ``Batch`` says."""
        states = self._extras.states
        for name, array in self._left:
            at = 0
            for index, request in enumerate(self.requests):
                row = array[at : at + request.batch_size] if self._extras.batching else array
                at += request.batch_size
                if index not in self._faults:
                    states.keep(request, name, row)
        self._left.clear()
        return super().finish()

    def _shapes(self, name: str) -> list[tuple[int, ...]]:
        return [tensor.shape for tensor in self.tensors(name)]

    def _flat(self, name: str) -> Array:
        tensors = self.tensors(name)
        datatype = DATATYPES[tensors[0].datatype]
        if not datatype.byte_size:
            return self._strings(tensors)
        return np.frombuffer(self._gather(tensors, datatype), datatype.dtype)


def _found(states: States, requests: Sequence[RequestBody]) -> dict[str, list[Array]]:
    """The state of each request, by input. What stands in an empty place takes the shape of what stands in the others."""
    if not states.specs:
        return {}
    found: dict[str, list[Array]] = {spec.input_name: [] for spec in states.specs}
    for request in requests:
        for spec, array in states.inputs(request):
            found[spec.input_name].append(array)
    if requests[0].context is None:
        # A warm-up sample may bring its own.
        for tensor in requests[0].inputs:
            found.pop(tensor.name, None)
    real = next((index for index, request in enumerate(requests) if not _filler(request)), None)
    if real is not None:
        for arrays in found.values():
            like = arrays[real]
            for index, request in enumerate(requests):
                if _filler(request) and arrays[index].shape != like.shape:
                    arrays[index] = np.full(like.shape, b"" if like.dtype == np.object_ else 0, like.dtype)
    return found


def _filler(request: RequestBody) -> bool:
    """Does a request only stand in an empty place of a batch?"""
    return request.context is not None and request.context.slot < 0


def _joined(name: str, arrays: list[Array]) -> Array:
    shape = arrays[0].shape[1:]
    for array in arrays:
        if array.shape[1:] != shape:
            raise internal(f"state '{name}' has shapes {list(arrays[0].shape)} and {list(array.shape)} in one batch")
    return np.concatenate(arrays)


class ExtendedRunner(BatchRunner):
    """A ``BatchRunner`` of extended batches.

    Requests whose sequences have left state of different shapes are executed one shape after the other.
    """

    def __init__(self, executor: Executor, memory: Memory, model: str, extras: Extras) -> None:
        super().__init__(executor, memory, model)
        self._states = extras.states
        self._make_batch = partial(ExtendedBatch, extras)

    def run(self, message: Execute) -> Done:
        """As ``BatchRunner`` says."""
        requests = message.requests
        groups = self._groups(requests)
        done = super().run(message) if len(groups) == 1 else self._run_apart(message, groups)
        for request in requests:
            self._states.ended(request)
        return done

    def _groups(self, requests: Sequence[RequestBody]) -> list[list[int]]:
        """The requests that can share a tensor of each state."""
        if len(requests) == 1 or not self._states.specs:
            return [[]]
        groups: dict[tuple[tuple[int, ...], ...], list[int]] = {}
        for index, request in enumerate(requests):
            if not _filler(request):
                groups.setdefault(tuple([array.shape[1:] for _, array in self._states.inputs(request)]), []).append(index)
        return list(groups.values()) or [[]]

    def _run_apart(self, message: Execute, groups: list[list[int]]) -> Done:
        """Run the groups of a batch; their times are put together as if they were those of one."""
        results: list[Result | None] = [Result([]) for _ in message.requests]
        parts = []
        for indices in groups:
            part = super().run(Execute(message.batch, [message.requests[index] for index in indices]))
            for index, result in zip(indices, part.results, strict=True):
                results[index] = result
            parts.append(part)
        start_ns, end_ns = parts[0].compute_start_ns, parts[-1].compute_end_ns
        input_ns = sum([part.input_end_ns - part.compute_start_ns for part in parts])
        output_ns = sum([part.compute_end_ns - part.output_start_ns for part in parts])
        return Done(message.batch, results, start_ns, start_ns + input_ns, end_ns - output_ns, end_ns)


def runner_of(executor: Executor, memory: Memory, signature: Signature, ragged: Ragged, states: Sequence[StateSpec]) -> BatchRunner:
    """The runner for an instance of a model: a plain one where its clients know all that it takes and gives."""
    if not ragged and not states:
        return BatchRunner(executor, memory, signature.model)
    extras = Extras(ragged, States(states, signature.batching), signature.outputs, signature.batching)
    return ExtendedRunner(executor, memory, signature.model, extras)
