"""What machine this is, and which versions take part."""

from __future__ import annotations

import os
import platform
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .frameworks import FRAMEWORKS, TENSORFARM, TRITONSERVER
from .installing import installed, version_of
from .results import Facts

_TRITONSERVER = "24.10, from nvidia-pytriton 0.7.0"


def gather() -> Facts:
    """Look at this machine and at what is installed."""
    versions = {TENSORFARM: f"{_version('tensorfarm')}, ONNX Runtime {_version('onnxruntime')}", TRITONSERVER: _TRITONSERVER}
    for framework in FRAMEWORKS:
        if installed(framework):
            versions[framework.label] = f"{version_of(framework)}, ONNX Runtime {version_of(framework, 'onnxruntime')}"
    return Facts(
        date=datetime.now(UTC).strftime("%Y-%m-%d"),
        cpu=_cpu(),
        cores=len(os.sched_getaffinity(0)),
        memory_byte_size=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        kernel=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        busy_share=busy_share(),
        versions=versions,
    )


def busy_share(seconds: float = 1.0) -> float:
    """How much of all cores is in use while this process sleeps for ``seconds``."""
    busy, total = _cpu_ticks()
    time.sleep(seconds)
    busy_then, total_then = _cpu_ticks()
    return (busy_then - busy) / max(1, total_then - total)


def _cpu_ticks() -> tuple[int, int]:
    ticks = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    idle = ticks[3] + ticks[4]
    return sum(ticks) - idle, sum(ticks)


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "?"


def _cpu() -> str:
    """The model's name as the kernel has it; ARM's kernels do not tell one."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return " ".join(value.split())
    return platform.machine()
