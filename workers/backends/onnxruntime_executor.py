"""One instance of an ONNX model: what runs its batches."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from onnxruntime.capi import onnxruntime_pybind11_state as native

from ...shm.datatypes import DATATYPES
from ..batch import Array, Batch
from ..contract.signature import Signature, TensorSpec, reshaped
from ..contract.status import StatusError, internal, invalid
from ..ragged import Ragged
from ..states import StateSpec
from .onnxruntime_faults import runtime_fault
from .onnxruntime_graph import BF16_ELEMENT, Graph, GraphTensor
from .onnxruntime_strings import string_tensor

FAILURES: tuple[type[Exception], ...] = (
    *{kind for kind in vars(native).values() if isinstance(kind, type) and issubclass(kind, Exception)},
    RuntimeError,
    ValueError,
    TypeError,
    MemoryError,
)
"""What ONNX Runtime raises: its own classes share no base, and pybind11 adds Python's."""

BOUND_BYTE_SIZE = 128 * 1024
"""Outputs above this are bound: setting a binding up costs 3 µs more than a plain run, as much as copying this."""

_OTHER_SHAPES = ("The output OrtValue provided for output", "Tensor size mismatch")
"""What is in the words of the error: of the node that makes a bound output, or of the copy to it from where a node has made it."""

CPU = native.OrtDevice(native.OrtDevice.cpu(), native.OrtDevice.default_memory(), 0)


@dataclass(frozen=True, slots=True)
class Extent:
    """All that a model takes and gives: what its clients know, what the batch makes or cuts, state, and the model's own tensors."""

    signature: Signature
    ragged: Ragged
    states: list[StateSpec]
    graph: Graph

    @property
    def outputs(self) -> list[TensorSpec]:
        """The outputs that are fetched: those that clients may want, and state."""
        known = self.signature.outputs
        batching = self.signature.batching
        return [*known.values(), *[_state_output(spec, batching) for spec in self.states if spec.output_name not in known]]


def _state_output(spec: StateSpec, batching: bool) -> TensorSpec:
    shape = (-1, *spec.dims) if batching else spec.dims
    return TensorSpec(spec.output_name, DATATYPES[spec.datatype], spec.dims, shape, None, -1)


LEARNED_SHAPES = 256
"""How many combinations of input shapes an executor remembers the outputs' shapes of."""

_Shapes = tuple[tuple[int, ...] | None, ...]


@dataclass(frozen=True, slots=True)
class Output:
    """What is known of an output before it is computed.

    ``shape`` is what the client gets and ``model_shape`` what the model makes, both without batch
    dim and None where a dim varies. ``alike``: the model's array is what the client gets. ``scattered``: it is
    flat, and for the batch to cut.
    """

    spec: TensorSpec
    datatype: str
    shape: tuple[int, ...] | None
    model_shape: tuple[int, ...] | None
    scalar: bool
    alike: bool
    bits: bool
    scattered: bool

    @property
    def learns(self) -> bool:
        """Its shape varies, but may be foreseen by what came of inputs of the same shapes."""
        return self.shape is None and self.alike and not self.scattered and self.spec.datatype.byte_size > 0


class OnnxExecutor:
    """One model instance.

    Only the outputs that are wanted are fetched; ONNX Runtime runs the whole graph for any of them.
    Small outputs are taken from ``run``, which makes its own arrays; large ones are bound to where they
    shall lie. The Python layer of ONNX Runtime's binding adds 27 µs, so what lies below it is called.
    """

    def __init__(self, extent: Extent, session: Any, run_options: Any, hidden: dict[str, str]) -> None:
        signature, graph = extent.signature, extent.graph
        self._model = signature.model
        self._batching = signature.batching
        self._native = session._sess
        self._run_options = run_options
        self._hidden = hidden
        self._binding = native.SessionIOBinding(self._native)
        self._outputs = [_output_of(spec, graph, spec.name in extent.ragged.scattered) for spec in extent.outputs]
        self._output_names = [output.spec.name for output in self._outputs]
        optional = {name: tensor for name, tensor in graph.initializers.items() if name in signature.inputs}
        inputs = {**optional, **graph.inputs}
        self._strings = _named(inputs, "BYTES")
        self._bits = _named(inputs, "BF16")
        self._scalars = {name for name, tensor in inputs.items() if tensor.scalar}
        self._adapted = self._strings | self._scalars
        self._binding_needed = bool(self._bits) or any([output.bits for output in self._outputs])
        sizes = [
            prod(output.shape) * output.spec.datatype.byte_size
            for output in self._outputs
            if output.shape is not None and output.spec.datatype.byte_size
        ]
        self._placing = bool(sizes) and not self._strings
        self._learning = not self._strings and any([output.learns for output in self._outputs])
        self._input_order = tuple(inputs)
        self._made: dict[_Shapes, dict[str, tuple[int, ...]]] = {}
        self._small_batch_size = BOUND_BYTE_SIZE // max(sizes) if sizes else 0

    def execute(self, batch: Batch) -> None:
        """Run a batch. Raises INTERNAL with ONNX Runtime's words where the model fails, INVALID_ARG for inputs it cannot take."""
        feeds = {name: batch.input(name) for name in batch.input_names}
        for name in self._adapted:
            if name in feeds:
                feeds[name] = self._adapt(name, feeds[name])
        wants = batch.wants
        outputs = [output for output in self._outputs if wants(output.spec.name)]
        if self._learning:
            arrays = self._run_learning(batch, feeds, outputs)
        elif self._binding_needed or (self._placing and batch.batch_size > self._small_batch_size):
            arrays = self._run_bound(batch, feeds, outputs, {})
        else:
            arrays = self._run_fed(batch, feeds, outputs)
        batch.computed()
        for output, array in zip(outputs, arrays, strict=True):
            batch.set_output(output.spec.name, output.datatype, array)

    def close(self) -> None:
        """Let go of the session."""
        self._binding = self._native = None

    def _adapt(self, name: str, array: Array) -> Array:
        if name in self._strings:
            array = string_tensor(array, name)
        if name in self._scalars:
            elements = array.reshape(-1)
            if len(elements) != 1 and (len(elements) == 0 or bool((elements != elements[0]).any())):
                raise invalid(f"input '{name}' of model '{self._model}' is a scalar: it must have the same value throughout the batch")
            array = elements[:1].reshape(())
        return array

    def _run_fed(self, batch: Batch, feeds: dict[str, Array], outputs: list[Output]) -> list[Array]:
        names = self._output_names if len(outputs) == len(self._output_names) else [output.spec.name for output in outputs]
        batch.inputs_ready()
        try:
            arrays = self._native.run(names, feeds, self._run_options)
        except FAILURES as error:
            raise self._fault(error) from error
        return [self._shaped(output, array, batch) for output, array in zip(outputs, arrays, strict=True)]

    def _run_learning(self, batch: Batch, feeds: dict[str, Array], outputs: list[Output]) -> list[Array]:
        """Run a model whose outputs vary in shape: what it made of inputs like these tells where they can be placed."""
        shapes = tuple([feeds[name].shape if name in feeds else None for name in self._input_order])
        made = self._made.get(shapes)
        if made is not None:
            return self._run_bound(batch, feeds, outputs, made)
        arrays = self._run_bound(batch, feeds, outputs, {})
        if len(self._made) >= LEARNED_SHAPES:
            self._made.clear()
        large = [(output, array) for output, array in zip(outputs, arrays, strict=True) if array.nbytes > BOUND_BYTE_SIZE]
        self._made[shapes] = {output.spec.name: array.shape for output, array in large if output.learns}
        return arrays

    def _run_bound(self, batch: Batch, feeds: dict[str, Array], outputs: list[Output], made: dict[str, tuple[int, ...]]) -> list[Array]:
        lead = (batch.batch_size,) if self._batching else ()
        places = [self._place(output, batch, lead, made) for output in outputs]
        if not self._binding_needed and not any([place is not None for place in places]):
            return self._run_fed(batch, feeds, outputs)
        binding = self._binding
        try:
            try:
                for name, array in feeds.items():
                    binding.bind_ortvalue_input(name, value_over(array, name in self._bits))
                for output, place in zip(outputs, places, strict=True):
                    if place is None:
                        binding.bind_output(output.spec.name, CPU)
                    else:
                        array = place if output.alike else place.reshape((*lead, *(output.model_shape or ())))
                        binding.bind_ortvalue_output(output.spec.name, value_over(array, output.bits))
                batch.inputs_ready()
                self._native.run_with_iobinding(binding, self._run_options)
            except FAILURES as error:
                if not (self._placing or made) or not made_other_shape(error):
                    raise self._fault(error) from error
            else:
                values = binding.get_outputs()
                return [
                    self._shaped(output, self._array_of(values[index], output), batch) if place is None else place
                    for index, (output, place) in enumerate(zip(outputs, places, strict=True))
                ]
        finally:
            binding.clear_binding_inputs()
            binding.clear_binding_outputs()
        # The model makes another shape than it declares, or than it made before: its outputs cannot be placed beforehand.
        self._placing = self._learning = False
        self._made.clear()
        return self._run_bound(batch, feeds, outputs, {})

    def _place(self, output: Output, batch: Batch, lead: tuple[int, ...], made: dict[str, tuple[int, ...]]) -> Array | None:
        if output.shape is None:
            learned = made.get(output.spec.name)
            return None if learned is None else batch.destination(output.spec.name, output.datatype, learned)
        if not self._placing:
            return None
        return batch.destination(output.spec.name, output.datatype, (*lead, *output.shape))

    def _shaped(self, output: Output, array: Array, batch: Batch) -> Array:
        """The array as the client gets it: reshaped to the configured dims, a scalar given to each request."""
        spec = output.spec
        if output.scalar:
            array = array.reshape(spec.dims)
            return np.broadcast_to(array, (batch.batch_size, *spec.dims)) if self._batching else array
        if self._batching and (not array.ndim or len(array) != batch.batch_size):
            if output.scattered:
                return array
            raise internal(
                f"model '{self._model}' made output '{spec.name}' with shape {list(array.shape)} for a batch of {batch.batch_size}"
            )
        if output.alike:
            return array
        assert spec.reshape is not None
        try:
            return array.reshape(reshaped(array.shape, spec.reshape, spec.dims, self._batching))
        except (ValueError, RuntimeError) as error:
            raise internal(
                f"model '{self._model}' made output '{spec.name}' with shape {list(array.shape)}, which its configuration cannot reshape"
            ) from error

    @staticmethod
    def _array_of(value: Any, output: Output) -> Array:
        """The numpy array of an output that ONNX Runtime has allocated."""
        if not output.bits:
            array: Array = value.numpy()
            return array
        shape = value.shape()
        count = prod(shape)
        if not count:
            return np.empty(shape, np.uint16)
        # numpy knows no bfloat16, so ONNX Runtime offers no array: its bits are copied from where they lie.
        return np.array((ctypes.c_uint16 * count).from_address(value.data_ptr())).reshape(shape)

    def _fault(self, error: BaseException) -> StatusError:
        if isinstance(error, UnicodeDecodeError):
            return internal(f"a BYTES output of model '{self._model}' is not UTF-8, which ONNX Runtime cannot hand over to Python")
        return runtime_fault(error, self._hidden)


def _output_of(spec: TensorSpec, graph: Graph, scattered: bool) -> Output:
    tensor = graph.outputs[spec.name]
    model_dims = spec.dims if spec.reshape is None else spec.reshape
    fixed = not spec.variable and spec.datatype.byte_size > 0 and not tensor.scalar and not scattered
    return Output(
        spec=spec,
        datatype=spec.datatype.name,
        shape=spec.dims if fixed else None,
        model_shape=model_dims if fixed else None,
        scalar=tensor.scalar and not scattered,
        alike=scattered or (spec.reshape is None and not tensor.scalar),
        bits=spec.datatype.name == "BF16",
        scattered=scattered,
    )


def _named(tensors: dict[str, GraphTensor], datatype_name: str) -> set[str]:
    return {name for name, tensor in tensors.items() if tensor.datatype is not None and tensor.datatype.name == datatype_name}


def made_other_shape(error: BaseException) -> bool:
    """Has a run failed because an output was bound with another shape than the model makes?"""
    return any([words in str(error) for words in _OTHER_SHAPES])


def value_over(array: Array, bits: bool) -> Any:
    """An ``OrtValue`` over the array's own memory."""
    if bits:
        return native.OrtValue.ortvalue_from_numpy_with_onnx_type(array, BF16_ELEMENT)
    return native.OrtValue.ortvalue_from_numpy(array, CPU)
