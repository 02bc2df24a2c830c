"""The leak check itself: each kind of thing left behind is found and named, and nothing else is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from ..leaks import no_leaks
from ..servers import SHM


def test_nothing_left() -> None:
    with no_leaks(0.2), open(os.devnull) as handle:
        assert handle.read() == ""
        subprocess.run([sys.executable, "-c", ""], check=True)


def test_process() -> None:
    with pytest.raises(AssertionError, match="process [0-9]+: .*sleeping"):
        with no_leaks(0.2):
            left = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()", "sleeping"])
    left.kill()
    left.wait()


def test_descriptor() -> None:
    with pytest.raises(AssertionError, match="1 open descriptors of /dev/null"):
        with no_leaks(0.2):
            left = os.open(os.devnull, os.O_RDONLY)
    os.close(left)


def test_shared_memory_object() -> None:
    path = SHM / f"tensorfarm-leak-{os.getpid()}"
    with pytest.raises(AssertionError, match=f"shared-memory object {path.name}"):
        with no_leaks(0.2):
            path.write_bytes(b"left")
    path.unlink()


def test_runtime_folder() -> None:
    with pytest.raises(AssertionError, match="temporary .*tensorfarm-"):
        with no_leaks(0.2):
            left = Path(tempfile.mkdtemp(prefix="tensorfarm-"))
            (left / "lock").touch()
    shutil.rmtree(left)
