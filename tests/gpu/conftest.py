"""Tests that need a GPU: skipped with one line where there is none, and a server on it that they share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..servers import Server, tensorfarm
from .presence import REQUIRED, missing, on_standin

if on_standin():
    from .standin import enter

    enter()


def pytest_collection_finish(session: pytest.Session) -> None:
    """CUDA keeps files open for as long as a process lives: they are there before the leak check first counts."""
    if session.config.option.collectonly or not any(map(_needs_gpu, session.items)):
        return
    reason = missing()
    if reason and os.environ.get(REQUIRED):
        pytest.exit(f"no tests on a GPU: {reason}", returncode=1)
    if not reason:
        from . import nvml
        from .regions import CudaRegion

        nvml.handles()
        with CudaRegion("warm", 1 << 20) as region:
            region.write(b"\0")
            _ = region.raw_handle


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what cannot run, before any fixture is made; the reason is the same for all, and told once."""
    if _needs_gpu(item):
        reason = missing()
        if reason:
            pytest.skip(reason)


def _needs_gpu(item: pytest.Item) -> bool:
    return item.get_closest_marker("gpu") is not None


@pytest.fixture(scope="session")
def real_gpu() -> None:
    """It is no stand-in."""
    if on_standin():
        pytest.skip("needs more of CUDA than the stand-in has")


@pytest.fixture(scope="package")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository of what ``farm`` serves."""
    from .models import write_gpu_repository

    return write_gpu_repository(tmp_path_factory.mktemp("gpu") / "models")


@pytest.fixture(scope="package")
def farm(models: Path) -> Iterator[Server]:
    """A running server with models on the GPU and their twins on the CPU, which no test may break."""
    with tensorfarm(models, folder=models.parent / "farm", grpc=True) as server:
        assert server.ready(), server.log
        yield server


@pytest.fixture(params=["http", "grpc"])
def door(request: pytest.FixtureRequest, farm: Server) -> Iterator[object]:
    """The stock client of either protocol, connected to ``farm``."""
    from .doors import open_door

    with open_door(request.param, farm) as opened:
        yield opened
