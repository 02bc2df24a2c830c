"""The servers that the parity tests compare: a pair for the models of both kinds, a pair for Python models alone."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .. import oracle as real
from ..model_repository import PARITY_MODELS, Flavour, write_repository
from ..servers import SHM, Server, start_tensorfarm, stopping
from .control_script import Outcomes, Pair
from .grpc_case import Pair as Ends
from .grpc_servers import LOADED, Started, connected, grpc_pair, prepare_models
from .model_copies import copy_model


@pytest.fixture(scope="package")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Server]]:
    """The real server and tensorfarm, started at the same time, with the same models."""
    real.require()
    root = tmp_path_factory.mktemp("parity")
    for flavour in Flavour:
        write_repository(root / flavour.value, PARITY_MODELS, flavour)
    started = [
        real.start(root / Flavour.PYTHON.value, "--disable-auto-complete-config", folder=root / "oracle"),
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


SERVED = (
    *("adder", "answers", "asked", "asynchronous", "asynchronous_streams", "batched_adder", "batches", "calls", "dies", "faults", "kept"),
    *("generate_batched", "generate_names", "generate_parameters", "generate_script", "generate_seen", "generate_unary"),
    *("logs", "measured", "no_execute", "repeater", "senders", "streams", "surroundings", "typed"),
)
"""Those that the pair for Python models serves."""

COUNTED = ("answers", "batches", "faults", "senders", "streams")
"""Those that it serves a second time as ``counted_…``: for tests that count, nobody else asks them."""


@pytest.fixture(scope="package")
def python_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Server]]:
    """The real server and tensorfarm, started at the same time, both with one and the same folder of Python models.

    Without auto-complete, which costs the real server a second for each model.
    """
    real.require()
    root = tmp_path_factory.mktemp("python")
    for name in SERVED:
        copy_model(name, root / "models" / name)
    for name in COUNTED:
        copy_model(name, root / "models" / f"counted_{name}")
    flag = "--disable-auto-complete-config"
    started = [
        real.start(root / "models", flag, folder=root / "oracle"),
        start_tensorfarm(root / "models", flag, folder=root / "farm", wait=False),
    ]
    with stopping(*started) as (theirs, ours):
        yield theirs, ours


@pytest.fixture(scope="package")
def python_oracle(python_servers: tuple[Server, Server]) -> int:
    """The HTTP port of the real server with Python models."""
    return python_servers[0].http_port


@pytest.fixture(scope="package")
def python_farm(python_servers: tuple[Server, Server]) -> int:
    """The HTTP port of tensorfarm with Python models."""
    return python_servers[1].http_port


THREADS = "--http-thread-count=64"
"""A load holds one of the real server's, and whatever comes to that one meanwhile."""


@contextlib.contextmanager
def controlled(root: Path, *flags: str, prepare: Callable[[Path], None] = Path.mkdir) -> Iterator[Pair]:
    """Both servers with a repository each, which ``prepare`` makes, for scripts of model control."""
    real.require()
    homes = [root / "theirs", root / "ours"]
    for home in homes:
        home.mkdir(parents=True)
        prepare(home / "models")
    flags = ("--disable-auto-complete-config", "--exit-on-error=false", THREADS, *flags)
    own = f"tensorfarm-control-{os.getpid()}-{root.name}-"
    try:
        started = [
            real.start(homes[0] / "models", *flags, f"--backend-config=python,shm-region-prefix-name={own}", folder=homes[0] / "run"),
            start_tensorfarm(homes[1] / "models", *flags, folder=homes[1] / "run", wait=False),
        ]
        with stopping(*started) as (theirs, ours):
            yield Pair(theirs, ours, homes[0] / "models", homes[1] / "models")
    finally:
        for path in SHM.glob(f"{own}*"):
            path.unlink()


@pytest.fixture(scope="package")
def explicit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Both servers in explicit mode, with nothing loaded."""
    with controlled(tmp_path_factory.mktemp("explicit"), "--model-control-mode=explicit") as pair:
        yield pair


@pytest.fixture(scope="module")
def outcomes(explicit: Pair, request: pytest.FixtureRequest) -> Outcomes:
    """What came of all the SCRIPTS of a module, which are run at the same time."""
    return explicit.play_all(request.module.SCRIPTS)


@pytest.fixture(scope="package")
def grpc_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    """The two servers of the gRPC parity tests."""
    flags = ("--model-control-mode=explicit", *(f"--load-model={name}" for name in LOADED))
    with grpc_pair(tmp_path_factory.mktemp("grpc"), *flags, prepare=prepare_models) as started:
        yield started


@pytest.fixture(scope="module")
def grpc_ends(grpc_servers: Started) -> Iterator[Ends]:
    """The same, with channels of this module's own."""
    with connected(grpc_servers) as both:
        yield both
