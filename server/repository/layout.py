"""The directories of a model repository: which models, which versions, which files.

``<repository>/<model>/config.pbtxt``, ``<repository>/<model>/configs/<name>.pbtxt``,
``<repository>/<model>/<version>/<model file>``.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import Any

from ...workers.contract.status import Code, StatusError, internal, invalid

RESERVED = frozenset(("warmup", "initial_state", "configs"))
"""Sub-directories of a model that are no versions."""

MAX_VERSION = 2**63 - 1

MAX_TEXT_BYTE_SIZE = 16 << 20
"""No configuration and no list of labels is longer."""

_INTEGER_PREFIX = re.compile(r"[ \t\n\v\f\r]*\+?([0-9]+)")


def subdirectories(directory: Path) -> list[str]:
    """Names of the directories in a directory, sorted. Raises StatusError INTERNAL where it cannot be read."""
    try:
        with os.scandir(directory) as entries:
            return sorted(entry.name for entry in entries if _is_directory(entry))
    except OSError as error:
        raise internal(f"failed to open directory {directory}: {error.strerror}") from error


def _is_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # a circle of links is no directory, and no reason not to see the others


@dataclass(frozen=True, slots=True)
class Versions:
    """Version numbers, ascending, and what the log should be told about them."""

    numbers: tuple[int, ...]
    notes: tuple[str, ...] = ()


def present_versions(model_directory: Path) -> Versions:
    """The versions that a model has directories for; ``notes`` are warnings about directories that are none.

    A name is read as far as it is a number: ``2-old`` is version 2, whose own directory may not exist.
    Negative numbers are no versions: no client could name one.
    Raises StatusError INTERNAL where the directory cannot be read.
    """
    numbers: set[int] = set()
    notes: list[str] = []
    for name in subdirectories(model_directory):
        if name in RESERVED:
            continue
        if len(name) > 1 and name.startswith("0"):
            notes.append(f"ignore version directory '{name}' which contains leading zeros in its directory name")
            continue
        match = _INTEGER_PREFIX.match(name)
        # Nineteen digits hold every version; a longer name must not make int() work for long.
        number = int(match[1]) if match and len(match[1].lstrip("0")) <= 19 else None
        if number is None or number > MAX_VERSION:
            notes.append(f"ignore version directory '{name}' which fails to convert to integral number")
        else:
            numbers.add(number)
    return Versions(tuple(sorted(numbers)), tuple(notes))


class NoVersion(StatusError):
    """No version of a model is left to load; ``notes`` are errors for the log that say why."""

    def __init__(self, message: str, notes: tuple[str, ...]) -> None:
        super().__init__(Code.INVALID_ARG, message)
        self.notes = notes


def chosen_versions(config: Any, present: Sequence[int]) -> Versions:
    """Those of the present versions that the configuration's version policy asks for; ``notes`` are errors for the log.

    Raises NoVersion where none is left. An empty policy means all of them.
    """
    policy = config.version_policy
    notes: tuple[str, ...] = ()
    if policy.HasField("specific"):
        wanted = set(policy.specific.versions)
        chosen = sorted(wanted.intersection(present))
        notes = tuple(
            f"version {version} is specified for model '{config.name}', but the version directory is not present"
            for version in sorted(wanted.difference(present))
        )
    elif policy.HasField("latest") or not config.HasField("version_policy"):
        count = policy.latest.num_versions if policy.HasField("latest") else 1
        chosen = sorted(present)[max(0, len(present) - count) :]
    else:
        chosen = sorted(present)
    if not chosen:
        raise NoVersion(f"at least one version must be available under the version policy of model '{config.name}'", notes)
    return Versions(tuple(chosen), notes)


def find_config(model_directory: Path, config_name: str) -> Path | None:
    """The configuration file of a model: ``configs/<config_name>.pbtxt`` if there is one, else ``config.pbtxt`` or None."""
    if config_name and stays_inside(config_name) and "/" not in config_name:
        named = model_directory / "configs" / f"{config_name}.pbtxt"
        if named.is_file():
            return named
    plain = model_directory / "config.pbtxt"
    return plain if plain.exists() else None


def stays_inside(path: str) -> bool:
    """Does a path that a configuration names stay below the directory it is relative to, whatever lies there?"""
    pure = PurePosixPath(path)
    return "\0" not in path and not pure.is_absolute() and ".." not in pure.parts


def resolve_inside(model_directory: Path, path: str, what: str) -> Path:
    """The file that a configuration names, symbolic links followed.

    Raises StatusError INVALID_ARG ``<what> '<path>' must stay within the model directory`` where it lies elsewhere.
    """
    if stays_inside(path):
        # Not Path.resolve, which raises RuntimeError for a circle of links.
        root = Path(os.path.realpath(model_directory))
        file = Path(os.path.realpath(root / path))
        if file.is_relative_to(root):
            return file
    raise invalid(f"{what} '{path}' must stay within the model directory")


def open_file(path: Path) -> BufferedReader:
    """A regular file, open for reading. Raises OSError, at once where it is a pipe, whose other end may never come."""
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "not a regular file")
    return file


def read_text_file(path: Path) -> bytes:
    """The content of a configuration or a list of labels. Raises OSError."""
    with open_file(path) as file:
        content = file.read(MAX_TEXT_BYTE_SIZE + 1)
    if len(content) > MAX_TEXT_BYTE_SIZE:
        raise OSError(errno.EFBIG, f"longer than {MAX_TEXT_BYTE_SIZE >> 20} MiB")
    return content
