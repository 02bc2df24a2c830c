"""What a load request brings with it: a configuration, and files that take the place of the repository's."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ...workers.contract.status import internal, invalid, unavailable
from ..farm.private_directory import PrivateDirectory, sweep
from .layout import stays_inside
from .source import Stamps

_CONFIG = "config"
_FILE = "file:"


class OverrideFiles:
    """The private directory that the files of load requests are written to, made with the first of them."""

    def __init__(self) -> None:
        self._directory: PrivateDirectory | None = None
        self._lock = threading.Lock()

    def folder(self) -> Path:
        """A new empty folder. Raises StatusError UNAVAILABLE where there is no room."""
        try:
            with self._lock:
                if self._directory is None:
                    sweep(Path(tempfile.gettempdir()))
                    self._directory = PrivateDirectory(Path(tempfile.gettempdir()))
            return Path(tempfile.mkdtemp(dir=self._directory.path))
        except OSError as error:
            raise unavailable(f"the files of a load request could not be kept: {os.strerror(error.errno or 0)}") from error

    def close(self) -> None:
        """Remove everything."""
        if self._directory is not None:
            self._directory.close()


@dataclass(frozen=True, slots=True)
class Override:
    """A configuration as JSON text, and files by their path in the model's folder."""

    config: str
    files: Mapping[str, bytes] = field(default_factory=dict)
    place: OverrideFiles | None = None

    def stamps(self) -> Stamps:
        """The files as they are known to others: by what is in them."""
        stamps: dict[str, str | None] = {}
        for path, content in self.files.items():
            for parent in list(PurePosixPath(path).parents)[-2::-1]:
                stamps[f"{parent}/"] = None
            stamps[path] = hashlib.sha256(content).hexdigest()
        return stamps

    def copy(self, name: str) -> OverrideCopy:
        """The files in a folder of their own, which has the model's name. Raises StatusError."""
        assert self.place is not None
        root = self.place.folder()
        copy = OverrideCopy(root, root / "model")
        try:
            copy.directory.mkdir()
            for path, content in self.files.items():
                file = copy.directory / path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
        except OSError as error:
            copy.release()
            raise internal(f"the files of a load request could not be written: {os.strerror(error.errno or 0)}") from error
        return copy


class OverrideCopy:
    """A ``Copy`` of what a load request brought."""

    def __init__(self, root: Path, directory: Path) -> None:
        self._root = root
        self.directory = directory

    def fill(self, versions: Sequence[int]) -> None:
        """They are complete."""

    def changed(self, version: int) -> bool:
        """Nobody else writes here."""
        return False

    def release(self) -> None:
        """Remove the files."""
        shutil.rmtree(self._root, ignore_errors=True)


def override_of(parameters: Mapping[str, object], place: OverrideFiles) -> Override | None:
    """What the parameters of a load request ask for; None where there are none. Raises StatusError INVALID_ARG."""
    if not parameters:
        return None
    config = parameters.get(_CONFIG)
    files: dict[str, bytes] = {}
    for name, value in parameters.items():
        if name == _CONFIG:
            continue
        if not name.startswith(_FILE) or not isinstance(value, bytes):
            raise invalid(f"Unrecognized load parameter '{name}'")
        path = PurePosixPath(os.path.normpath(name.removeprefix(_FILE) or "."))
        if not path.parts or not stays_inside(str(path)):
            raise invalid(f"Invalid file parameter '{name}' with normalized path '{path}' must stay within model directory.")
        files[str(path)] = value
    if not isinstance(config, str):
        raise invalid("Load parameter 'config' must be specified for model file override")
    return Override(config, files, place)
