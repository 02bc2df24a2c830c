"""Session options from model parameters, optimization and backend settings."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest
from google.protobuf import text_format

from tensorfarm.workers.backends.onnxruntime import backend, open_session, options_of
from tensorfarm.workers.backends.onnxruntime_options import SessionOptions, boolean, default_max_batch_size, session_options
from tensorfarm.workers.contract.configuration import ModelConfig
from tensorfarm.workers.contract.cores import usable_core_count
from tensorfarm.workers.contract.status import Code, StatusError

from .onnx_source import INSTANCE, add_sub, source


def parameter(key: str, value: str) -> str:
    return f"parameters {{ key: '{key}' value {{ string_value: '{value}' }} }}"


def options(config: str = "", available: tuple[str, ...] = ("CPUExecutionProvider",), **settings: str) -> SessionOptions:
    message = ModelConfig()
    text_format.Parse(f"name: 'm' {config}", message)
    return session_options(message, {key.replace("__", "-"): value for key, value in settings.items()}, list(available))


def test_defaults() -> None:
    made = options()
    assert made.graph_level == "ORT_ENABLE_ALL"
    assert not made.parallel and not made.global_thread_pool
    assert made.intra_op_thread_count == usable_core_count() >= 1
    assert made.inter_op_thread_count == 0
    assert (made.memory_arena, made.memory_pattern) == (None, None)
    assert made.entries == {"session.intra_op.allow_spinning": "0", "session.inter_op.allow_spinning": "0"}
    assert made.run_entries == {} and made.providers == ()


@pytest.mark.parametrize(
    ("level", "name"),
    [(0, "ORT_ENABLE_ALL"), (-1, "ORT_ENABLE_BASIC"), (1, "ORT_ENABLE_EXTENDED"), (2, "ORT_DISABLE_ALL"), (9, "ORT_ENABLE_ALL")],
)
def test_graph_levels(level: int, name: str) -> None:
    assert options(f"optimization {{ graph {{ level: {level} }} }}").graph_level == name
    assert hasattr(onnxruntime.GraphOptimizationLevel, name)


def test_parameters() -> None:
    made = options(
        " ".join(
            parameter(key, value)
            for key, value in {
                "intra_op_thread_count": "3",
                "inter_op_thread_count": " 2x",
                "execution_mode": "1",
                "enable_mem_arena": "False",
                "enable_mem_pattern": "1",
                "session.use_device_allocator_for_initializers": "1",
                "session.intra_op.allow_spinning": "1",
                "optimization.enable_gelu_approximation": "1",
                "memory.enable_memory_arena_shrinkage": "cpu:0",
                "share_session_between_instances": "true",
                "mine": "session.x",
            }.items()
        )
    )
    assert (made.intra_op_thread_count, made.inter_op_thread_count, made.parallel) == (3, 2, True)
    assert (made.memory_arena, made.memory_pattern) == (False, True)
    assert made.entries == {
        "session.intra_op.allow_spinning": "1",
        "session.inter_op.allow_spinning": "0",
        "session.use_device_allocator_for_initializers": "1",
        "optimization.enable_gelu_approximation": "1",
    }
    assert made.run_entries == {"memory.enable_memory_arena_shrinkage": "cpu:0"}


@pytest.mark.parametrize("arenas", ["", "gpu:0", "gpu:1;gpu"])
def test_arenas_of_gpus_do_not_shrink_on_the_cpu(arenas: str) -> None:
    assert options(parameter("memory.enable_memory_arena_shrinkage", arenas)).run_entries == {}
    both = options(parameter("memory.enable_memory_arena_shrinkage", f"{arenas};cpu")).run_entries
    assert both == {"memory.enable_memory_arena_shrinkage": "cpu:0"}


@pytest.mark.parametrize("arena", ["cpu:1", "npu:0", "gpu:", "gpu:x", " gpu:0", "cpu:0,gpu:0"])
def test_arenas_that_there_are_none_of(arena: str) -> None:
    with pytest.raises(StatusError) as caught:
        options(parameter("memory.enable_memory_arena_shrinkage", f"cpu:0;{arena}"))
    assert caught.value.code == Code.INVALID_ARG
    assert caught.value.message == (
        f"model 'm': parameter 'memory.enable_memory_arena_shrinkage' names no arena with '{arena}', it is one of cpu:0, gpu:0, gpu:1, ..."
    )


def test_settings_are_the_default_of_thread_counts() -> None:
    assert options(intra_op_thread_count="5").intra_op_thread_count == 5
    assert options(parameter("intra_op_thread_count", "1"), intra_op_thread_count="5").intra_op_thread_count == 1


def test_the_global_pool_has_the_thread_counts_of_the_settings() -> None:
    made = options(parameter("intra_op_thread_count", "7"), enable__global__threadpool="1", intra_op_thread_count="2")
    assert made.global_thread_pool and made.intra_op_thread_count == 2


def test_default_max_batch_size() -> None:
    assert default_max_batch_size({}) == 4
    assert default_max_batch_size({"default-max-batch-size": "16"}) == 16


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (parameter("intra_op_thread_count", "many"), "failed to convert 'many' to integral number"),
        (parameter("inter_op_thread_count", ""), "failed to convert '' to integral number"),
        (parameter("execution_mode", "99999999999999999999"), "failed to convert '99999999999999999999' to integral number"),
        (
            parameter("execution_mode", "-1"),
            "Invalid configuration value provided. Expected values for  execution_mode are 0 or 1 but got -1 .",
        ),
        (parameter("enable_mem_arena", "yes"), "failed to convert 'yes' to boolean"),
        (parameter("enable_mem_pattern", ""), "failed to convert '' to boolean"),
        (
            parameter("session.optimized_model_external_initializers_file_name", "x"),
            "model 'm': parameter 'session.optimized_model_external_initializers_file_name' names a file, "
            "which a model configuration may not",
        ),
        (
            parameter("session.model_external_initializers_file_folder_path", "/etc"),
            "model 'm': parameter 'session.model_external_initializers_file_folder_path' names a file, which a model configuration may not",
        ),
        (
            "optimization { execution_accelerators { gpu_execution_accelerator { name: 'x' } } }",
            "unknown Execution Accelerator 'x' is requested",
        ),
        (
            "optimization { execution_accelerators { cpu_execution_accelerator { name: 'openvino' } } }",
            "unknown Execution Accelerator 'openvino' is requested",
        ),
    ],
)
def test_bad_values(config: str, message: str) -> None:
    with pytest.raises(StatusError, match=f"^{re.escape(message)}$") as caught:
        options(config)
    assert caught.value.code == Code.INVALID_ARG


def test_accelerators() -> None:
    gpu = "gpu_execution_accelerator { name: 'tensorrt' } gpu_execution_accelerator { name: 'cuda' }"
    config = f"optimization {{ execution_accelerators {{ cpu_execution_accelerator {{ name: 'openvino' }} {gpu} }} }}"
    assert options(config, ("OpenVINOExecutionProvider",)).providers == (("OpenVINOExecutionProvider", {"device_type": "CPU"}),)


@pytest.mark.parametrize(("text", "expected"), [("true", True), ("TRUE", True), ("1", True), ("false", False), ("0", False)])
def test_boolean(text: str, expected: bool) -> None:
    assert boolean(text) is expected


def test_options_reach_the_session(tmp_path: Path) -> None:
    made = source(
        tmp_path,
        add_sub(),
        " ".join(
            [
                parameter("intra_op_thread_count", "2"),
                parameter("execution_mode", "1"),
                parameter("inter_op_thread_count", "2"),
                parameter("enable_mem_arena", "0"),
                parameter("enable_mem_pattern", "0"),
                parameter("memory.enable_memory_arena_shrinkage", "cpu:0"),
                "optimization { graph { level: 2 } }",
            ]
        ),
    )
    chosen = open_session(made, options_of(made)).get_session_options()
    assert (chosen.intra_op_num_threads, chosen.inter_op_num_threads) == (2, 2)
    assert chosen.execution_mode == onnxruntime.ExecutionMode.ORT_PARALLEL
    assert not chosen.enable_cpu_mem_arena and not chosen.enable_mem_pattern
    assert chosen.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    assert chosen.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    backend().complete(made)
    assert backend().load(made).executor(INSTANCE) is not None


def test_one_thread_pool_for_all_models(tmp_path: Path) -> None:
    # In a process of its own: once there is a global pool, every session of the process must use it.
    for name in ("a", "b"):
        source(tmp_path / name, add_sub())
    script = f"""
import os
from tensorfarm.workers.backends.backend import ModelSource
from tensorfarm.workers.backends.onnxruntime import backend
from tensorfarm.workers.contract.configuration import ModelConfig, document
counts = []
for name in ("a", "b"):
    source = ModelSource({str(tmp_path)!r} + f"/{{name}}/m", 1, document(ModelConfig(name="m")), SETTINGS)
    backend().complete(source)
    kept = vars().setdefault("models", [])
    kept.append(backend().load(source))
    counts.append(len(os.listdir("/proc/self/task")))
print(counts[1] - counts[0])
"""
    own = {"intra_op_thread_count": "3"}
    added = []
    for settings in (own, {**own, "enable-global-threadpool": "1"}):
        done = subprocess.run([sys.executable, "-c", f"SETTINGS = {settings!r}\n{script}"], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        added.append(int(done.stdout))
    assert added == [2, 0]
