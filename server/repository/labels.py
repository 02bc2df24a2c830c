"""Label files: the names of the classes of an output, one a line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...workers.contract.status import internal
from .layout import read_text_file, resolve_inside


def read_labels(model_directory: Path, config: Any) -> dict[str, list[str]]:
    """The labels of every output that names a label file: output name to one label per class index.

    Raises StatusError: INVALID_ARG where a file lies outside the model directory, INTERNAL where it
    cannot be read.
    """
    return {output.name: _read(model_directory, output.label_filename) for output in config.output if output.label_filename}


def _read(model_directory: Path, name: str) -> list[str]:
    file = resolve_inside(model_directory, name, "label file")
    try:
        text = read_text_file(file).decode(errors="surrogateescape")
    except OSError as error:
        # The model and the name in its configuration tell where, without showing the server's directories.
        shown = f"{model_directory.name}/{name}"
        raise internal(f"failed to open text file for read {shown}: {error.strerror}") from error
    lines = text.replace("\r\n", "\n").split("\n")
    return lines[:-1] if lines[-1] == "" else lines
