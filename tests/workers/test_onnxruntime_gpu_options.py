"""Options of a session on a GPU, from model parameters, accelerators and backend settings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from google.protobuf import text_format

from tensorfarm.workers.backends.onnxruntime_gpu_options import CACHE_FOLDER, CUDA, TENSORRT, GpuOptions, gpu_options
from tensorfarm.workers.contract.configuration import ModelConfig
from tensorfarm.workers.contract.status import Code, StatusError

GRAPHS = "optimization { cuda { graphs: true } }"
SHRINKAGE = "memory.enable_memory_arena_shrinkage"
ORDINAL, DEVICE = 0, 2


def parameter(key: str, value: str) -> str:
    return f"parameters {{ key: '{key}' value {{ string_value: '{value}' }} }}"


def accelerator(name: str, parameters: Mapping[str, str] | None = None) -> str:
    entries = " ".join(f"parameters {{ key: '{key}' value: '{value}' }}" for key, value in (parameters or {}).items())
    return f"optimization {{ execution_accelerators {{ gpu_execution_accelerator {{ name: '{name}' {entries} }} }} }}"


def options(
    config: str = "", settings: Mapping[str, str] | None = None, available: tuple[str, ...] = (TENSORRT, CUDA), directory: str = "/models/m"
) -> GpuOptions:
    message = ModelConfig()
    text_format.Merge(f"name: 'm' {config}", message)
    return gpu_options(message, settings or {}, available, ORDINAL, DEVICE, directory)


def cuda(config: str, settings: Mapping[str, str] | None = None) -> dict[str, str]:
    """The CUDA provider's options but for the GPU."""
    ((name, made),) = options(config, settings).providers
    assert name == CUDA and made["device_id"] == str(ORDINAL)
    return {key: value for key, value in made.items() if key != "device_id"}


def tensorrt(parameters: Mapping[str, str], config: str = "", directory: str = "/models/m") -> dict[str, str]:
    """The TensorRT provider's options but for the GPU."""
    (name, made), (last, _) = options(f"{accelerator('tensorrt', parameters)} {config}", directory=directory).providers
    assert (name, last) == (TENSORRT, CUDA) and made["device_id"] == str(ORDINAL)
    return {key: value for key, value in made.items() if key != "device_id"}


def test_defaults() -> None:
    assert options() == GpuOptions(((CUDA, {"device_id": "0"}),), {}, False)


def test_without_cuda() -> None:
    with pytest.raises(StatusError, match=r"model 'm' .* no CUDA: install tensorfarm\[gpu\] instead of tensorfarm\[cpu\]$") as caught:
        options(available=("CPUExecutionProvider",))
    assert caught.value.code == Code.UNAVAILABLE


CUDA_VALUES = [
    ("cudnn_conv_algo_search", "0", "EXHAUSTIVE"),
    ("cudnn_conv_algo_search", "1", "HEURISTIC"),
    ("cudnn_conv_algo_search", "2", "DEFAULT"),
    ("cudnn_conv_algo_search", "HEURISTIC", "HEURISTIC"),
    ("arena_extend_strategy", "0", "kNextPowerOfTwo"),
    ("arena_extend_strategy", "1", "kSameAsRequested"),
    ("arena_extend_strategy", "kSameAsRequested", "kSameAsRequested"),
    ("gpu_mem_limit", "4294967200", "4294967200"),
    ("gpu_mem_limit", "18446744073709551615", "18446744073709551615"),
    ("do_copy_in_default_stream", "true", "1"),
    ("do_copy_in_default_stream", "0", "0"),
    ("cudnn_conv_use_max_workspace", "0", "0"),
    ("cudnn_conv1d_pad_to_nc1d", "1", "1"),
    ("enable_cudnn", "FALSE", "0"),
    ("enable_skip_layer_norm_strict_mode", "True", "1"),
    ("fuse_conv_bias", "1", "1"),
    ("prefer_nhwc", "1", "1"),
    ("sdpa_kernel", "8", "8"),
    ("tunable_op_enable", "1", "1"),
    ("tunable_op_tuning_enable", "1", "1"),
    ("tunable_op_max_tuning_duration_ms", "50", "50"),
    ("use_ep_level_unified_stream", "1", "1"),
    ("use_tf32", "0", "0"),
]


@pytest.mark.parametrize(("key", "value", "expected"), CUDA_VALUES)
def test_cuda_options(key: str, value: str, expected: str) -> None:
    assert cuda(parameter(key, value)) == {key: expected}
    assert cuda(accelerator("cuda", {key: value})) == {key: expected}
    assert cuda("", {key: value}) == {key: expected}


def test_the_models_parameters_come_before_its_accelerators_and_those_before_the_settings() -> None:
    config = f"{parameter('use_tf32', '0')} {accelerator('cuda', {'use_tf32': '1', 'prefer_nhwc': '1'})}"
    settings = {"use_tf32": "1", "prefer_nhwc": "0", "gpu_mem_limit": "7", "intra_op_thread_count": "many"}
    assert cuda(config, settings) == {"use_tf32": "0", "prefer_nhwc": "1", "gpu_mem_limit": "7"}


def test_parameters_for_others_are_no_options() -> None:
    assert cuda(f"{parameter('device_id', '7')} {parameter('mine', 'x')} {parameter('execution_mode', '1')}", {"mine": "x"}) == {}


TENSORRT_VALUES = [
    ({}, {}),
    ({"precision_mode": "FP32"}, {}),
    ({"precision_mode": "FP16"}, {"trt_fp16_enable": "True"}),
    ({"precision_mode": "BF16"}, {"trt_bf16_enable": "True"}),
    ({"precision_mode": "INT8"}, {"trt_int8_enable": "True"}),
    ({"max_workspace_size_bytes": "1073741824"}, {"trt_max_workspace_size": "1073741824"}),
    ({"int8_use_native_calibration_table": "1"}, {"trt_int8_use_native_calibration_table": "True"}),
    ({"trt_engine_cache_prefix": "mine"}, {"trt_engine_cache_prefix": "mine"}),
    ({"trt_profile_min_shapes": "a:1x3"}, {"trt_profile_min_shapes": "a:1x3"}),
    ({"trt_profile_opt_shapes": "a:2x3"}, {"trt_profile_opt_shapes": "a:2x3"}),
    ({"trt_profile_max_shapes": "a:4x3"}, {"trt_profile_max_shapes": "a:4x3"}),
    ({"trt_tactic_sources": "-CUDNN,+CUBLAS"}, {"trt_tactic_sources": "-CUDNN,+CUBLAS"}),
    ({"trt_tactic_sources": ""}, {}),
    ({"trt_dump_subgraphs": "0"}, {}),
    ({"trt_dump_ep_context_model": "false"}, {}),
    ({"trt_ep_context_file_path": ""}, {}),
    ({"trt_engine_cache_enable": "0"}, {"trt_engine_cache_enable": "False"}),
    ({"trt_timing_cache_enable": "0"}, {"trt_timing_cache_enable": "False"}),
    *[
        ({key: "true"}, {key: "True"})
        for key in (
            "trt_build_heuristics_enable",
            "trt_context_memory_sharing_enable",
            "trt_cuda_graph_enable",
            "trt_detailed_build_log",
            "trt_dla_enable",
            "trt_force_sequential_engine_build",
            "trt_force_timing_cache",
            "trt_layer_norm_fp32_fallback",
            "trt_sparsity_enable",
        )
    ],
    *[
        ({key: value}, {key: value})
        for key, value in {
            "trt_auxiliary_streams": "-1",
            "trt_builder_optimization_level": "3",
            "trt_dla_core": "0",
            "trt_ep_context_embed_mode": "1",
            "trt_max_partition_iterations": "1000",
            "trt_min_subgraph_size": "1",
        }.items()
    ],
]


@pytest.mark.parametrize(("parameters", "expected"), TENSORRT_VALUES)
def test_tensorrt_options(parameters: dict[str, str], expected: dict[str, str]) -> None:
    assert tensorrt(parameters) == expected


def test_tensorrt_comes_before_cuda_whatever_is_asked_for_first() -> None:
    config = f"{accelerator('cuda', {'use_tf32': '0'})} {accelerator('tensorrt', {'precision_mode': 'FP16'})}"
    assert options(config).providers == (
        (TENSORRT, {"trt_fp16_enable": "True", "device_id": "0"}),
        (CUDA, {"use_tf32": "0", "device_id": "0"}),
    )


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"trt_engine_cache_enable": "1"}, {"trt_engine_cache_path": CACHE_FOLDER}),
        ({"trt_timing_cache_enable": "1"}, {"trt_timing_cache_path": CACHE_FOLDER}),
        (
            {"trt_engine_cache_enable": "1", "trt_engine_cache_path": "a/b", "trt_timing_cache_enable": "1"},
            {"trt_engine_cache_path": "a/b", "trt_timing_cache_path": "a/b"},
        ),
        ({"trt_timing_cache_enable": "1", "trt_timing_cache_path": "t"}, {"trt_timing_cache_path": "t"}),
        ({"trt_engine_cache_path": "a/../b/."}, {"trt_engine_cache_path": "b"}),
        ({"int8_calibration_table_name": "1/table"}, {"trt_int8_calibration_table_name": "1/table"}),
        (
            {"int8_calibration_table_name": "table", "trt_engine_cache_path": "c"},
            {"trt_int8_calibration_table_name": "c/table", "trt_engine_cache_path": "c"},
        ),
        ({"int8_calibration_table_name": "", "trt_engine_cache_path": ""}, {}),
    ],
)
def test_files_are_the_models_own(tmp_path: Path, parameters: dict[str, str], expected: dict[str, str]) -> None:
    made = tensorrt(parameters, directory=str(tmp_path))
    flags = {key: "True" for key in parameters if key.endswith("_enable")}
    assert made == {**flags, **{key: str(tmp_path / name) for key, name in expected.items()}}


def test_an_absolute_path_in_the_models_folder(tmp_path: Path) -> None:
    path = str(tmp_path / "cache")
    assert tensorrt({"trt_engine_cache_path": path}, directory=str(tmp_path)) == {"trt_engine_cache_path": path}


def test_plugin_libraries(tmp_path: Path) -> None:
    made = tensorrt({"trt_extra_plugin_lib_paths": "a.so;1/b.so;"}, directory=str(tmp_path))
    assert made == {"trt_extra_plugin_lib_paths": f"{tmp_path}/a.so;{tmp_path}/1/b.so"}


@pytest.mark.parametrize(
    "key", ["trt_engine_cache_path", "trt_timing_cache_path", "int8_calibration_table_name", "trt_extra_plugin_lib_paths"]
)
@pytest.mark.parametrize("name", ["/tmp/elsewhere", "../other", "a/../..", "link/x", "nul\\000", "."])
def test_files_of_others(tmp_path: Path, key: str, name: str) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    with pytest.raises(StatusError, match=f"^parameter '{key}' of model 'm' leaves the model's folder with ") as caught:
        tensorrt({key: name}, directory=str(folder))
    assert caught.value.code == Code.INVALID_ARG


def test_one_library_of_others(tmp_path: Path) -> None:
    with pytest.raises(StatusError, match=r"with '/lib/x\.so'$"):
        tensorrt({"trt_extra_plugin_lib_paths": "a.so;/lib/x.so"}, directory=str(tmp_path))


def test_a_cache_that_leads_elsewhere(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / CACHE_FOLDER).symlink_to(tmp_path)
    with pytest.raises(StatusError, match="leaves the model's folder"):
        tensorrt({"trt_engine_cache_enable": "1"}, directory=str(folder))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (parameter("cudnn_conv_algo_search", "3"), "unsupported cudnn_conv_algo_search value '3' is requested"),
        (parameter("cudnn_conv_algo_search", "exhaustive"), "unsupported cudnn_conv_algo_search value 'exhaustive' is requested"),
        (parameter("arena_extend_strategy", "2"), "unsupported arena_extend_strategy value '2' is requested"),
        (parameter("arena_extend_strategy", ""), "unsupported arena_extend_strategy value '' is requested"),
        (parameter("gpu_mem_limit", "2GB"), "failed to convert '2GB' to unsigned long long integral number"),
        (parameter("gpu_mem_limit", "-1"), "failed to convert '-1' to unsigned long long integral number"),
        (
            parameter("gpu_mem_limit", "18446744073709551616"),
            "failed to convert '18446744073709551616' to unsigned long long integral number",
        ),
        (parameter("use_tf32", "off"), "failed to convert 'off' to boolean"),
        (parameter("sdpa_kernel", "flash"), "failed to convert 'flash' to integral number"),
        *[
            (accelerator("cuda", {key: "1"}), f"unknown parameter '{key}' is provided for CUDA Execution Accelerator")
            for key in (
                "device_id",
                "has_user_compute_stream",
                "user_compute_stream",
                "gpu_external_alloc",
                "gpu_external_free",
                "gpu_external_empty_cache",
                "precision_mode",
            )
        ],
        *[
            (accelerator("tensorrt", {key: "1"}), f"unknown parameter '{key}' is provided for TensorRT Execution Accelerator")
            for key in (
                "segment_size",
                "device_id",
                "user_compute_stream",
                "trt_fp16_enable",
                "trt_onnx_bytestream",
                "trt_engine_decryption_lib_path",
                "use_tf32",
            )
        ],
        *[
            (
                accelerator("tensorrt", {key: "1"}),
                f"parameter '{key}' would write files outside the model's folder, which a model configuration may not",
            )
            for key in ("trt_dump_subgraphs", "trt_dump_ep_context_model", "trt_ep_context_file_path")
        ],
        (accelerator("tensorrt", {"precision_mode": "FP8"}), "unsupported precision mode 'FP8' is requested"),
        (
            accelerator("tensorrt", {"max_workspace_size_bytes": "abc"}),
            "failed to convert 'abc' to unsigned long long integral number",
        ),
        (accelerator("tensorrt", {"trt_engine_cache_enable": ""}), "failed to convert '' to boolean"),
        (accelerator("tensorrt", {"trt_min_subgraph_size": "x"}), "failed to convert 'x' to integral number"),
        (
            accelerator("tensorrt", {"trt_engine_cache_prefix": "../x"}),
            "parameter 'trt_engine_cache_prefix' is the beginning of a file's name, which '../x' is not",
        ),
        (accelerator("unknown_gpu"), "unknown Execution Accelerator 'unknown_gpu' is requested"),
        (
            f"{GRAPHS} {parameter(SHRINKAGE, 'gpu:2')}",
            f"model 'm': CUDA graphs run in memory that '{SHRINKAGE}' would give back: it cannot have both for one GPU",
        ),
    ],
)
def test_bad_values(config: str, message: str) -> None:
    with pytest.raises(StatusError, match=f"^{re.escape(message)}$") as caught:
        options(config)
    assert caught.value.code == Code.INVALID_ARG


def test_a_bad_setting() -> None:
    with pytest.raises(StatusError, match="^unsupported arena_extend_strategy value 'x' is requested$"):
        options(settings={"arena_extend_strategy": "x"})


def test_tensorrt_that_is_not_there() -> None:
    with pytest.raises(StatusError, match="^unknown Execution Accelerator 'tensorrt' is requested$") as caught:
        options(accelerator("tensorrt"), available=(CUDA,))
    assert caught.value.code == Code.INVALID_ARG


@pytest.mark.parametrize(
    "config",
    [
        GRAPHS,
        parameter("enable_cuda_graph", "1"),
        accelerator("cuda", {"enable_cuda_graph": "true"}),
        f"{GRAPHS} {parameter(SHRINKAGE, 'gpu:0')}",
    ],
)
def test_cuda_graphs(config: str) -> None:
    assert options(config).graphs
    assert cuda(config) == {"enable_cuda_graph": "1"}


@pytest.mark.parametrize(
    "config",
    [
        f"{GRAPHS} {accelerator('tensorrt')}",
        accelerator("tensorrt", {"trt_cuda_graph_enable": "1"}),
        f"{accelerator('cuda', {'enable_cuda_graph': '1'})} {accelerator('tensorrt', {'trt_cuda_graph_enable': '0'})}",
    ],
)
def test_cuda_graphs_are_captured_by_the_first_provider(config: str) -> None:
    made = options(config)
    assert made.graphs
    assert made.providers == ((TENSORRT, {"trt_cuda_graph_enable": "True", "device_id": "0"}), (CUDA, {"device_id": "0"}))


def test_no_cuda_graphs() -> None:
    config = f"{accelerator('cuda', {'enable_cuda_graph': '0'})} {accelerator('tensorrt', {'trt_cuda_graph_enable': '0'})}"
    made = options(config)
    assert not made.graphs
    assert made.providers == ((TENSORRT, {"device_id": "0"}), (CUDA, {"device_id": "0"}))


@pytest.mark.parametrize(
    ("arenas", "expected"),
    [
        ("gpu:2", "gpu:0"),
        ("cpu:0;gpu:2", "cpu:0;gpu:0"),
        ("gpu:2;cpu", "gpu:0;cpu:0"),
        ("gpu:0;gpu:2;gpu:3", "gpu:0"),
        ("cpu:0;gpu:1", "cpu:0"),
    ],
)
def test_arenas_that_shrink(arenas: str, expected: str) -> None:
    assert options(parameter(SHRINKAGE, arenas)).run_entries == {SHRINKAGE: expected}


def test_only_other_gpus_arenas_shrink() -> None:
    assert options(parameter(SHRINKAGE, "gpu:0;gpu")).run_entries == {}
