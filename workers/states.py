"""Implicit state: tensors that a sequence's next request gets as inputs, being what its last one left as outputs.

Source: ``ModelSequenceBatching.State`` of Triton's ``model_config.proto``; the texts are those of its core, asked of the real one
(release 24.10).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from ..shm.datatypes import DATATYPES, Datatype, iter_bytes
from .contract.messages import RequestBody
from .contract.signature import BY_CONFIG_NAME
from .contract.status import invalid
from .named_file import read_named

Array = np.ndarray[Any, np.dtype[Any]]

FOLDER = "initial_state"
"""The folder of a model that the files lie in which initial states name."""

START, END = 1, 2
"""The flags of a request's context: the first and the last of its sequence."""

_STRING = DATATYPES["BYTES"]


@dataclass(frozen=True, slots=True)
class StateSpec:
    """One state: ``output_name`` of a request is ``input_name`` of the next one.

    ``datatype`` is a wire name, ``dims`` are as configured (without batch dim, -1 where one varies). ``initial`` is what the
    first request of a sequence gets, with a batch dim of 1 if the model batches; None: zeros. BYTES are object arrays of
    ``bytes``, BF16 the uint16 of its bits. ``same_buffer``: what is kept may be written over what was kept.
    """

    input_name: str
    output_name: str
    datatype: str
    dims: tuple[int, ...]
    initial: Array | None = None
    same_buffer: bool = False

    def first_shape(self, batching: bool) -> tuple[int, ...]:
        """The shape of the first request's state: dims that vary are 1."""
        dims = tuple([1 if dim == -1 else dim for dim in self.dims])
        return (1, *dims) if batching else dims


def states_of(config: Mapping[str, Any], directory: str) -> list[StateSpec]:
    """The states of a final configuration, given as the members of its JSON document; ``directory`` is the model's.

    Of two states with the same input or output the first counts. Raises StatusError INVALID_ARG for an initial value that does
    not fit, INTERNAL for a file that cannot be read.
    """
    batching = config.get("max_batch_size", 0) > 0
    specs: list[StateSpec] = []
    started: set[str] = set()
    for state in (config.get("sequence_batching") or {}).get("state", ()):
        input_name = state.get("input_name", "")
        found = state.get("initial_state", ())
        if found:
            initial = _checked_initial(state, found, started)
            started.add(input_name)
        datatype = BY_CONFIG_NAME.get(state.get("data_type", ""))
        if not input_name or datatype is None:
            # The original loads these, and dies of the first request.
            raise invalid(f"sequence batching state '{input_name}' must specify 'input_name' and 'data_type'")
        if state.get("use_growable_memory"):
            _check_growable(config, state)
        spec = StateSpec(
            input_name,
            state.get("output_name", ""),
            datatype.name,
            tuple([int(dim) for dim in state.get("dims", ())]),
            same_buffer=bool(state.get("use_same_buffer_for_input_output")),
        )
        content = _content(config, spec, initial, datatype, directory) if found else None
        if any(spec.input_name == other.input_name or spec.output_name == other.output_name for other in specs):
            continue
        if content is not None:
            array = _array(spec, datatype, content, batching)
            spec = StateSpec(spec.input_name, spec.output_name, spec.datatype, spec.dims, array, spec.same_buffer)
        specs.append(spec)
    return specs


def _checked_initial(state: Mapping[str, Any], found: Sequence[Mapping[str, Any]], started: set[str]) -> Mapping[str, Any]:
    name = state.get("input_name", "")
    if len(found) != 1:
        raise invalid(
            f"initial_state field for state input '{name}' must contain exactly one or zero element. Found '{len(found)}' elements."
        )
    initial = found[0]
    if initial.get("data_type") != state.get("data_type"):
        raise invalid(f"The data type used for 'initial_state' field of state '{name}' does not match the state data type.")
    if not initial.get("name"):
        raise invalid(f"Field 'name' must be set when using initial_state for state input '{name}'.")
    if name in started:
        raise invalid(f"State input name '{name}' specified more than once.")
    dims, state_dims = initial.get("dims", ()), state.get("dims", ())
    if len(dims) != len(state_dims):
        raise invalid(
            f"Number of dimensions in 'initial_state' doesn't match the size of 'state' dimensions for state input '{name}'. "
            f"{len(dims)} != {len(state_dims)}"
        )
    # 64-bit integers are strings in the document, but for those of the state.
    for dim, state_dim in zip(map(int, dims), map(int, state_dims), strict=True):
        if dim < 0:
            raise invalid(f"'initial_state' field for state input name '{name}' contains variable dimensions.")
        if state_dim not in (-1, dim):
            raise invalid(f"'initial_state' dim for input name '{name}' doesn't match 'state' dim description. {dim} != {state_dim}")
    return initial


def _check_growable(config: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    name = state["input_name"]
    if not state.get("use_same_buffer_for_input_output"):
        raise invalid(f"In order to 'use_growable_memory', you must also enable 'use_single_buffer' for state input name '{name}'.")
    if any(group.get("kind") != "KIND_GPU" for group in config.get("instance_group", ())):
        raise invalid(
            "'use_growable_memory' can only work with KIND_GPU model instances right now. Please either change the instance type to "
            f"KIND_GPU or set 'use_growable_memory' to false for state input '{name}'"
        )


def _content(config: Mapping[str, Any], spec: StateSpec, initial: Mapping[str, Any], datatype: Datatype, directory: str) -> bytes | None:
    """The bytes of an initial state's file, of numbers no more than are used; None for zeros."""
    # Either is set by being there, whatever its value.
    if "data_file" in initial:
        file = initial["data_file"]
        byte_size = prod([int(dim) for dim in initial.get("dims", ())]) * datatype.byte_size
        used = max(byte_size, prod(spec.first_shape(False)) * datatype.byte_size)
        content = read_named(directory, FOLDER, file, "data_file", str(config.get("name", "")), -1 if datatype is _STRING else used)
        if len(content) < byte_size:
            raise invalid(
                f"initial_state setting expects {byte_size} bytes, but the data provided from {file}only has {len(content)} bytes."
            )
        return content
    if "zero_data" not in initial:
        raise invalid(f"initial_state setting expects state'{spec.input_name}' to have state_data set")
    return None


def _array(spec: StateSpec, datatype: Datatype, content: bytes, batching: bool) -> Array:
    """The initial value: what a file holds beyond it is left, as the original does."""
    shape = spec.first_shape(batching)
    count = prod(shape)
    if datatype is not _STRING:
        byte_size = count * datatype.byte_size
        array: Array = np.frombuffer(content[:byte_size].ljust(byte_size, b"\0"), datatype.dtype).reshape(shape)
        return array
    try:
        elements = list(iter_bytes(content))
    except ValueError as error:
        raise invalid(f"the initial value of state input '{spec.input_name}' is cut off in its last string") from error
    if len(elements) != count:
        raise invalid(f"expected {count} strings for inference input '{spec.input_name}', got {len(elements)}")
    return _strings(elements).reshape(shape)


def _strings(elements: list[bytes]) -> Array:
    array: Array = np.empty(len(elements), np.object_)
    array[:] = elements
    return array


class States:
    """What the sequences at one instance have left, by their places (``RequestContext.slot``).

    ``outputs`` are the names of the outputs that are kept. Arrays handed out are read-only to whoever gets them, and hold until
    the next ``keep`` of the same place.
    """

    def __init__(self, specs: Sequence[StateSpec], batching: bool) -> None:
        self.outputs = frozenset([spec.output_name for spec in specs])
        self.specs = tuple(specs)
        self._by_output = {spec.output_name: spec for spec in specs}
        self._initial = {spec.output_name: _initial(spec, batching) for spec in specs}
        self._kept: dict[int, dict[str, Array]] = {}

    def inputs(self, body: RequestBody) -> list[tuple[StateSpec, Array]]:
        """The state that a request finds: a sequence that begins has nothing left of the one before it at its place."""
        context = body.context
        slot = -1 if context is None else context.slot
        if context is not None and context.flags & START:
            self._kept.pop(slot, None)
        kept = self._kept.get(slot)
        if not kept:
            return [(spec, self._initial[spec.output_name]) for spec in self.specs]
        return [(spec, kept.get(spec.output_name, self._initial[spec.output_name])) for spec in self.specs]

    def keep(self, body: RequestBody, output_name: str, array: Array) -> None:
        """Keep a copy of what a request has left as state for the next of its sequence. Raises INVALID_ARG for what is none."""
        spec = self._by_output.get(output_name)
        if spec is None:
            raise invalid(f"state '{output_name}' is not a valid state name.")
        context = body.context
        if context is None or context.slot < 0:
            return
        if spec.datatype == _STRING.name:
            array = _strings([element if isinstance(element, bytes) else str(element).encode() for element in array.flat]).reshape(
                array.shape
            )
        kept = self._kept.setdefault(context.slot, {})
        before = kept.get(output_name)
        if spec.same_buffer and before is not None and before.dtype == array.dtype and before.size == array.size:
            kept[output_name] = before = before.reshape(array.shape)
            np.copyto(before, array)
        else:
            kept[output_name] = np.array(array, order="C", copy=True)

    def ended(self, body: RequestBody) -> None:
        """A request has been executed: with the last of a sequence its state goes."""
        context = body.context
        if context is not None and context.flags & END:
            self._kept.pop(context.slot, None)


def _initial(spec: StateSpec, batching: bool) -> Array:
    if spec.initial is not None:
        array = spec.initial.view()
    else:
        shape = spec.first_shape(batching)
        array = np.full(shape, b"", np.object_) if spec.datatype == _STRING.name else np.zeros(shape, DATATYPES[spec.datatype].dtype)
    # One array for all sequences.
    array.flags.writeable = False
    return array
