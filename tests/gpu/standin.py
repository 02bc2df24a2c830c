"""The same tests against CUDA that is made of ordinary memory: whether they and the server fit together, without a GPU."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from ..standins.gpu.environment import PACKAGES, environment
from .presence import STANDIN

_folders: list[tempfile.TemporaryDirectory[str]] = []


def enter() -> None:
    """Have this process find the stand-in's packages, and every process that it starts from now on."""
    folder = tempfile.TemporaryDirectory(prefix="gpu-standin-")
    _folders.append(folder)
    os.environ.update(environment(Path(folder.name), gpus=int(os.environ[STANDIN])))
    sys.path.insert(0, str(PACKAGES))
