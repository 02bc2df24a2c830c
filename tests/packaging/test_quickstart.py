"""The quickstart as a newcomer runs it, less the making of the environment: that is this one."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from .tree import ROOT

COULD_NOT_DOWNLOAD = 75


def quickstart(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "quickstart.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL, cwd=folder)
    if done.returncode == COULD_NOT_DOWNLOAD:
        pytest.skip(f"the example models could not be downloaded: {done.stderr.strip()}")
    return done


def test_once_answers_rightly_and_stops(tmp_path: Path) -> None:
    shm = sorted(path.name for path in Path("/dev/shm").glob("tensorfarm_quickstart*"))
    done = quickstart("--once", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    for said in ("tiger cat", "95.1%  espresso", "synthetic speech", "All answers equal those of ONNX Runtime"):
        assert said in done.stdout
    assert sorted(path.name for path in Path("/dev/shm").glob("tensorfarm_quickstart*")) == shm


def test_a_taken_port_is_a_plain_error(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = quickstart("--once", "--http-port", str(taken.getsockname()[1]), folder=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: port ")
    assert done.stderr.endswith("cannot be had: Address already in use\n")


def test_a_server_that_does_not_start_is_a_plain_error(tmp_path: Path) -> None:
    done = quickstart("--once", "--no-such-flag", folder=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: the server ended at start with exit status 1\n")
    assert "no-such-flag" in done.stderr
    assert "Traceback" not in done.stderr
