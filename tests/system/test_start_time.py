"""How long a start takes, beside what it cannot do without: a Python that imports ONNX Runtime and opens the same model.

``scripts/bench start`` measures the same and shows the figure that is aimed at, 2; here it is only kept from coming undone.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ..model_repository import PLAIN, Flavour, write_repository
from ..servers import start_tensorfarm, wait_until

PAIRS = 5
MOST = 3.0
BARE = "import sys, onnxruntime; onnxruntime.InferenceSession(sys.argv[1])"


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One small model; bytecode is kept from one start to the next, as where the package is installed."""
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    return write_repository(tmp_path / "models", (PLAIN,), Flavour.ONNX)


def _bare_secs(model: Path) -> float:
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", BARE, str(model)], check=True, stdin=subprocess.DEVNULL)
    return time.monotonic() - began


def _start_secs(repository: Path, folder: Path) -> float:
    began = time.monotonic()
    server = start_tensorfarm(repository, folder=folder, wait=False)
    try:
        wait_until(lambda: server.process.poll() is not None or server.ready(), "readiness", interval_s=0.002)
        taken = time.monotonic() - began
        assert server.ready(), server.log
        server.terminate()
    finally:
        if not server.stopped:
            server.kill()
    return taken


def test_a_start_takes_little_longer_than_its_imports(repository: Path, tmp_path: Path) -> None:
    (model,) = repository.glob("*/*/model.onnx")
    bare, ours = [], []
    for number in range(PAIRS + 1):
        bare.append(_bare_secs(model))
        ours.append(_start_secs(repository, tmp_path / f"run{number}"))
    # The first of each reads files that no cache has yet.
    ratio = statistics.median(ours[1:]) / statistics.median(bare[1:])
    assert ratio <= MOST, f"{ratio:.2f} times: {ours} beside {bare}"
