"""The ONNX Runtime backend."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from types import MappingProxyType
from typing import Any

import onnxruntime

from ..batch import Memory
from ..batch_runner import BatchRunner
from ..contract.messages import InstanceSpec, Note
from ..contract.signature import signature_of
from ..contract.status import StatusError, unavailable, unsupported
from ..device_batch import DeviceRunner
from ..device_memory import DeviceMemory
from ..extended_batch import runner_of
from ..ragged import ragged_of
from ..states import states_of
from .backend import ModelSource, Surroundings
from .onnxruntime_completion import complete_config
from .onnxruntime_device import Graphs, OnnxDeviceExecutor, graphs_of
from .onnxruntime_executor import FAILURES, Extent, OnnxExecutor
from .onnxruntime_faults import runtime_fault
from .onnxruntime_files import check_external_data, model_file, operator_libraries, version_folder
from .onnxruntime_gpu_options import GpuOptions, gpu_options, without_graphs
from .onnxruntime_graph import graph_of
from .onnxruntime_options import SessionOptions, default_max_batch_size, session_options
from .onnxruntime_validation import validate

_QUIET = 3
_SILENT = 4

_global_threads_lock = threading.Lock()
_global_threads: list[tuple[int, int]] = []
_libraries_lock = threading.Lock()
_libraries: list[bool] = []

_NO_GRAPHS = "cannot use the graph capture feature"
"""What ONNX Runtime says of a model with nodes or control flow that it cannot capture."""

_NO_TENSORRT = "Please install TensorRT libraries"
"""What it says where its provider for TensorRT does not find that."""


class OnnxRuntimeBackend:
    """Runs ``onnxruntime_onnx`` models: on the GPU ``device``, or on the CPU where it is None."""

    def __init__(self, device: DeviceMemory | None) -> None:
        self._device = device

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
        gpu = None if self._device is None else _gpu_options(source, self._device)

        def open_own() -> Any:
            with nullcontext() if self._device is None else self._device.quiet.work():
                return open_session(source, options, gpu=gpu)

        try:
            session = open_own()
        except StatusError as error:
            if gpu is None or not gpu.graphs or _NO_GRAPHS not in error.message:
                raise
            # What Triton's backend makes of the same configuration: a model that runs.
            print(f"model '{source.config.name}' runs without CUDA graphs: {error.message}", file=sys.stderr, flush=True)
            gpu = without_graphs(gpu)
            session = open_own()
        extent, hidden = _extent(source, session), hidden_paths(source)
        if gpu is None:
            return OnnxModel(extent, session, options.run_entries, hidden)
        graphs = graphs_of(source.config) if gpu.graphs else None
        return OnnxModel(extent, session, gpu.run_entries, hidden, self._device, graphs, open_own)

    def compare(self, source: ModelSource) -> None:
        """Open a model version and check its configuration against it. Raises StatusError as ``load`` does."""
        _extent(source, open_session(source, options_of(source)))


def backend(surroundings: Surroundings | None = None) -> OnnxRuntimeBackend:
    """Make the backend; it needs nothing of the process around it but its GPU, if it has one."""
    return OnnxRuntimeBackend(None if surroundings is None else surroundings.memory.device)


def _extent(source: ModelSource, session: Any) -> Extent:
    """What a model takes and gives. Raises StatusError where that does not fit its configuration."""
    graph = graph_of(session)
    validate(source.config, graph)
    config = json.loads(source.completed())
    return Extent(signature_of(source.config), ragged_of(config), states_of(config, source.directory), graph)


def _gpu_options(source: ModelSource, device: DeviceMemory) -> GpuOptions:
    """How a model is to run on a GPU, whose context and libraries are there from here on. Raises StatusError."""
    available = onnxruntime.get_available_providers()
    options = gpu_options(source.config, source.settings, available, device.ordinal, device.number, source.directory)
    device.take_pool()
    with _libraries_lock:
        if not _libraries:
            # It would warn with each session that the provider is no plugin; what keeps one from being used is an error.
            onnxruntime.set_default_logger_severity(_QUIET)
            # Those that pip has installed are on no search path.
            onnxruntime.preload_dlls()
            _libraries.append(True)
    return options


def options_of(source: ModelSource) -> SessionOptions:
    """The session options of a model version, for this build of ONNX Runtime."""
    return session_options(source.config, source.settings, onnxruntime.get_available_providers())


def open_session(source: ModelSource, options: SessionOptions, completing: bool = False, gpu: GpuOptions | None = None) -> Any:
    """Make the ``InferenceSession`` of a model version. ``completing``: only to look at its tensors. ``gpu``: to run on one."""
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
    providers = [*(options.providers if gpu is None else gpu.providers), ("CPUExecutionProvider", {})]
    try:
        for library in libraries:
            chosen.register_custom_ops_library(library)
        session = onnxruntime.InferenceSession(path, chosen, providers=providers, enable_fallback=0)
    except FAILURES as error:
        if _NO_TENSORRT in str(error):
            raise unavailable(
                f"ONNX Runtime finds no TensorRT here, which model '{source.config.name}' asks for: it comes with tensorfarm[tensorrt]"
            ) from error
        raise runtime_fault(error, hidden_paths(source)) from error
    # Where one cannot be had, ONNX Runtime says why on its standard error, and goes on without.
    wanted = [] if gpu is None else [name for name, _ in gpu.providers]
    lacking = [name for name in wanted if name not in session.get_providers()]
    if lacking:
        raise unavailable(
            f"ONNX Runtime has no {' and no '.join(lacking)} here, and would run model '{source.config.name}' without: "
            "the log has its reason; the libraries that it needs come with tensorfarm[gpu]"
        )
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


def _no_other() -> Any:
    raise AssertionError("only models with CUDA graphs have more than one session")


class OnnxModel:
    """A model version in memory: one session, whose ``run`` may be called by all instances at once.

    ``open_own`` opens another for ``graphs``, which are a session's, and one thread's: each instance has its own then.
    """

    def __init__(
        self,
        extent: Extent,
        session: Any,
        run_entries: dict[str, str],
        hidden: dict[str, str],
        device: DeviceMemory | None = None,
        graphs: Graphs | None = None,
        open_own: Callable[[], Any] = _no_other,
    ) -> None:
        self._extent = extent
        self._session = session
        self._run_entries = run_entries
        self._hidden = hidden
        self._device = device
        self._graphs = graphs
        self._open_own = open_own
        self._taken = False

    def runner(self, instance: InstanceSpec, memory: Memory) -> BatchRunner:
        """Create an instance. Raises UNSUPPORTED for one that is to run where this process does not."""
        extent = self._extent
        executor = self.executor(instance)
        if self._device is not None and not extent.ragged and not extent.states:
            return DeviceRunner(executor, memory, extent.signature.model, self._device)
        return runner_of(executor, memory, extent.signature, extent.ragged, extent.states)

    @property
    def checks(self) -> bool:
        """It has no check of its own."""
        return False

    def ready(self) -> bool:
        """It can be asked as soon as it is loaded."""
        return True

    def executor(self, instance: InstanceSpec) -> OnnxExecutor:
        """Create what computes for an instance. Raises UNSUPPORTED for one that is to run where this process does not."""
        extent, device = self._extent, self._device
        if instance.kind == "KIND_GPU" and device is None:
            raise unsupported(f"instance '{instance.name}' of model '{extent.signature.model}' is to run on a GPU, this worker has none")
        if device is None:
            return OnnxExecutor(extent, self._session, self._run_options(), self._hidden)
        session = self._session
        if self._graphs is not None:
            session = self._open_own() if self._taken else session
            self._taken = True
        return OnnxDeviceExecutor(extent, session, self._run_options, self._hidden, device, self._graphs)

    def _run_options(self, entries: Mapping[str, str] = MappingProxyType({})) -> Any:
        made = onnxruntime.RunOptions()
        made.log_severity_level = _SILENT
        for key, value in (*self._run_entries.items(), *entries.items()):
            made.add_run_config_entry(key, value)
        return made

    def close(self) -> None:
        """Give the session's memory back."""
        with nullcontext() if self._device is None else self._device.quiet.work():
            self._session = None
