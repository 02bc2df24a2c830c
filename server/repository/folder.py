"""Models in a folder of this machine."""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path

from ...workers.contract.status import internal, invalid
from .change import files_changed
from .layout import subdirectories
from .source import Stamps

CACHES = frozenset(("__pycache__", ".ipynb_checkpoints", ".tensorrt"))
"""Folders that are made by using a model, not by changing it."""

MAX_DEPTH = 32
"""Folders nested deeper than this are not looked into."""

MAX_FILES = 100_000
"""What a model has beyond these files is not looked at: a link may lead to all of a disk."""


class Folder:
    """A ``Source`` whose copies are the files themselves."""

    def __init__(self, path: str) -> None:
        self.name = path
        self._root = Path(path)

    def check(self) -> None:
        """Raises StatusError where there is no such directory."""
        try:
            directory = stat.S_ISDIR(os.stat(self.name).st_mode)
        except (OSError, ValueError):
            raise internal(f"failed to stat file {self.name}") from None
        if not directory:
            raise invalid("repository path is not a valid directory")

    def model_names(self) -> list[str]:
        """The visible sub-directories, sorted. Raises StatusError INTERNAL where the folder cannot be read."""
        return [name for name in subdirectories(self._root) if not name.startswith(".")]

    def stamps(self, model: str) -> Stamps | None:
        """Size, inode and last change of each file. ``model`` may be a client's word: only a visible sub-directory counts."""
        if not model or model.startswith(".") or "/" in model or "\0" in model:
            return None
        try:
            status = os.stat(self._root / model)
        except (OSError, ValueError):
            return None  # it is not there, or no file can have this name
        if not stat.S_ISDIR(status.st_mode):
            return None
        return dict(itertools.islice(_walk(str(self._root / model), "", {_identity(status)}), MAX_FILES))

    def copy(self, model: str, stamps: Stamps) -> FolderCopy:
        """The model's own folder."""
        return FolderCopy(self, model, self._root / model, stamps)

    def stop(self) -> None:
        """Nothing takes long."""

    def close(self) -> None:
        """There is nothing to remove."""


class FolderCopy:
    """A ``Copy`` that is none, and so may change."""

    def __init__(self, folder: Folder, model: str, directory: Path, stamps: Stamps) -> None:
        self.directory = directory
        self._folder = folder
        self._model = model
        self._stamps = stamps

    def fill(self, versions: Sequence[int]) -> None:
        """They are complete."""

    def changed(self, version: int) -> bool:
        """Are the files of a version others than they were?"""
        stamps = self._folder.stamps(self._model)
        return stamps is None or files_changed(self._stamps, stamps, version)

    def release(self) -> None:
        """There is nothing to give back."""


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _walk(directory: str, prefix: str, above: set[tuple[int, int]]) -> Iterator[tuple[str, Hashable]]:
    """Everything below a folder; ``above`` are the folders on the way to it, into which a link may lead back."""
    try:
        entries = list(os.scandir(directory))
    except OSError as error:
        # It may be on its way out, or not be for us: either way it is another state than a readable one.
        yield f"{prefix}", f"unreadable: {error.errno}"
        return
    for entry in entries:
        try:
            status = entry.stat()
        except OSError as error:
            yield prefix + entry.name, f"unreadable: {error.errno}"
            continue
        if not stat.S_ISDIR(status.st_mode):
            yield prefix + entry.name, (status.st_size, status.st_mtime_ns, status.st_ino)
        elif entry.name not in CACHES and len(above) <= MAX_DEPTH and _identity(status) not in above:
            yield f"{prefix}{entry.name}/", None
            yield from _walk(entry.path, f"{prefix}{entry.name}/", above | {_identity(status)})
