"""What the files of a model version come to: the same on every machine that has the same files, and on no other."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import Any

from ...workers.contract.configuration import copied, document
from .folder import CACHES, MAX_DEPTH

CONFIGURATIONS = frozenset(("config.pbtxt", "configs"))
"""What the final configuration already says."""


def fingerprint(directory: Path, version: int, config: Any, backend_file: str = "") -> bytes:
    """A digest of a final configuration and of every file that a version may be made of.

    ``backend_file`` is that of a backend which is itself written in Python, and so as much of the model as the rest.
    Neither the other versions count, nor where instances run. Raises OSError where a file cannot be read. Blocks: it reads all of it.
    """
    placed = copied(config)
    placed.ClearField("instance_group")
    placed.ClearField("version_policy")
    made = hashlib.sha256(document(placed), usedforsecurity=False)
    paths: list[str] = []
    for name in sorted(os.listdir(directory)):
        other = name.isascii() and name.isdigit() and int(name) != version
        if name not in CONFIGURATIONS and not other:
            _collect(str(directory), name, paths, frozenset())
    for path in sorted(paths):
        # The digest of a path has a fixed length, so nothing runs into what follows.
        made.update(hashlib.sha256(os.fsencode(path), usedforsecurity=False).digest() + _digest(directory / path))
    if backend_file:
        made.update(_digest(Path(backend_file)))
    return made.digest()


def _digest(path: Path) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _collect(root: str, path: str, paths: list[str], above: frozenset[tuple[int, int]]) -> None:
    """The files at and below a path; ``above`` are the folders on the way to it, into which a link may lead back."""
    try:
        status = os.stat(os.path.join(root, path))
    except FileNotFoundError:
        return  # a link that leads nowhere
    if stat.S_ISREG(status.st_mode):
        paths.append(path)
    identity = (status.st_dev, status.st_ino)
    if stat.S_ISDIR(status.st_mode) and identity not in above and len(above) < MAX_DEPTH and os.path.basename(path) not in CACHES:
        for name in os.listdir(os.path.join(root, path)):
            _collect(root, os.path.join(path, name), paths, above | {identity})
