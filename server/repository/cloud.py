"""Models in the cloud: at Amazon, Google, Azure, on S3 servers of one's own, and on plain web servers."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from ...workers.contract.status import StatusError, internal
from ..farm.private_directory import PrivateDirectory, sweep
from .cloud_address import parse_address
from .cloud_copy import CloudCopy
from .cloud_http import HttpStore
from .cloud_store import Mark, Store, checked_name
from .source import Stamps

_COPIES_BELOW = {
    "s3": "TRITON_AWS_MOUNT_DIRECTORY",
    "gs": "TRITON_GCS_MOUNT_DIRECTORY",
    "as": "TRITON_AZURE_MOUNT_DIRECTORY",
    "abfs": "TRITON_AZURE_MOUNT_DIRECTORY",
}
"""The variables that say where copies go; else it is the system's folder for temporary files."""

STOP_TIMEOUT_S = 5.0
"""How long ``close`` waits for downloads to end."""


def _say_nothing(text: str) -> None:
    """For who wants no progress."""


class Cloud:
    """A ``Source`` whose copies are downloaded into a private directory. ``close`` removes them all.

    ``progress`` gets lines for the log, from any thread. Raises StatusError INVALID_ARG where the name is no address.
    """

    def __init__(
        self,
        name: str,
        *,
        environment: Mapping[str, str] = os.environ,
        progress: Callable[[str], None] = _say_nothing,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.name = name
        address = parse_address(name)
        self._store = (HttpStore if address.scheme in ("http", "https") else Store)(address, environment, sleep)
        self._base = Path(environment.get(_COPIES_BELOW.get(address.scheme, "")) or tempfile.gettempdir())
        self._progress = progress
        self._lock = threading.Lock()
        self._directory: PrivateDirectory | None = None
        self._copies: dict[str, list[CloudCopy]] = {}
        self._count = 0

    def check(self) -> None:
        """Raises StatusError where the store cannot be listed, or its driver is not installed."""
        self._store.folders()

    def model_names(self) -> list[str]:
        """The visible folders, sorted. Those with names that no folder may have here are told of and left out."""
        names = []
        for name in self._store.folders():
            try:
                visible = not checked_name(name).startswith(".") and "/" not in name
            except StatusError as error:
                self._progress(f"{self.name}: {error.message}")
                continue
            if visible:
                names.append(name)
        return sorted(names)

    def stamps(self, model: str) -> dict[str, Mark | None] | None:
        """The mark of each file. ``model`` may be a client's word: only a visible folder counts."""
        if not _is_model_name(model):
            return None
        return self._store.files(model)

    def copy(self, model: str, stamps: Stamps) -> CloudCopy:
        """The model's files but for those of its versions. Raises StatusError."""
        if not _is_model_name(model):
            raise internal("no such model")
        with self._lock:
            folder = self._private() / str(self._count)
            self._count += 1
        marks = {name: mark if isinstance(mark, Mark) else None for name, mark in stamps.items()}
        copy = CloudCopy(
            self._store,
            model,
            marks,
            folder,
            earlier=lambda: self._others(model, copy),
            progress=self._progress,
            released=lambda: self._forget(model, copy),
        )
        try:
            copy.begin()
        except BaseException:
            copy.release()
            raise
        with self._lock:
            self._copies.setdefault(model, []).append(copy)
        return copy

    def stop(self) -> None:
        """End what is being downloaded and asked, soon. Never waits."""
        self._store.traffic.stop()

    def close(self) -> None:
        """End what is being downloaded, and remove all copies: nobody uses them any more. A second call does nothing."""
        self.stop()
        self._store.traffic.wait(STOP_TIMEOUT_S)
        with self._lock:
            directory, self._directory = self._directory, None
        if directory is not None:
            directory.close()
        self._store.close()

    def _private(self) -> Path:
        if self._store.traffic.stopped:
            raise internal("the model repository is closed")
        if self._directory is None:
            sweep(self._base)
            try:
                self._directory = PrivateDirectory(self._base)
            except OSError as error:
                raise internal(f"failed to make a folder for copies of {self.name}: {error.strerror}") from None
        return self._directory.path

    def _others(self, model: str, copy: CloudCopy) -> list[CloudCopy]:
        """The model's other copies, the newest first."""
        with self._lock:
            return [each for each in reversed(self._copies.get(model, [])) if each is not copy]

    def _forget(self, model: str, copy: CloudCopy) -> None:
        with self._lock:
            copies = self._copies.get(model, [])
            if copy in copies:
                copies.remove(copy)
            if not copies:
                self._copies.pop(model, None)


def _is_model_name(name: str) -> bool:
    try:
        return "/" not in checked_name(name) and not name.startswith(".")
    except StatusError:
        return False
