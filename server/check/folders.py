"""The folders of a repository: what is there and is not read, though it looks as if it should be."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ...workers.contract.status import StatusError
from ..repository.folder import CACHES
from ..repository.layout import MAX_VERSION, RESERVED, Versions, present_versions
from .files import is_file, present, reason
from .findings import Findings, Severity

MODEL_FILES = ("model.onnx", "model.py", "model.plan", "model.pt", "model.graphdef", "model.savedmodel", "model.xml")
"""What model files are called where a configuration does not say."""

_VERSION_LIKE = re.compile(r"(?:v|ver|version|release)?[._ -]*0*(\d{1,19})(?:[.][0-9.]*)?", re.IGNORECASE)
_NOTE = re.compile(r"^ignore version directory '(.*)' which (.*)$", re.DOTALL)
_CONFIG_LIKE = re.compile(r"(?:model_?)?config(?:\.\w+)*\.?(?:pbtxt|pbtext|prototxt|textproto|txt|json|ya?ml)", re.IGNORECASE)


def check_repository(root: Path, findings: Findings) -> list[str]:
    """The names of the models in a repository; notes what is no model and looks like one."""
    try:
        with os.scandir(root) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except (OSError, ValueError) as error:
        findings.error(root, f"cannot be read as a model repository: {reason(error)}")
        return []
    if is_file(root / "config.pbtxt"):
        hint = f"check {root.resolve().parent}" if root.resolve().parent != root.resolve() else ""
        findings.warning(root, "has a config.pbtxt itself: a repository is the folder that the models' folders are in", hint=hint)
    names = []
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if _is_directory(entry):
            names.append(entry.name)
        elif entry.is_symlink() and not os.path.exists(entry.path):
            findings.warning(entry.path, "is a symbolic link that leads nowhere: no model")
        elif entry.name in MODEL_FILES:
            findings.warning(entry.path, "is not read: a model file lies in <model>/<version>/")
    if not names:
        findings.warning(root, "has no models", hint="each model is a folder, with a folder for each of its versions")
    return names


def _is_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def check_model_folder(directory: Path, model_file: str, findings: Findings) -> Versions:
    """The versions in a model's folder; notes what is ignored there. ``model_file`` is what its configuration calls the model file."""
    try:
        versions = present_versions(directory)
    except StatusError as error:
        findings.error(directory, error.message)
        return Versions(())
    has_config = present(directory / "config.pbtxt")
    for note in versions.notes:
        _ignored_folder(directory, note, versions.numbers, findings)
    for entry in _entries(directory, findings):
        if entry.is_symlink() and not os.path.exists(entry.path):
            findings.warning(entry.path, "is a symbolic link that leads nowhere")
        elif _is_directory(entry):
            _check_number(entry, findings)
        elif entry.name in (model_file, *MODEL_FILES):
            hint = f"move it to {directory / str(max(versions.numbers, default=1)) / entry.name}"
            findings.warning(entry.path, "is not read: a model file lies in the folder of a version", hint=hint)
        elif not has_config and _CONFIG_LIKE.fullmatch(entry.name):
            findings.warning(entry.path, "is not read: a configuration is called config.pbtxt", hint="rename it to config.pbtxt")
    return versions


def _entries(directory: Path, findings: Findings) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        findings.error(directory, f"cannot be read: {reason(error)}")
        return []


def _ignored_folder(directory: Path, note: str, versions: tuple[int, ...], findings: Findings) -> None:
    match = _NOTE.match(note)
    name = match[1] if match else ""
    if name in CACHES or name.startswith("."):
        return
    folder = directory / name
    like = _VERSION_LIKE.fullmatch(name)
    number = int(like[1]) if like else None
    suspect = number is not None or _holds_model(folder)
    hint = ""
    if number is not None and number <= MAX_VERSION and number not in versions:
        hint = f"if it is a version, rename it to {number}"
    elif suspect:
        hint = "versions are called 1, 2, 3 …"
    why = match[2] if match else ""
    text = f"is ignored: its name {'has leading zeros' if 'leading zeros' in why else 'is no version number'}"
    findings.add(Severity.WARNING if suspect else Severity.NOTE, folder, text, hint=hint)


def _holds_model(folder: Path) -> bool:
    return any(os.path.exists(folder / name) for name in MODEL_FILES)


def _check_number(entry: os.DirEntry[str], findings: Findings) -> None:
    """A name that only begins with a number is read as that number."""
    match = re.match(r"\s*\+?(\d+)", entry.name, re.ASCII)
    if match and match[1] != entry.name and entry.name not in RESERVED and not entry.name.startswith("0"):
        number = match[1].lstrip("0") or "0"
        hint = f"rename it to {number}, or so that it does not begin with a number"
        findings.warning(entry.path, f"is read as version {number}, whose files are looked for in '{number}'", hint=hint)
