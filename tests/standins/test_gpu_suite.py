"""The tests that are written for a real GPU, against the stand-in: a process of its own, because ONNX Runtime can be patched only once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path("tests") / "gpu"


def test_what_is_ready_for_a_gpu_fits_the_server() -> None:
    """All of it that needs no more of CUDA than the stand-in has; how many that are, so that they are not skipped one day."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(FOLDER)]
    ran = subprocess.run(command, cwd=ROOT, env={**os.environ, "TENSORFARM_GPU_STANDIN": "1"}, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stdout[-8000:] + ran.stderr[-2000:]
    passed = int(ran.stdout.strip().splitlines()[-1].split(" passed")[0])
    assert passed >= 170, ran.stdout[-2000:]
