"""What a configuration leaves out about its backend: told by the platform, the file name or the files.

Source: observed on the real server; of the version directories only the first by name is looked at.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...workers.contract.status import internal, invalid
from .layout import subdirectories


@dataclass(frozen=True, slots=True)
class _Format:
    """A backend's model file: ``directory`` says what kind of entry it is, None where it may be either."""

    backend: str
    filename: str
    platform: str = ""
    directory: bool | None = False


_TENSORFLOW = (
    _Format("tensorflow", "model.savedmodel", "tensorflow_savedmodel", directory=True),
    _Format("tensorflow", "model.graphdef", "tensorflow_graphdef"),
)
_TORCH_AOTI = _Format("pytorch", "model.pt2", "torch_aoti")
_FORMATS = (
    _Format("tensorrt", "model.plan", "tensorrt_plan"),
    _Format("onnxruntime", "model.onnx", "onnxruntime_onnx", directory=None),
    _Format("openvino", "model.xml", directory=None),
    _Format("pytorch", "model.pt", "pytorch_libtorch"),
    _TORCH_AOTI,
    _Format("python", "model.py", directory=None),
)

PLATFORM_BACKENDS = {each.platform: each.backend for each in (*_TENSORFLOW, *_FORMATS) if each.platform}
"""The backend that each known platform belongs to."""


def autofill(config: Any, model_directory: Path, name: str) -> None:
    """Fill in ``name``, ``platform``, ``backend`` and ``default_model_filename`` where they are not set.

    Raises StatusError INVALID_ARG where nothing tells the backend.
    """
    config.name = config.name or name
    if config.platform == "ensemble":
        return
    entries = _first_version(model_directory)
    if _tensorflow(config, entries):
        return
    for each in _FORMATS:
        if not config.backend and _matches(config, each, entries):
            config.backend = each.backend
            if each is _TORCH_AOTI:
                config.platform = each.platform
    if config.backend:
        _complete(config, entries)
    elif not config.platform and not config.default_model_filename:
        # The model's name is the last place to look: `anything.identity` is a model of the backend `identity`.
        _, dot, backend = name.partition(".")
        if not dot:
            raise invalid(
                f"Invalid model name: Could not determine backend for model '{name}' with no backend in model configuration. "
                "Expected model name of the form 'model.<backend_name>'."
            )
        config.backend = backend
        config.default_model_filename = f"model.{backend}"


def _tensorflow(config: Any, entries: dict[str, bool]) -> bool:
    """TensorFlow's two platforms come before any other backend. Is this model one of theirs?"""
    if not config.platform and config.backend in ("", "tensorflow"):
        for each in _TENSORFLOW:
            named = config.default_model_filename
            if named == each.filename or (not named and entries.get(each.filename) is each.directory):
                config.platform = each.platform
    for each in _TENSORFLOW:
        if config.platform == each.platform:
            config.backend = config.backend or each.backend
            config.default_model_filename = config.default_model_filename or each.filename
            return True
    return False


def _matches(config: Any, each: _Format, entries: dict[str, bool]) -> bool:
    if each.platform and config.platform == each.platform:
        return True
    if config.default_model_filename == each.filename:
        return True
    if config.platform or config.default_model_filename or each.filename not in entries:
        return False
    return each.directory is None or entries[each.filename] is each.directory


def _complete(config: Any, entries: dict[str, bool]) -> None:
    """Platform and file name of a known backend."""
    each = next((each for each in _FORMATS if each.backend == config.backend), None)
    if each is None:
        return
    if each.backend == "pytorch" and _matches(config, _TORCH_AOTI, {} if each.filename in entries else entries):
        each = _TORCH_AOTI
    config.platform = config.platform or each.platform
    # A PyTorch model run by a Python runtime has no one model file.
    if config.backend == "pytorch" and config.runtime == "model.py":
        return
    config.default_model_filename = config.default_model_filename or each.filename


def _first_version(model_directory: Path) -> dict[str, bool]:
    """Entries of the first sub-directory by name, each with whether it is a directory."""
    names = subdirectories(model_directory)
    if not names:
        return {}
    first = model_directory / names[0]
    try:
        with os.scandir(first) as entries:
            return {entry.name: entry.is_dir() for entry in entries}
    except OSError as error:
        raise internal(f"failed to open directory {first}: {error.strerror}") from error
