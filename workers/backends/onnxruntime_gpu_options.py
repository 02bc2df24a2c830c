"""How a model's session is to run on a GPU, from its configuration and the backend's command line settings.

Source: the parameters of Triton's ONNX Runtime backend; ONNX Runtime, "CUDA Execution Provider" and "TensorRT Execution Provider".

What a model leaves out stays as ONNX Runtime has it, which is what Triton's backend sets too: convolutions are searched exhaustively,
and the arena, of which each session has its own, takes what the GPU has and grows by doubling. Weights are outside of that growth. The
other strategy, ``kSameAsRequested``, wastes less for a model that sees one shape, and more where batches differ in size: each larger
one asks for memory beside what the smaller ones had. Giving memory back after each run frees it in the driver, which waits for the whole
GPU. So neither is a default here; a model's parameters, or for all models the settings of the same names, choose them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..contract.status import StatusError, invalid, unavailable
from .onnxruntime_files import below
from .onnxruntime_options import ARENA_SHRINKAGE, boolean, integer, parameters_of, run_entries, unknown_accelerator

CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"

CACHE_FOLDER = ".tensorrt"
"""Where in a model's folder TensorRT keeps what it has built, if the model names no other place."""

_MOST_BYTES = (1 << 64) - 1
_TRUE = "True"
_CUDA_GRAPHS = "enable_cuda_graph"
_TENSORRT_GRAPHS = "trt_cuda_graph_enable"

Options = dict[str, str]


@dataclass(frozen=True, slots=True)
class GpuOptions:
    """What a session on a GPU is made and run with, beside its ``SessionOptions``.

    ``providers`` are execution providers before the CPU's, with their options: TensorRT's if it is asked for, then CUDA's.
    ``run_entries`` are ONNX Runtime's own configuration keys for each run. ``graphs``: the first provider captures CUDA graphs.
    """

    providers: tuple[tuple[str, Options], ...]
    run_entries: dict[str, str]
    graphs: bool


def gpu_options(
    config: Any, settings: Mapping[str, str], available: Sequence[str], ordinal: int, device: int, directory: str
) -> GpuOptions:
    """Read the options of a model.

    ``ordinal`` is the GPU's in this process, ``device`` its number in model configurations, ``directory`` the model's folder.
    Raises UNAVAILABLE where this ONNX Runtime has no CUDA, INVALID_ARG with a text that says which value is wrong.

    Options that are addresses in memory, or that choose the GPU, are none of a model's. Those that name files may name some in
    the model's folder, where it may have operator libraries too: who may load a model must not thereby read or write the server's
    other files. What ONNX Runtime writes to its process's folder is refused.
    """
    if CUDA not in available:
        raise unavailable(
            f"model '{config.name}' is to run on a GPU, and this ONNX Runtime has no CUDA: "
            "install tensorfarm[gpu] instead of tensorfarm[cpu]"
        )
    cuda = _cuda({key: text for key, text in settings.items() if key in _CUDA})
    asked: Options | None = None
    for accelerator in config.optimization.execution_accelerators.gpu_execution_accelerator:
        if accelerator.name == "cuda":
            cuda.update(_cuda(accelerator.parameters))
        elif accelerator.name == "tensorrt" and TENSORRT in available:
            asked = {**(asked or {}), **accelerator.parameters}
        else:
            raise unknown_accelerator(accelerator.name)
    cuda.update(_cuda({key: text for key, text in parameters_of(config).items() if key in _CUDA}))
    tensorrt = None if asked is None else _tensorrt(asked, config.name, directory)
    graphs = _share_graphs(config.optimization.cuda.graphs, cuda, tensorrt)
    entries = run_entries(config, {device: ordinal})
    if graphs and "gpu" in entries.get(ARENA_SHRINKAGE, ""):
        raise invalid(
            f"model '{config.name}': CUDA graphs run in memory that '{ARENA_SHRINKAGE}' would give back: it cannot have both for one GPU"
        )
    place = {"device_id": str(ordinal)}
    providers = [(CUDA, {**cuda, **place})]
    if tensorrt is not None:
        providers.insert(0, (TENSORRT, {**tensorrt, **place}))
    return GpuOptions(tuple(providers), entries, graphs)


def without_graphs(options: GpuOptions) -> GpuOptions:
    """The same for a model that ONNX Runtime cannot capture graphs of."""
    keys = (_CUDA_GRAPHS, _TENSORRT_GRAPHS)
    providers = [(name, {key: value for key, value in given.items() if key not in keys}) for name, given in options.providers]
    return GpuOptions(tuple(providers), options.run_entries, graphs=False)


def _share_graphs(graphs: bool, cuda: Options, tensorrt: Options | None) -> bool:
    """Whether CUDA graphs are to be captured; by one provider only, the first, for ONNX Runtime has one that captures."""
    wanted = (graphs, cuda.pop(_CUDA_GRAPHS, "") == "1", tensorrt is not None and tensorrt.pop(_TENSORRT_GRAPHS, "") == _TRUE)
    if not any(wanted):
        return False
    if tensorrt is None:
        cuda[_CUDA_GRAPHS] = "1"
    else:
        tensorrt[_TENSORRT_GRAPHS] = _TRUE
    return True


def _cuda(parameters: Mapping[str, str]) -> Options:
    for key in parameters:
        if key not in _CUDA:
            raise invalid(f"unknown parameter '{key}' is provided for CUDA Execution Accelerator")
    return {key: _CUDA[key](text) for key, text in parameters.items()}


def _tensorrt(parameters: Mapping[str, str], model: str, directory: str) -> Options:
    options: Options = {}
    for key, text in parameters.items():
        if key in _TENSORRT:
            options.update(_TENSORRT[key](text))
        elif key not in _TENSORRT_FILES:
            raise invalid(f"unknown parameter '{key}' is provided for TensorRT Execution Accelerator")
    return {**options, **_tensorrt_files(parameters, options, model, directory)}


def _tensorrt_files(parameters: Mapping[str, str], options: Options, model: str, directory: str) -> Options:
    """The options that name files and folders, as absolute paths."""
    root = os.path.realpath(directory)

    def inside(key: str, name: str, folder: str = root) -> str:
        real = below(folder, name, root)
        if real is None:
            raise invalid(f"parameter '{key}' of model '{model}' leaves the model's folder with '{name}'")
        return real

    files: Options = {}
    given = {key: parameters[key] for key in _TENSORRT_FILES if parameters.get(key)}
    cache = inside(_ENGINE_CACHE, given.get(_ENGINE_CACHE, CACHE_FOLDER))
    if _ENGINE_CACHE in given or options.get("trt_engine_cache_enable") == _TRUE:
        files[_ENGINE_CACHE] = cache
    if _TIMING_CACHE in given:
        files[_TIMING_CACHE] = inside(_TIMING_CACHE, given[_TIMING_CACHE])
    elif options.get("trt_timing_cache_enable") == _TRUE:
        files[_TIMING_CACHE] = cache
    if _CALIBRATION in given:
        # ONNX Runtime looks for it in the engines' cache.
        folder = cache if _ENGINE_CACHE in given else root
        files["trt_int8_calibration_table_name"] = inside(_CALIBRATION, given[_CALIBRATION], folder)
    if _LIBRARIES in given:
        files[_LIBRARIES] = ";".join([inside(_LIBRARIES, name) for name in given[_LIBRARIES].split(";") if name])
    return files


# How the value of a parameter is read: each raises INVALID_ARG.


def _bit(text: str) -> str:
    return "1" if boolean(text) else "0"


def _word(text: str) -> str:
    # TensorRT's options are read by ONNX Runtime's Python module, which knows no 1 and 0.
    return _TRUE if boolean(text) else "False"


def _number(text: str) -> str:
    return str(integer(text))


def _byte_size(text: str) -> str:
    match = re.fullmatch(r"[0-9]{1,20}", text)
    if match is None or int(text) > _MOST_BYTES:
        raise invalid(f"failed to convert '{text}' to unsigned long long integral number")
    return str(int(text))


def _one_of(key: str, *names: str) -> Callable[[str], str]:
    """One of ONNX Runtime's names, or its place among them, as Triton has it."""

    def read(text: str) -> str:
        if text in names:
            return text
        if text.isdecimal() and text.isascii() and int(text) < len(names):
            return names[int(text)]
        raise invalid(f"unsupported {key} value '{text}' is requested")

    return read


def _as(option: str, read: Callable[[str], str]) -> Callable[[str], Options]:
    return lambda text: {option: read(text)}


def _text(option: str) -> Callable[[str], Options]:
    return lambda text: {option: text} if text else {}


def _precision(text: str) -> Options:
    option = _PRECISIONS.get(text)
    if option is None:
        raise invalid(f"unsupported precision mode '{text}' is requested")
    return dict.fromkeys(option, _TRUE)


def _prefix(text: str) -> Options:
    if "/" in text or "\0" in text:
        raise invalid(f"parameter 'trt_engine_cache_prefix' is the beginning of a file's name, which '{text}' is not")
    return _text("trt_engine_cache_prefix")(text)


def _refused(key: str) -> StatusError:
    return invalid(f"parameter '{key}' would write files outside the model's folder, which a model configuration may not")


def _off(key: str) -> Callable[[str], Options]:
    def read(text: str) -> Options:
        if boolean(text):
            raise _refused(key)
        return {}

    return read


def _unset(key: str) -> Callable[[str], Options]:
    def read(text: str) -> Options:
        if text:
            raise _refused(key)
        return {}

    return read


def _all_as(read: Callable[[str], str], options: Iterable[str]) -> dict[str, Callable[[str], Options]]:
    return {option: _as(option, read) for option in options}


_CUDA: dict[str, Callable[[str], str]] = {
    "arena_extend_strategy": _one_of("arena_extend_strategy", "kNextPowerOfTwo", "kSameAsRequested"),
    "cudnn_conv1d_pad_to_nc1d": _bit,
    "cudnn_conv_algo_search": _one_of("cudnn_conv_algo_search", "EXHAUSTIVE", "HEURISTIC", "DEFAULT"),
    "cudnn_conv_use_max_workspace": _bit,
    "do_copy_in_default_stream": _bit,
    _CUDA_GRAPHS: _bit,
    "enable_cudnn": _bit,
    "enable_skip_layer_norm_strict_mode": _bit,
    "fuse_conv_bias": _bit,
    "gpu_mem_limit": _byte_size,
    "prefer_nhwc": _bit,
    "sdpa_kernel": _number,
    "tunable_op_enable": _bit,
    "tunable_op_max_tuning_duration_ms": _number,
    "tunable_op_tuning_enable": _bit,
    "use_ep_level_unified_stream": _bit,
    "use_tf32": _bit,
}
"""How the options of ONNX Runtime's CUDA provider that a model may set are read."""

_PRECISIONS = {"FP32": (), "FP16": ("trt_fp16_enable",), "BF16": ("trt_bf16_enable",), "INT8": ("trt_int8_enable",)}

_ENGINE_CACHE = "trt_engine_cache_path"
_TIMING_CACHE = "trt_timing_cache_path"
_CALIBRATION = "int8_calibration_table_name"
_LIBRARIES = "trt_extra_plugin_lib_paths"
_TENSORRT_FILES = (_ENGINE_CACHE, _TIMING_CACHE, _CALIBRATION, _LIBRARIES)

_TENSORRT: dict[str, Callable[[str], Options]] = {
    "precision_mode": _precision,
    "max_workspace_size_bytes": _as("trt_max_workspace_size", _byte_size),
    "int8_use_native_calibration_table": _as("trt_int8_use_native_calibration_table", _word),
    "trt_engine_cache_prefix": _prefix,
    "trt_dump_subgraphs": _off("trt_dump_subgraphs"),
    "trt_dump_ep_context_model": _off("trt_dump_ep_context_model"),
    "trt_ep_context_file_path": _unset("trt_ep_context_file_path"),
    **{
        option: _text(option)
        for option in ("trt_profile_max_shapes", "trt_profile_min_shapes", "trt_profile_opt_shapes", "trt_tactic_sources")
    },
    **_all_as(
        _word,
        (
            "trt_build_heuristics_enable",
            "trt_context_memory_sharing_enable",
            _TENSORRT_GRAPHS,
            "trt_detailed_build_log",
            "trt_dla_enable",
            "trt_engine_cache_enable",
            "trt_force_sequential_engine_build",
            "trt_force_timing_cache",
            "trt_layer_norm_fp32_fallback",
            "trt_sparsity_enable",
            "trt_timing_cache_enable",
        ),
    ),
    **_all_as(
        _number,
        (
            "trt_auxiliary_streams",
            "trt_builder_optimization_level",
            "trt_dla_core",
            "trt_ep_context_embed_mode",
            "trt_max_partition_iterations",
            "trt_min_subgraph_size",
        ),
    ),
}
"""How the parameters of Triton's TensorRT accelerator are read, but for those that name files in the model's folder."""
