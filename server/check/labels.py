"""Label files: is each there, and does it have a label for each class?"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ...workers.contract.status import StatusError
from ..repository.labels import read_labels
from ..repository.layout import resolve_inside
from .config_file import START, ConfigFile, report_error
from .config_lines import Position
from .files import complaint
from .findings import Findings


def check_labels(directory: Path, config: Any, file: ConfigFile, findings: Findings) -> None:
    """Check the label file of every output of a final configuration: is it there, and has each class a label?"""
    for number, output in enumerate(config.output):
        if not output.label_filename:
            continue
        alone = type(config)()
        alone.output.append(output)
        place = file.lines.find(f"output[{number}].label_filename") or START
        path = _inside(directory, output.label_filename, "label file", config, file, findings, place)
        if path is None:
            continue
        wrong = complaint(path)
        if wrong:
            findings.error(file.path or directory, f"label file '{output.label_filename}' {wrong}", place)
            continue
        try:
            labels = read_labels(directory, alone)[output.name]
        except StatusError as error:
            report_error(error, config, file, findings, directory)
            continue
        classes = math.prod(output.dims)
        if output.dims and min(output.dims) > 0 and len(labels) != classes:
            text = f"label file '{output.label_filename}' has {len(labels)} lines, output '{output.name}' has {classes} classes"
            findings.warning(file.path or directory, text, place, "a class is an element of the output, the batch dimension left out")


def _inside(directory: Path, name: str, what: str, config: Any, file: ConfigFile, findings: Findings, place: Position) -> Path | None:
    """The file that a configuration names, None and a finding where it lies elsewhere."""
    try:
        return resolve_inside(directory, name, what)
    except StatusError as error:
        findings.error(file.path or directory, error.message, place)
    except (OSError, RuntimeError, ValueError):
        findings.error(file.path or directory, f"{what} '{name}' cannot be followed to its end", place)
    return None
