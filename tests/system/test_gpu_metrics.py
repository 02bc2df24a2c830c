"""A server on a machine whose NVML is a few lines of Python."""

from __future__ import annotations

from pathlib import Path

from ..servers import Server, metric, tensorfarm, wait_until
from ..wire import exchange

NVML = """
from types import SimpleNamespace

class NVMLError(Exception):
    pass

asked = 0

def nvmlInit():
    pass

def nvmlShutdown():
    print("let go of", flush=True)

def nvmlDeviceGetCount():
    return 1

def nvmlDeviceGetHandleByIndex(index):
    return index

def nvmlDeviceGetUUID(handle):
    return "GPU-of-a-test"

def nvmlDeviceGetUtilizationRates(handle):
    global asked
    asked += 1
    print("asked how busy it is", flush=True)
    return SimpleNamespace(gpu=asked)

def nvmlDeviceGetMemoryInfo(handle):
    return SimpleNamespace(total=80 << 30, used=1 << 30)

def nvmlDeviceGetPowerUsage(handle):
    raise NVMLError("Not Supported")

nvmlDeviceGetPowerManagementLimit = nvmlDeviceGetTotalEnergyConsumption = nvmlDeviceGetPowerUsage
"""


def _page(server: Server) -> str:
    return exchange(server.metrics_port, "GET", "/metrics").body.decode()


def test_metrics_of_gpus(tmp_path: Path) -> None:
    """They are asked again and again, and the library is let go of at the end; with the flag, nobody asks."""
    library = tmp_path / "library"
    library.mkdir()
    (library / "pynvml.py").write_text(NVML)
    repository = tmp_path / "models"
    repository.mkdir()
    environment = {"PYTHONPATH": str(library)}
    gpu = {"gpu_uuid": "GPU-of-a-test"}
    with tensorfarm(repository, "--metrics-interval-ms=100", folder=tmp_path / "run", environment=environment) as server:
        wait_until(lambda: (metric(_page(server), "nv_gpu_utilization", **gpu) or 0.0) > 0.02, "the GPU to be asked again")
        page = _page(server)
        assert metric(page, "nv_gpu_memory_used_bytes", **gpu) == 1 << 30 and "nv_gpu_power" not in page
    assert "let go of" in server.stdout and "asked how busy it is" in server.stdout
    with tensorfarm(repository, "--allow-gpu-metrics=false", folder=tmp_path / "without", environment=environment) as server:
        assert "nv_gpu" not in _page(server)
    assert "asked how busy it is" not in server.stdout
