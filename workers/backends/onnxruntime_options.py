"""How a model's session is to run, from its configuration and the backend's command line settings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..contract.cores import usable_core_count
from ..contract.status import StatusError, invalid
from .onnxruntime_completion import DEFAULT_MAX_BATCH_SIZE

_GRAPH_LEVELS = {-1: "ORT_ENABLE_BASIC", 1: "ORT_ENABLE_EXTENDED", 2: "ORT_DISABLE_ALL"}
_GPU_ACCELERATORS = ("tensorrt", "cuda")
_CPU_ACCELERATORS = {"openvino": ("OpenVINOExecutionProvider", {"device_type": "CPU"})}
_ENTRY_PREFIXES = ("session.", "optimization.")
_FILE_ENTRY = re.compile("file|folder|path|dir")
_ARENA = re.compile("(?:cpu(?::0)?|gpu(?::([0-9]{1,4}))?)")

ARENA_SHRINKAGE = "memory.enable_memory_arena_shrinkage"
"""The parameter and run entry that names the arenas which give their free memory back after each run: ``cpu:0;gpu:1``."""

_SPINNING = {"session.intra_op.allow_spinning": "0", "session.inter_op.allow_spinning": "0"}
"""Threads that wait for work sleep. Where another process wants the cores, as the server does, spinning
ones lost 15 to 45 % of the throughput of models of 1 to 4 ms (2 cores, 1 to 2 instances) and doubled
the 99th percentile; on an idle machine they win 5 to 60 %. A model's own parameter can allow it."""


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """What a session is made with.

    ``graph_level`` is a ``GraphOptimizationLevel``'s name. A thread count of 0 leaves it to ONNX Runtime.
    ``entries`` and ``run_entries`` are ONNX Runtime's own session and run configuration keys. ``providers``
    are execution providers before the CPU's, with their options. The last two are those of a session on the CPU,
    ``gpu_options`` has a GPU's.
    """

    graph_level: str
    parallel: bool
    intra_op_thread_count: int
    inter_op_thread_count: int
    global_thread_pool: bool
    memory_arena: bool | None
    memory_pattern: bool | None
    entries: dict[str, str]
    run_entries: dict[str, str]
    providers: tuple[tuple[str, dict[str, str]], ...]


def session_options(config: Any, settings: Mapping[str, str], available_providers: list[str]) -> SessionOptions:
    """Read the options of a model.

    ``settings`` give the thread counts of models that do not say any (and of the global pool). Of the
    parameters that start with ``session.`` or ``optimization.``, those that name files are refused: who
    may load a model must not thereby read or write the server's files.
    Raises INVALID_ARG with a text that says which value is wrong.
    """
    parameters = parameters_of(config)
    mode = integer(parameters.get("execution_mode", "0"))
    if mode not in (0, 1):
        raise invalid(f"Invalid configuration value provided. Expected values for  execution_mode are 0 or 1 but got {mode} .")
    global_thread_pool = boolean(settings.get("enable-global-threadpool", "0"))
    scope: Mapping[str, str] = settings if global_thread_pool else {**settings, **parameters}
    entries = {key: value for key, value in parameters.items() if key.startswith(_ENTRY_PREFIXES)}
    for key in entries:
        if _FILE_ENTRY.search(key):
            raise invalid(f"model '{config.name}': parameter '{key}' names a file, which a model configuration may not")
    return SessionOptions(
        graph_level=_GRAPH_LEVELS.get(config.optimization.graph.level, "ORT_ENABLE_ALL"),
        parallel=mode == 1,
        intra_op_thread_count=max(integer(scope.get("intra_op_thread_count", "0")), 0) or usable_core_count(),
        inter_op_thread_count=max(integer(scope.get("inter_op_thread_count", "0")), 0),
        global_thread_pool=global_thread_pool,
        memory_arena=_optional_boolean(parameters.get("enable_mem_arena")),
        memory_pattern=_optional_boolean(parameters.get("enable_mem_pattern")),
        entries={**_SPINNING, **entries},
        run_entries=run_entries(config, {}),
        providers=_providers(config, available_providers),
    )


def default_max_batch_size(settings: Mapping[str, str]) -> int:
    """The ``max_batch_size`` for models that can batch and do not say how far."""
    return integer(settings.get("default-max-batch-size", str(DEFAULT_MAX_BATCH_SIZE)))


def parameters_of(config: Any) -> dict[str, str]:
    """A model's parameters."""
    return {key: parameter.string_value for key, parameter in config.parameters.items()}


def run_entries(config: Any, ordinals: Mapping[int, int]) -> dict[str, str]:
    """ONNX Runtime's configuration entries for each run of a model.

    ``ordinals`` has the GPUs of the session, by the numbers that a model configuration knows them by. Arenas of other GPUs are left
    out: ONNX Runtime fails every run that is to shrink an arena which its session does not have.
    Raises INVALID_ARG for what names no arena.
    """
    arenas = []
    for arena in filter(None, parameters_of(config).get(ARENA_SHRINKAGE, "").split(";")):
        match = _ARENA.fullmatch(arena)
        if match is None:
            raise invalid(
                f"model '{config.name}': parameter '{ARENA_SHRINKAGE}' names no arena with '{arena}', it is one of cpu:0, gpu:0, gpu:1, ..."
            )
        if arena.startswith("cpu"):
            arenas.append("cpu:0")
        elif (ordinal := ordinals.get(int(match[1] or 0))) is not None:
            arenas.append(f"gpu:{ordinal}")
    return {ARENA_SHRINKAGE: ";".join(arenas)} if arenas else {}


def unknown_accelerator(name: str) -> StatusError:
    """What is said of an execution accelerator that there is none of."""
    return invalid(f"unknown Execution Accelerator '{name}' is requested")


def _providers(config: Any, available: list[str]) -> tuple[tuple[str, dict[str, str]], ...]:
    accelerators = config.optimization.execution_accelerators
    providers: list[tuple[str, dict[str, str]]] = []
    for accelerator in accelerators.gpu_execution_accelerator:
        if accelerator.name not in _GPU_ACCELERATORS:
            raise unknown_accelerator(accelerator.name)
    for accelerator in accelerators.cpu_execution_accelerator:
        provider, options = _CPU_ACCELERATORS.get(accelerator.name, ("", {}))
        if provider not in available:
            raise unknown_accelerator(accelerator.name)
        providers.append((provider, options))
    return tuple(providers)


def integer(text: str) -> int:
    """Read a number of up to 9 digits as C's stoi does: leading space, a sign, digits, and whatever follows. Raises INVALID_ARG."""
    match = re.match(r"\s*[+-]?[0-9]{1,9}(?![0-9])", text)
    if match is None:
        raise invalid(f"failed to convert '{text}' to integral number")
    return int(match[0])


def boolean(text: str) -> bool:
    """Read ``true``/``1`` or ``false``/``0``. Raises INVALID_ARG for anything else."""
    match text.lower():
        case "true" | "1":
            return True
        case "false" | "0":
            return False
    raise invalid(f"failed to convert '{text}' to boolean")


def _optional_boolean(text: str | None) -> bool | None:
    return None if text is None else boolean(text)
