"""What the metrics page says of a real GPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from ..model_repository import SIMPLE, Flavour, write_repository
from ..servers import metric, tensorfarm, wait_until
from ..wire import exchange
from . import nvml
from .models import on_gpu

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("real_gpu")]


def test_gpu_families(tmp_path: Path) -> None:
    """Each GPU by its UUID, with values that can be true."""
    import pynvml

    repository = write_repository(tmp_path / "models", (on_gpu(SIMPLE),), Flavour.ONNX)
    with tensorfarm(repository, "--metrics-interval-ms=100", folder=tmp_path / "run") as server:

        def value(name: str) -> float | None:
            return metric(exchange(server.metrics_port, "GET", "/metrics").body.decode(), name, gpu_uuid=uuid)

        for handle in nvml.handles():
            found = pynvml.nvmlDeviceGetUUID(handle)
            uuid = found.decode() if isinstance(found, bytes) else found
            wait_until(lambda: value("nv_gpu_memory_used_bytes"), "the GPU to be asked")
            total, used = value("nv_gpu_memory_total_bytes"), value("nv_gpu_memory_used_bytes")
            assert total is not None and used is not None and 0 < used < total
            assert total == pynvml.nvmlDeviceGetMemoryInfo(handle).total
            utilization = value("nv_gpu_utilization")
            assert utilization is not None and 0 <= utilization <= 1
            power, limit = value("nv_gpu_power_usage"), value("nv_gpu_power_limit")
            assert power is None or 1 < power < 2000
            assert limit is None or 10 < limit < 2000
            energy = value("nv_energy_consumption")
            if energy is not None:
                wait_until(partial(_more, value, energy), "the GPU to use energy")


def _more(value: Callable[[str], float | None], energy: float) -> bool:
    now = value("nv_energy_consumption")
    return now is not None and now > energy
