"""Python models that load and that do not: reasons in the index, auto-complete, backends that are written in Python."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from .. import oracle as real
from ..broken_python import AUTO_COMPLETE, SOURCES, write_broken, write_model
from ..servers import SHM, Server, start_tensorfarm, stopping, wait_until
from .case import Case, check, infer, stream, tensor
from .model_copies import copy_model

BACKENDS = Path(__file__).resolve().parent.parent / "python_backends"
"""Backends that are written in Python, one folder each."""

COMPLETED = ("completed", "completed_streams", "weighted_configured", "weighted_bare")
"""Models that only load with auto-complete and those backends."""

SHOWN = "completed_shown"
"""A model whose reason for not loading is what its auto_complete_config() has seen."""


PREFIX = f"tensorfarm-parity-{os.getpid()}-"
PREFIXES = [f"--backend-config={backend},shm-region-prefix-name={PREFIX}" for backend in ("python", "weighted")]
"""How the real server names its shared-memory objects: it leaves those of models that failed, or that it was killed with."""


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[tuple[Server, Server]]]:
    """Two pairs of servers, each pair with one and the same models: the broken ones, and those for auto-complete."""
    real.require()
    root = tmp_path_factory.mktemp("load")
    write_broken(root / "broken")
    for name, source in AUTO_COMPLETE.items():
        write_model(root / "completed", name, source)
    for name in (*COMPLETED, SHOWN):
        copy_model(name, root / "completed" / name)
    shutil.copytree(BACKENDS, root / "backends", ignore=shutil.ignore_patterns("__pycache__"))
    (root / "backends" / "no_model").mkdir()
    write_model(root / "completed", "backend_without_model", "")
    config = root / "completed" / "backend_without_model" / "config.pbtxt"
    config.write_text(config.read_text().replace('"python"', '"no_model"'))
    with contextlib.ExitStack() as stack:
        stack.callback(_remove_objects)
        first, without = "--exit-on-error=false", "--disable-auto-complete-config"
        pair = [
            real.start(root / "broken", first, without, *PREFIXES, folder=root / "broken-oracle"),
            start_tensorfarm(root / "broken", first, without, folder=root / "broken-farm", wait=False),
        ]
        _link_own_backends(pair[0], root / "backends")
        backends = f"--backend-directory={root / 'backends'}"
        more = [
            real.start(root / "completed", first, backends, *PREFIXES, folder=root / "completed-oracle"),
            start_tensorfarm(root / "completed", first, backends, folder=root / "completed-farm", wait=False),
        ]
        theirs, ours, their_second, our_second = stack.enter_context(stopping(*pair, *more))
        yield [(theirs, ours), (their_second, our_second)]


def _remove_objects() -> None:
    for path in SHM.glob(f"{PREFIX}*"):
        path.unlink()


def _link_own_backends(server: Server, folder: Path) -> None:
    """The real server finds its Python backend in the same folder as the backends that are written in Python."""

    def own() -> list[Path]:
        arguments = Path(f"/proc/{server.pid}/cmdline").read_bytes().decode().split("\0")
        return [Path(argument.partition("=")[2]) for argument in arguments if argument.startswith("--backend-directory=")]

    # The script that starts it becomes the server in a moment.
    wait_until(own, "the real server to begin")
    (folder / "python").symlink_to(own()[0] / "python")


def _index(server: Server) -> dict[str, tuple[str, str]]:
    """State and reason of every model, without the frames of Python's import, which differ from one Python to the next, and of pb_utils."""
    entries = server.ask("POST", "/v2/repository/index").json
    reasons = {entry["name"]: (entry["state"], entry.get("reason", "")) for entry in entries}
    frames = r"  (<frozen importlib\S*>|\S*/triton_python_backend_utils\.py)\(\d+\): \w+\n"
    return {name: (state, re.sub(frames, "", reason)) for name, (state, reason) in reasons.items()}


@pytest.mark.parametrize("name", SOURCES)
def test_reason(name: str, pairs: list[tuple[Server, Server]]) -> None:
    theirs, ours = map(_index, pairs[0])
    assert ours[name] == theirs[name]


@pytest.mark.parametrize("name", [*AUTO_COMPLETE, *COMPLETED, SHOWN, "backend_without_model"])
def test_reason_with_auto_complete(name: str, pairs: list[tuple[Server, Server]]) -> None:
    theirs, ours = map(_index, pairs[1])
    assert ours[name] == theirs[name]


X = {"inputs": [tensor("X", "INT32", [1, 3], [1, 2, 3])]}
FLAT = {"inputs": [tensor("X", "INT32", [3], [1, 2, 3])]}

LOADED = [
    *(Case(f"{what} of {name}", "GET", f"/v2/models/{name}{what}") for name in COMPLETED for what in ("", "/config", "/ready")),
    infer("completed", "completed", X),
    infer("completed, batch too big", "completed", {"inputs": [tensor("X", "INT32", [5, 1], [1, 2, 3, 4, 5])]}),
    stream("completed_streams", "one response"),
    infer("completed_streams by infer", "completed_streams", {"inputs": [tensor("VERB", "BYTES", [1], ["x"])]}),
    infer("weighted_configured", "weighted_configured", FLAT),
    infer("weighted_bare", "weighted_bare", FLAT),
]


@pytest.mark.parametrize("case", LOADED, ids=lambda case: case.id)
def test_loaded(case: Case, pairs: list[tuple[Server, Server]]) -> None:
    theirs, ours = pairs[1]
    check(case, theirs.http_port, ours.http_port, {})
