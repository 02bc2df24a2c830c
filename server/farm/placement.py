"""Which worker process holds which model instance."""

from __future__ import annotations

from typing import Any

from ...workers.contract.backends import PYTHON


def device_worker(device: int) -> str:
    """The name of the worker of a GPU: it holds native instances and opens clients' CUDA regions."""
    return f"gpu{device}"


def worker_name(config: Any, backend: str, version: int, kind: str, device: int, index: int, generation: int = 1) -> str:
    """The name of the worker process for an instance: data about the farm, decided here and nowhere else.

    All native instances of a device share that device's worker. A model with the parameter
    ``isolate`` set to ``true`` has a worker of its own per device, so that its crash is nobody
    else's and its unload is a process exit. Of a Python model each instance has one; ``index`` counts them.
    ``generation`` tells the workers of a load from those of an earlier one that is still there.
    """
    name = f"{config.name}:{version}" if generation == 1 else f"{config.name}:{version}.{generation}"
    if backend == PYTHON:
        return f"{name}#{index}"
    device_name = device_worker(device) if kind == "KIND_GPU" else "cpu"
    if "isolate" in config.parameters and config.parameters["isolate"].string_value.lower() in ("true", "1", "on"):
        return f"{name}@{device_name}"
    return device_name
