"""The two servers that the parity tests compare: one of each for all of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .. import oracle as real
from ..model_repository import PARITY_MODELS, Flavour, write_repository
from ..servers import Server, start_tensorfarm, stopping


@pytest.fixture(scope="package")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Server]]:
    """The real server and tensorfarm, started at the same time, with the same models."""
    real.require()
    root = tmp_path_factory.mktemp("parity")
    for flavour in Flavour:
        write_repository(root / flavour.value, PARITY_MODELS, flavour)
    started = [
        real.start(root / Flavour.PYTHON.value, folder=root / "oracle"),
        start_tensorfarm(root / Flavour.ONNX.value, folder=root / "farm", wait=False),
    ]
    with stopping(*started) as (theirs, ours):
        yield theirs, ours


@pytest.fixture(scope="package")
def oracle(servers: tuple[Server, Server]) -> int:
    """The HTTP port of the real server."""
    return servers[0].http_port


@pytest.fixture(scope="package")
def farm(servers: tuple[Server, Server]) -> int:
    """The HTTP port of tensorfarm."""
    return servers[1].http_port
