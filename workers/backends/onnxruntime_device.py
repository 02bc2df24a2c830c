"""One instance of an ONNX model on a GPU: tensors in device memory are computed where they lie.

ONNX Runtime's streams wait for none of ours, so copies have arrived before a run begins. A run has ended when its call returns, as it
does unless ``disable_synchronize_execution_providers`` is set; asking a binding to synchronise besides would wait for all instances.
Source: ONNX Runtime, "CUDA Execution Provider", I/O binding and CUDA graphs; ``onnxruntime_run_options_config_keys.h``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import onnxruntime

from ...shm.placement import DEVICE_START, Lease
from ..batch import Array, Batch
from ..contract.signature import reshaped
from ..contract.status import StatusError, internal
from ..device_batch import DeviceBatch, DeviceTensor
from ..device_memory import DeviceMemory
from ..output import INLINE_BYTE_SIZE
from .onnxruntime_executor import CPU, FAILURES, LEARNED_SHAPES, Extent, OnnxExecutor, Output, made_other_shape, value_over
from .onnxruntime_graph import ELEMENT_NUMBERS

MOST_GRAPHS = 16
"""How many combinations of input shapes an instance captures CUDA graphs of: each keeps memory for its inputs and outputs."""

CAPTURE_PATIENCE_SECS = 0.005
"""How long a batch waits for others to end, so that it can be captured."""

_LIBRARIES = ("CUDA", "CUDNN", "CUBLAS", "CUFFT", "CURAND", "TENSORRT")
"""What is in the words of an error that a lost context may be behind."""

_GRAPH_KEY = "gpu_graph_id"
_NO_GRAPH = "-1"

RunOptions = Callable[[Mapping[str, str]], Any]
_Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class GraphSpec:
    """Shapes that a CUDA graph is to be captured of; inputs that it does not name may have any."""

    batch_size: int
    dims: dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Graphs:
    """Which batches run as CUDA graphs: those that a spec fits; without specs the first shapes that come."""

    specs: tuple[GraphSpec, ...]
    batching: bool

    def fit(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Is a batch of these shapes, batch dims included, to be captured?"""
        return not self.specs or any([self._fits(spec, shapes) for spec in self.specs])

    def _fits(self, spec: GraphSpec, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        if self.batching:
            return all([shape[:1] == (spec.batch_size,) for shape in shapes.values()]) and all(
                [shapes.get(name, ())[1:] == dims for name, dims in spec.dims.items()]
            )
        return all([shapes.get(name) == dims for name, dims in spec.dims.items()])


def graphs_of(config: Any) -> Graphs:
    """What a ``ModelConfig`` says of CUDA graphs."""
    specs = [
        GraphSpec(spec.batch_size, {name: tuple(shape.dim) for name, shape in spec.input.items()})
        for spec in config.optimization.cuda.graph_spec
    ]
    return Graphs(tuple(specs), config.max_batch_size > 0)


@dataclass(frozen=True, slots=True)
class _Captured:
    """A graph's own memory, by tensor: where its inputs are put, and where its outputs are found, with the shapes the model makes."""

    inputs: dict[str, Lease]
    outputs: dict[str, tuple[Lease, tuple[int, ...]]]
    run_options: Any


class OnnxDeviceExecutor(OnnxExecutor):
    """As ``OnnxExecutor`` for batches that know ordinary memory alone: ONNX Runtime copies those to the device and back."""

    def __init__(
        self,
        extent: Extent,
        session: Any,
        run_options: RunOptions,
        hidden: dict[str, str],
        device: DeviceMemory,
        graphs: Graphs | None = None,
    ) -> None:
        super().__init__(extent, session, run_options({} if graphs is None else {_GRAPH_KEY: _NO_GRAPH}), hidden)
        self._device = device
        self._new_run_options = run_options
        # By its public name it has the maker's number too, without which it would count as another device.
        self._cuda = onnxruntime.OrtDevice.make("cuda", device.ordinal)._get_c_device()
        self._elements = {
            name: ELEMENT_NUMBERS[tensor.datatype.name]
            for name, tensor in {**extent.graph.initializers, **extent.graph.inputs, **extent.graph.outputs}.items()
            if tensor.datatype is not None
        }
        # What the base class places lies in ordinary memory.
        self._direct, self._placing = self._placing, False
        self._foresees, self._learning = self._learning, False
        self._graphs = graphs
        self._captured: dict[tuple[object, ...], _Captured] = {}
        self._replays: set[tuple[object, ...]] = set()

    def execute(self, batch: Batch) -> None:
        """As ``OnnxExecutor`` says; a lost CUDA context ends the process."""
        with self._device.quiet.work():
            if not isinstance(batch, DeviceBatch):
                super().execute(batch)
            elif not self._run_captured(batch):
                large = self._direct and batch.batch_size > self._small_batch_size
                # Strings cannot be bound.
                if (batch.on_device or large) and not self._strings:
                    self._execute_on_device(batch)
                else:
                    super().execute(batch)

    def close(self) -> None:
        """Let go of the session, and of the graphs' memory."""
        with self._device.quiet.work():
            super().close()
        for captured in self._captured.values():
            self._free([*captured.inputs.values(), *[lease for lease, _ in captured.outputs.values()]])
        self._captured.clear()

    def _fault(self, error: BaseException) -> StatusError:
        # Asking waits for all that runs on the device, and most errors are of a request's own making.
        if any(name in str(error).upper() for name in _LIBRARIES):
            self._device.check()
        return super()._fault(error)

    def _execute_on_device(self, batch: DeviceBatch) -> None:
        wanted = [output for output in self._outputs if batch.wants(output.spec.name)]
        names = batch.input_names
        placed = {name: tensor for name in names if name not in self._adapted and (tensor := batch.device_input(name)) is not None}
        feeds = {name: batch.input(name) for name in names if name not in placed}
        for name in self._adapted.intersection(feeds):
            feeds[name] = self._adapt(name, feeds[name])
        batch.arrived()
        made = self._made_of(placed, feeds)
        binding = self._binding
        try:
            try:
                for name, tensor in placed.items():
                    binding.bind_input(name, self._cuda, self._elements[name], tensor.shape, tensor.address)
                for name, array in feeds.items():
                    # It is copied to the device before this returns.
                    binding.bind_ortvalue_input(name, value_over(array, name in self._bits))
                places = [self._bind_output(batch, output, made) for output in wanted]
                batch.inputs_ready()
                self._native.run_with_iobinding(binding, self._run_options)
            except FAILURES as error:
                if not (self._direct or made) or not made_other_shape(error):
                    raise self._fault(error) from error
            else:
                batch.computed()
                values = binding.get_outputs()
                for index, (output, place) in enumerate(zip(wanted, places, strict=True)):
                    # Going through them by iteration costs 25 µs more.
                    value = values[index]
                    self._hand_over(batch, output, place, value)
                    if self._foresees and output.learns and place is None:
                        made[output.spec.name] = tuple(value.shape())
                # What ONNX Runtime has allocated is copied before it is let go of.
                batch.arrived()
                return
        finally:
            binding.clear_binding_inputs()
            binding.clear_binding_outputs()
        # The model makes another shape than it made before of inputs of these shapes, or than it declares.
        if made:
            self._foresees = False
            self._made.clear()
        else:
            self._direct = False
        self._execute_on_device(batch)

    def _made_of(self, placed: Mapping[str, DeviceTensor], feeds: Mapping[str, Array]) -> dict[str, _Shape]:
        """The shapes of outputs, where they vary, that came of inputs of these shapes before, by name; to be added to."""
        if not self._foresees:
            return {}
        given = {**{name: tensor.shape for name, tensor in placed.items()}, **{name: array.shape for name, array in feeds.items()}}
        shapes = tuple([given.get(name) for name in self._input_order])
        if shapes not in self._made and len(self._made) >= LEARNED_SHAPES:
            self._made.clear()
        return self._made.setdefault(shapes, {})

    def _foreseen(self, batch: DeviceBatch, output: Output, made: Mapping[str, _Shape]) -> tuple[_Shape, _Shape] | None:
        """The whole shapes that a client gets of an output and that the model makes; None where that is not known before."""
        if output.shape is None:
            learned = made.get(output.spec.name)
            return None if learned is None else (learned, learned)
        if not self._direct:
            return None
        lead = (batch.batch_size,) if self._batching else ()
        return (*lead, *output.shape), (*lead, *(output.model_shape or ()))

    def _bind_output(self, batch: DeviceBatch, output: Output, made: Mapping[str, _Shape]) -> DeviceTensor | None:
        """Bind an output to its address in device memory, or to wherever ONNX Runtime puts it: on the device, if it is not small.

        Not to ordinary memory of ours: what ONNX Runtime copies there must be of the very size, and it tells nobody the shape.
        """
        name = output.spec.name
        large = False
        foreseen = self._foreseen(batch, output, made)
        if foreseen is not None:
            shape, model_shape = foreseen
            address = batch.device_destination(name, output.datatype, shape)
            if address is not None:
                self._binding.bind_output(name, self._cuda, self._elements[name], model_shape, address)
                return DeviceTensor(address, shape)
            large = prod(shape) * output.spec.datatype.byte_size > INLINE_BYTE_SIZE
        on_device = not output.scalar and output.spec.datatype.byte_size and (large or batch.goes_to_device(name))
        self._binding.bind_output(name, self._cuda if on_device else CPU)
        return None

    def _hand_over(self, batch: DeviceBatch, output: Output, place: DeviceTensor | None, value: Any) -> None:
        name = output.spec.name
        if place is not None:
            batch.set_device_output(name, output.datatype, place.shape, place.address)
        elif value.device_name().lower() == "cpu":
            batch.set_output(name, output.datatype, self._shaped(output, self._array_of(value, output), batch))
        else:
            batch.set_device_output(name, output.datatype, self._client_shape(output, tuple(value.shape()), batch), value.data_ptr())

    def _client_shape(self, output: Output, shape: tuple[int, ...], batch: Batch) -> tuple[int, ...]:
        """The shape as the client gets it of an output that the model made with ``shape``."""
        spec = output.spec
        if self._batching and shape[:1] != (batch.batch_size,):
            raise internal(f"model '{self._model}' made output '{spec.name}' with shape {list(shape)} for a batch of {batch.batch_size}")
        if output.alike or spec.reshape is None:
            return shape
        return tuple(reshaped(shape, spec.reshape, spec.dims, self._batching))

    # CUDA graphs

    def _run_captured(self, batch: DeviceBatch) -> bool:
        """Run a batch as a CUDA graph; False, and nothing done, where it is not one of those."""
        if self._graphs is None or self._adapted or not all([output.shape is not None for output in self._outputs]):
            return False
        names = batch.input_names
        shapes = {name: batch.shape_of(name) for name in names}
        key = tuple(sorted(shapes.items()))
        captured = self._captured.get(key)
        if captured is None:
            if len(self._captured) >= MOST_GRAPHS or not self._graphs.fit(shapes):
                return False
            captured = self._captured[key] = self._memory_for(batch, shapes)
        for name in names:
            batch.place_input(name, _address(captured.inputs[name]))
        batch.arrived()
        binding = self._binding
        try:
            for name, shape in shapes.items():
                binding.bind_input(name, self._cuda, self._elements[name], shape, _address(captured.inputs[name]))
            for name, (lease, shape) in captured.outputs.items():
                binding.bind_output(name, self._cuda, self._elements[name], shape, _address(lease))
            batch.inputs_ready()
            if key in self._replays:
                self._native.run_with_iobinding(binding, captured.run_options)
            else:
                self._capture(key, captured)
        except FAILURES as error:
            if not made_other_shape(error):
                # Its memory is what the graph was captured with, if it was.
                raise self._fault(error) from error
            # The model makes another shape than it declares.
            self._graphs, self._direct = None, False
            return False
        finally:
            binding.clear_binding_inputs()
            binding.clear_binding_outputs()
        batch.computed()
        lead = (batch.batch_size,) if self._batching else ()
        for output in self._outputs:
            if batch.wants(output.spec.name):
                lease, _ = captured.outputs[output.spec.name]
                batch.set_device_output(output.spec.name, output.datatype, (*lead, *(output.shape or ())), _address(lease))
        # The next batch overwrites it.
        batch.arrived()
        return True

    def _capture(self, key: tuple[object, ...], captured: _Captured) -> None:
        """Run with what is bound, and capture it if nobody else is using the device; the next batch of these shapes tries again if not."""
        with self._device.quiet.alone(CAPTURE_PATIENCE_SECS) as alone:
            self._native.run_with_iobinding(self._binding, captured.run_options if alone else self._run_options)
        if alone:
            self._replays.add(key)

    def _memory_for(self, batch: DeviceBatch, shapes: Mapping[str, tuple[int, ...]]) -> _Captured:
        lead = (batch.batch_size,) if self._batching else ()
        taken: list[Lease] = []

        def block(byte_size: int) -> Lease:
            lease = self._device.reserve(max(1, byte_size))
            taken.append(lease)
            return lease

        try:
            inputs = {name: block(sum([tensor.place.byte_size for tensor in batch.tensors(name)])) for name in shapes}
            outputs = {
                output.spec.name: (
                    block(prod((*lead, *(output.shape or ()))) * output.spec.datatype.byte_size),
                    (*lead, *(output.model_shape or ())),
                )
                for output in self._outputs
            }
        except BaseException:
            self._free(taken)
            raise
        # 0 is what a run without a number has.
        options = self._new_run_options({_GRAPH_KEY: str(len(self._captured) + 1)})
        return _Captured(inputs, outputs, options)

    def _free(self, leases: Sequence[Lease]) -> None:
        for lease in leases:
            self._device.free_offset(lease.offset)


def _address(lease: Lease) -> int:
    return lease.offset - DEVICE_START
