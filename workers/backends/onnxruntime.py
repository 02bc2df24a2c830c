"""The ONNX Runtime backend."""

from __future__ import annotations

import ctypes
import json
import os
import threading
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as native

from ...shm.datatypes import DATATYPES, Datatype
from ..batch import Batch, Memory
from ..batch_runner import BatchRunner
from ..contract.messages import InstanceSpec, Note
from ..contract.signature import Signature, TensorSpec, reshaped, signature_of
from ..contract.status import StatusError, internal, invalid, unsupported
from ..extended_batch import runner_of
from ..ragged import Ragged, ragged_of
from ..states import StateSpec, states_of
from .backend import ModelSource, Surroundings
from .onnxruntime_completion import complete_config
from .onnxruntime_faults import runtime_fault
from .onnxruntime_files import check_external_data, model_file, operator_libraries, version_folder
from .onnxruntime_graph import BF16_ELEMENT, Graph, GraphTensor, graph_of
from .onnxruntime_options import SessionOptions, default_max_batch_size, session_options
from .onnxruntime_strings import string_tensor
from .onnxruntime_validation import validate

Array = np.ndarray[Any, np.dtype[Any]]

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

_QUIET = 3
_SILENT = 4

_OTHER_SHAPE = "The output OrtValue provided for output"

_CPU = native.OrtDevice(native.OrtDevice.cpu(), native.OrtDevice.default_memory(), 0)

_global_threads_lock = threading.Lock()
_global_threads: list[tuple[int, int]] = []


class OnnxRuntimeBackend:
    """Runs ``onnxruntime_onnx`` models on the CPU."""

    def complete(self, source: ModelSource) -> list[Note]:
        """Fill in what ``source.config`` leaves out from the model of this version; return notes for the log.

        Opens the model only where inputs or outputs are missing. Raises StatusError as ``load`` does.
        """
        return complete_config(
            source.config,
            lambda: graph_of(open_session(source, options_of(source), completing=True)),
            default_max_batch_size(source.settings),
        )

    def load(self, source: ModelSource) -> OnnxModel:
        """Open a model version for use by any number of instances.

        Raises UNAVAILABLE where there is no model file, INVALID_ARG where configuration and model
        differ, INTERNAL with ONNX Runtime's own words where it cannot open the model.
        """
        options = options_of(source)
        extent, session = _open_valid(source, options)
        return OnnxModel(extent, session, options.run_entries, hidden_paths(source))

    def compare(self, source: ModelSource) -> None:
        """Open a model version and check its configuration against it. Raises StatusError as ``load`` does."""
        _open_valid(source, options_of(source))


def backend(surroundings: Surroundings | None = None) -> OnnxRuntimeBackend:
    """Make the backend; it has no state of its own and needs nothing of the process around it."""
    return OnnxRuntimeBackend()


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


def _open_valid(source: ModelSource, options: SessionOptions) -> tuple[Extent, Any]:
    """What a model takes and gives that fits its configuration, and its session."""
    session = open_session(source, options)
    graph = graph_of(session)
    validate(source.config, graph)
    config = json.loads(source.completed())
    return Extent(signature_of(source.config), ragged_of(config), states_of(config, source.directory), graph), session


def options_of(source: ModelSource) -> SessionOptions:
    """The session options of a model version, for this build of ONNX Runtime."""
    return session_options(source.config, source.settings, onnxruntime.get_available_providers())


def open_session(source: ModelSource, options: SessionOptions, completing: bool = False) -> Any:
    """Make the ``InferenceSession`` of a model version. ``completing``: only to look at its tensors."""
    path = model_file(source)
    libraries = operator_libraries(source)
    load_format = options.entries.get("session.load_model_format", "")
    if load_format != "ORT" and (load_format or not path.endswith(".ort")):
        check_external_data(path, source)
    chosen = onnxruntime.SessionOptions()
    chosen.log_severity_level = _QUIET
    chosen.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, options.graph_level)
    chosen.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL if options.parallel else onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    threads = (options.intra_op_thread_count, options.inter_op_thread_count)
    if options.global_thread_pool:
        _make_global_threads(threads)
        chosen.use_per_session_threads = False
    else:
        chosen.intra_op_num_threads = 1 if completing else threads[0]
        chosen.inter_op_num_threads = threads[1]
    if options.memory_arena is not None:
        chosen.enable_cpu_mem_arena = options.memory_arena
    if options.memory_pattern is not None:
        chosen.enable_mem_pattern = options.memory_pattern
    for key, value in options.entries.items():
        chosen.add_session_config_entry(key, value)
    if completing:
        chosen.add_session_config_entry("session.disable_prepacking", "1")
    providers = [*options.providers, ("CPUExecutionProvider", {})]
    try:
        for library in libraries:
            chosen.register_custom_ops_library(library)
        session = onnxruntime.InferenceSession(path, chosen, providers=providers, enable_fallback=0)
    except FAILURES as error:
        raise runtime_fault(error, hidden_paths(source)) from error
    return session


def hidden_paths(source: ModelSource) -> dict[str, str]:
    """The paths that an error of this model could name, and what a client sees instead."""
    name = source.config.name
    return {version_folder(source): f"{name}/{source.version}", os.path.realpath(source.directory): name}


def _make_global_threads(threads: tuple[int, int]) -> None:
    """One thread pool for all sessions of this process, made before the first of them."""
    with _global_threads_lock:
        if not _global_threads:
            onnxruntime.set_global_thread_pool_sizes(*threads)
            _global_threads.append(threads)


class OnnxModel:
    """A model version in memory: one session, whose ``run`` may be called by all instances at once."""

    def __init__(self, extent: Extent, session: Any, run_entries: dict[str, str], hidden: dict[str, str]) -> None:
        self._extent = extent
        self._session = session
        self._run_entries = run_entries
        self._hidden = hidden

    def runner(self, instance: InstanceSpec, memory: Memory) -> BatchRunner:
        """Create an instance. Raises UNSUPPORTED for one that is to run on a GPU."""
        extent = self._extent
        return runner_of(self.executor(instance), memory, extent.signature, extent.ragged, extent.states)

    @property
    def checks(self) -> bool:
        """It has no check of its own."""
        return False

    def ready(self) -> bool:
        """It can be asked as soon as it is loaded."""
        return True

    def executor(self, instance: InstanceSpec) -> OnnxExecutor:
        """Create what computes for an instance. Raises UNSUPPORTED for one that is to run on a GPU."""
        if instance.kind == "KIND_GPU":
            model = self._extent.signature.model
            raise unsupported(f"instance '{instance.name}' of model '{model}' is to run on a GPU, this worker has none")
        run_options = onnxruntime.RunOptions()
        run_options.log_severity_level = _SILENT
        for key, value in self._run_entries.items():
            run_options.add_run_config_entry(key, value)
        return OnnxExecutor(self._extent, self._session, run_options, self._hidden)

    def close(self) -> None:
        """Give the session's memory back."""
        self._session = None


LEARNED_SHAPES = 256
"""How many combinations of input shapes an executor remembers the outputs' shapes of."""

_Shapes = tuple[tuple[int, ...] | None, ...]


@dataclass(frozen=True, slots=True)
class _Output:
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

    def _run_fed(self, batch: Batch, feeds: dict[str, Array], outputs: list[_Output]) -> list[Array]:
        names = self._output_names if len(outputs) == len(self._output_names) else [output.spec.name for output in outputs]
        batch.inputs_ready()
        try:
            arrays = self._native.run(names, feeds, self._run_options)
        except FAILURES as error:
            raise self._fault(error) from error
        return [self._shaped(output, array, batch) for output, array in zip(outputs, arrays, strict=True)]

    def _run_learning(self, batch: Batch, feeds: dict[str, Array], outputs: list[_Output]) -> list[Array]:
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

    def _run_bound(self, batch: Batch, feeds: dict[str, Array], outputs: list[_Output], made: dict[str, tuple[int, ...]]) -> list[Array]:
        lead = (batch.batch_size,) if self._batching else ()
        places = [self._place(output, batch, lead, made) for output in outputs]
        if not self._binding_needed and not any([place is not None for place in places]):
            return self._run_fed(batch, feeds, outputs)
        binding = self._binding
        try:
            try:
                for name, array in feeds.items():
                    binding.bind_ortvalue_input(name, _value(array, name in self._bits))
                for output, place in zip(outputs, places, strict=True):
                    if place is None:
                        binding.bind_output(output.spec.name, _CPU)
                    else:
                        array = place if output.alike else place.reshape((*lead, *(output.model_shape or ())))
                        binding.bind_ortvalue_output(output.spec.name, _value(array, output.bits))
                batch.inputs_ready()
                self._native.run_with_iobinding(binding, self._run_options)
            except FAILURES as error:
                if not (self._placing or made) or _OTHER_SHAPE not in str(error):
                    raise self._fault(error) from error
            else:
                values = binding.get_outputs()
                return [
                    self._shaped(output, _array(values[index], output.spec.datatype), batch) if place is None else place
                    for index, (output, place) in enumerate(zip(outputs, places, strict=True))
                ]
        finally:
            binding.clear_binding_inputs()
            binding.clear_binding_outputs()
        # The model makes another shape than it declares, or than it made before: its outputs cannot be placed beforehand.
        self._placing = self._learning = False
        self._made.clear()
        return self._run_bound(batch, feeds, outputs, {})

    def _place(self, output: _Output, batch: Batch, lead: tuple[int, ...], made: dict[str, tuple[int, ...]]) -> Array | None:
        if output.shape is None:
            learned = made.get(output.spec.name)
            return None if learned is None else batch.destination(output.spec.name, output.datatype, learned)
        if not self._placing:
            return None
        return batch.destination(output.spec.name, output.datatype, (*lead, *output.shape))

    def _shaped(self, output: _Output, array: Array, batch: Batch) -> Array:
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

    def _fault(self, error: BaseException) -> StatusError:
        if isinstance(error, UnicodeDecodeError):
            return internal(f"a BYTES output of model '{self._model}' is not UTF-8, which ONNX Runtime cannot hand over to Python")
        return runtime_fault(error, self._hidden)


def _output_of(spec: TensorSpec, graph: Graph, scattered: bool) -> _Output:
    tensor = graph.outputs[spec.name]
    model_dims = spec.dims if spec.reshape is None else spec.reshape
    fixed = not spec.variable and spec.datatype.byte_size > 0 and not tensor.scalar and not scattered
    return _Output(
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


def _value(array: Array, bits: bool) -> Any:
    """An ``OrtValue`` over the array's own memory."""
    if bits:
        return native.OrtValue.ortvalue_from_numpy_with_onnx_type(array, BF16_ELEMENT)
    return native.OrtValue.ortvalue_from_numpy(array, _CPU)


def _array(value: Any, datatype: Datatype) -> Array:
    """The numpy array of an output that ONNX Runtime has allocated."""
    if datatype.name != "BF16":
        array: Array = value.numpy()
        return array
    shape = value.shape()
    count = prod(shape)
    if not count:
        return np.empty(shape, np.uint16)
    # numpy knows no bfloat16, so ONNX Runtime offers no array: its bits are copied from where they lie.
    return np.array((ctypes.c_uint16 * count).from_address(value.data_ptr())).reshape(shape)
