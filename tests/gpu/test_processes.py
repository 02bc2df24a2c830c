"""Which processes have a CUDA context: the workers of GPUs, and nobody else."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from ..model_repository import SIMPLE, Flavour, write_repository
from ..servers import descendants, tensorfarm
from . import nvml
from .doors import Given, open_door
from .models import on_cpu, on_gpu
from .processes import with_gpus
from .regions import CudaRegion, Part

pytestmark = pytest.mark.gpu

PAIR = {name: np.arange(32, dtype=np.int32).reshape(2, 16) for name in ("INPUT0", "INPUT1")}


def test_only_the_gpu_s_worker_has_a_context(tmp_path: Path) -> None:
    """Neither the server nor the CPU's worker, after requests of all kinds: by the driver's list and by the files they have open."""
    before = nvml.compute_pids()
    repository = write_repository(tmp_path / "models", (on_gpu(SIMPLE), on_cpu(SIMPLE)), Flavour.ONNX)
    with tensorfarm(repository, folder=tmp_path / "run", grpc=True) as server:
        with open_door("http", server) as door, CudaRegion("r", 8192) as region, door.registered(region):
            for model in ("simple", "simple_cpu"):
                given = {name: Given(array, Part(region, at * 1024)) for at, (name, array) in enumerate(PAIR.items())}
                door.ask(model, given, {"OUTPUT0": Part(region, 4096, 128)})
                door.ask(model, PAIR)
            all_of_them = {server.pid, *descendants(server.pid)}
            allowed = set(with_gpus(server))
            assert len(allowed) == len(nvml.handles()) < len(all_of_them) - 1
            assert {pid for pid in all_of_them if nvml.has_context(pid)} <= allowed
            now = nvml.compute_pids()
            if os.getpid() not in now:
                pytest.skip("the driver counts processes in another namespace; nobody else had CUDA's files open")
            started = now - before - {os.getpid()}
            assert started and started <= allowed


def test_no_context_without_gpu_models_and_regions(tmp_path: Path) -> None:
    """A server with models on the CPU takes nothing of any GPU, though it reads its metrics."""
    used = nvml.used_bytes()
    repository = write_repository(tmp_path / "models", (on_cpu(SIMPLE),), Flavour.ONNX)
    with tensorfarm(repository, folder=tmp_path / "run") as server, open_door("http", server) as door:
        door.ask("simple_cpu", PAIR)
        ours = {server.pid, *descendants(server.pid)}
        assert not any(map(nvml.has_context, ours)) and not ours & nvml.compute_pids()
        assert nvml.used_bytes() - used < 64 * nvml.MIB
