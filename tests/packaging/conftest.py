"""The example models, for the tests that need them."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from .tree import COULD_NOT_DOWNLOAD, ROOT, Import


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Import:
    """Imports modules of scripts/."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository made by the command; the downloads come from the user's cache where they are there already."""
    folder = tmp_path_factory.mktemp("examples") / "models"
    command = [sys.executable, str(ROOT / "scripts" / "fetch_models.py"), "--into", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL, cwd=folder.parent)
    if done.returncode == COULD_NOT_DOWNLOAD:
        pytest.skip(f"the example models could not be downloaded: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def pictures(repository: Path, load: Import) -> Path:
    """The folder of the pictures that come with the models."""
    folder: Path = load("models.cache").cache_folder() / "pictures"
    return folder
