"""Is there a GPU for the tests of this folder? Needs nothing but Python, so that it can be asked before anything is installed.

    python tests/gpu/presence.py

Exit status 0: there is a GPU and its driver; 1, with a line that says why: there is none.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import sys
from pathlib import Path

REQUIRED = "TENSORFARM_GPU_REQUIRED"
"""Environment variable: set where the tests are not to be skipped but to fail where there is no GPU."""

STANDIN = "TENSORFARM_GPU_STANDIN"
"""Environment variable: how many GPUs ``standin`` is to make of ordinary memory, for the tests to run against as far as that goes."""

_PACKAGES = {
    "cupy": "cupy-cuda13x",
    "cuda.bindings.runtime": "cuda-bindings",
    "pynvml": "nvidia-ml-py",
    "onnxruntime": "onnxruntime-gpu",
    "tritonclient": "tritonclient[http,grpc]",
}
"""What the tests and the server import, and the distribution that brings it."""


def on_standin() -> bool:
    """Do the tests run against the stand-in?"""
    return bool(os.environ.get(STANDIN))


def no_gpu() -> str:
    """Why there is no GPU here; empty where there is one. Makes no CUDA context."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return "there is no NVIDIA driver here (libnvidia-ml.so.1 is not found)"
    status = nvml.nvmlInit_v2()
    if status:
        return f"the NVIDIA driver cannot be asked (nvmlInit_v2 gives {status})"
    try:
        count = ctypes.c_uint(0)
        status = nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
        if status or not count.value:
            return "the NVIDIA driver has no GPU"
    finally:
        nvml.nvmlShutdown()
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "the NVIDIA driver has no CUDA (libcuda.so.1 is not found)"
    return ""


@functools.cache
def missing() -> str:
    """Why the tests cannot run here; empty where they can. Imports none of the packages."""
    if on_standin():
        return ""
    reason = no_gpu()
    if reason:
        return reason
    absent = [distribution for module, distribution in _PACKAGES.items() if not _there(module)]
    if absent:
        return f"not installed: {', '.join(absent)}"
    if not _onnxruntime_has_cuda():
        return "the onnxruntime that is installed has no CUDA: onnxruntime-gpu is needed, and onnxruntime must not be beside it"
    return ""


def _there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _onnxruntime_has_cuda() -> bool:
    spec = importlib.util.find_spec("onnxruntime")
    places = () if spec is None else spec.submodule_search_locations or ()
    return any((Path(place) / "capi" / "libonnxruntime_providers_cuda.so").exists() for place in places)


def main() -> int:
    """The command."""
    reason = no_gpu()
    if reason:
        print(f"no tests on a GPU: {reason}", file=sys.stderr)
    return 1 if reason else 0


if __name__ == "__main__":
    raise SystemExit(main())
