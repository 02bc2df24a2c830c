"""A tensorfarm with all kinds of models, which the tests of this folder share where they do not break it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ..model_repository import (
    BATCHED,
    BATCHED_BYTES,
    CLASSES,
    FIXED,
    IDENTITIES,
    PLAIN,
    SIMPLE,
    SPIN,
    VERSIONS_ALL,
    Flavour,
    write_repository,
)
from ..servers import Server, tensorfarm
from .spinning import steps_per_second

MODELS = (SIMPLE, PLAIN, *IDENTITIES, BATCHED, BATCHED_BYTES, FIXED, CLASSES, VERSIONS_ALL, SPIN)


@pytest.fixture(scope="package")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository of ``MODELS``."""
    return write_repository(tmp_path_factory.mktemp("system") / "models", MODELS, Flavour.ONNX)


@pytest.fixture(scope="package")
def spin_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the slow model and a quick one, for tests that break what they start."""
    return write_repository(tmp_path_factory.mktemp("spin") / "models", (SPIN, PLAIN), Flavour.ONNX)


@pytest.fixture(scope="package")
def farm(models: Path) -> Iterator[Server]:
    """A running server that no test may break."""
    with tensorfarm(models, folder=models.parent / "farm") as server:
        assert server.ready(), server.log
        yield server


@pytest.fixture(scope="package")
def steps(farm: Server) -> int:
    """Steps of the slow model per second."""
    return steps_per_second(farm)
