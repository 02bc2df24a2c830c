"""Copies of the Python models in tests/python_models, for servers of their own."""

from __future__ import annotations

import shutil
from pathlib import Path

PYTHON_MODELS = Path(__file__).resolve().parents[1] / "python_models"


def copy_model(source: str, folder: Path) -> None:
    """Copy a Python model's folder to ``folder``, whose name it gets."""
    shutil.copytree(PYTHON_MODELS / source, folder, ignore=shutil.ignore_patterns("__pycache__"))
    config = folder / "config.pbtxt"
    config.write_text(config.read_text().replace(f'name: "{source}"', f'name: "{folder.name}"'))
