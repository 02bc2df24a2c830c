"""The names of the backends that both sides know."""

from __future__ import annotations

ONNXRUNTIME = "onnxruntime"
NATIVE = (ONNXRUNTIME,)
"""Backends whose instances share a worker process."""

PYTHON = "python"
"""The backend of models that are Python files, and of backends that are: each instance has a process of its own."""

CPU_ONLY = "FORCE_CPU_ONLY_INPUT_TENSORS"
"""The parameter of Python models that says whether their inputs are to lie in ordinary memory; ``no`` leaves them where they are."""


def keeps_to_cpu(value: str | None) -> bool:
    """What this value of ``CPU_ONLY`` says, or its absence. Source: the Python backend's README, "Input Tensor Device Placement"."""
    return value != "no"
