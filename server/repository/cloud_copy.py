"""A copy of a model that lies in the cloud: complete but for its versions, which are filled when they are asked for."""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path

from ...workers.contract.status import StatusError, internal, unavailable
from .cloud_progress import Progress
from .cloud_store import BrokenOff, Mark, Store, checked_name

MAX_UNTOLD_BYTE_SIZE = 1 << 30
"""Of a file whose size a web server does not tell: it may never end."""

CONNECTIONS = 8
"""Files that are downloaded at the same time."""

_VERSION = re.compile(r"(?:0|[1-9][0-9]{0,18})")


def version_of(name: str) -> int | None:
    """The version that a file or folder of a model belongs to, None where to none. Only plain numbers name version folders."""
    top, slash, _ = name.partition("/")
    return int(top) if slash and _VERSION.fullmatch(top) else None


class CloudCopy:
    """A ``Copy`` in a folder of its own, ``<folder>/<model>``. Making it downloads nothing; ``begin`` does.

    ``earlier`` tells the model's other copies, the newest first: what has not changed since is linked from them.
    ``released`` is called once the files are gone.
    """

    def __init__(
        self,
        store: Store,
        model: str,
        marks: Mapping[str, Mark | None],
        folder: Path,
        *,
        earlier: Callable[[], Sequence[CloudCopy]],
        progress: Callable[[str], None],
        released: Callable[[], None],
    ) -> None:
        self.directory = folder / model
        self._store = store
        self._model = model
        self._marks = {checked_name(name.removesuffix("/")) + "/" * name.endswith("/"): mark for name, mark in marks.items()}
        self._folder = folder
        self._earlier = earlier
        self._progress = progress
        self._released = released
        self._lock = threading.Lock()
        self._filling = threading.Lock()
        # What each complete file's inode was when it was downloaded: a model could write to its files.
        self._complete: dict[str, tuple[int, int, int]] = {}

    def begin(self) -> None:
        """Make the folders, download what belongs to no version, and put empty files where versions have theirs. Raises StatusError."""
        with self._store.traffic:
            self._begin()

    def fill(self, versions: Sequence[int]) -> None:
        """Download these versions and remove the folders of the others. Raises StatusError."""
        # Whoever comes second finds all of it here.
        with self._store.traffic, self._filling:
            self._fill(set(versions))

    def changed(self, version: int) -> bool:
        """Nobody else writes here."""
        return False

    def release(self) -> None:
        """Remove the files. A second call does nothing."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._released()

    def complete_file(self, name: str, mark: Mark) -> Path | None:
        """The file of that name, if it is here, in that state, and has not been written to since."""
        inode = self._complete.get(name)
        if inode is None or self._marks.get(name) != mark or not mark.tag:
            return None
        path = self.directory / name
        try:
            return path if _inode(path) == inode else None
        except OSError:
            return None

    @property
    def _parts(self) -> Path:
        return self._folder / ".parts"

    def _files(self) -> Iterable[str]:
        return [name for name, mark in self._marks.items() if mark is not None]

    def _begin(self) -> None:
        try:
            self._folder.mkdir(0o700)
            self._parts.mkdir(0o700)
            self.directory.mkdir(0o700)
            for name in sorted(name for name, mark in self._marks.items() if mark is None):
                (self.directory / name).mkdir(0o700)
            for name in self._files():
                if version_of(name) is not None:
                    (self.directory / name).touch(0o600)
        except OSError as error:
            raise self._disk(error) from None
        self._fetch([name for name in self._files() if version_of(name) is None])

    def _fill(self, wanted: set[int]) -> None:
        folders = sorted(name for name, mark in self._marks.items() if mark is None and version_of(name) is not None)
        try:
            for name in folders:
                if version_of(name) in wanted:
                    (self.directory / name).mkdir(0o700, exist_ok=True)
                elif name.count("/") == 1 and (self.directory / name).exists():
                    self._complete = {file: inode for file, inode in self._complete.items() if not file.startswith(name)}
                    shutil.rmtree(self.directory / name)
        except OSError as error:
            raise self._disk(error) from None
        self._fetch([name for name in self._files() if version_of(name) in wanted and name not in self._complete])

    def _fetch(self, names: Sequence[str]) -> None:
        """Have these files complete: linked, or downloaded at the same time. The first failure ends it."""
        missing = [name for name in names if not self._link(name)]
        if not missing:
            return
        self._check_room(missing)
        progress = Progress(f"model '{self._model}'", len(missing), self._byte_size(missing), self._progress)
        broken_off = threading.Event()
        with ThreadPoolExecutor(CONNECTIONS, "cloud") as threads:
            downloads = [threads.submit(self._download, number, name, progress, broken_off) for number, name in enumerate(missing)]
            done, waiting = wait(downloads, return_when=FIRST_EXCEPTION)
            if waiting or any(each.exception() for each in done):
                broken_off.set()
                threads.shutdown(cancel_futures=True)
        failed = [error for each in downloads if not each.cancelled() and (error := each.exception()) is not None]
        if failed:
            raise next((error for error in failed if not isinstance(error, BrokenOff)), failed[0])
        now = self._store.marks(self._model, missing)
        for name in missing:
            if now.get(name) != self._marks[name]:
                raise unavailable(f"'{self._model}/{name}' of {self._store.address.name} changed while it was downloaded")
        with self._lock:
            for name in missing:
                self._complete[name] = _inode(self.directory / name)

    def _link(self, name: str) -> bool:
        """Take a file from an earlier copy."""
        mark = self._marks[name]
        assert mark is not None
        for copy in self._earlier():
            source = copy.complete_file(name, mark)
            if source is None:
                continue
            part = self._parts / "link"
            try:
                os.link(source, part)
                os.replace(part, self.directory / name)
                with self._lock:
                    self._complete[name] = _inode(self.directory / name)
            except OSError:
                part.unlink(missing_ok=True)
                continue  # it is being released, or this disk knows no links
            return True
        return False

    def _download(self, number: int, name: str, progress: Progress, broken_off: threading.Event) -> None:
        mark = self._marks[name]
        assert mark is not None
        part = self._parts / str(number)

        def received(byte_size: int) -> None:
            if self._store.traffic.stopped or broken_off.is_set():
                raise BrokenOff
            if byte_size > (MAX_UNTOLD_BYTE_SIZE if mark.byte_size is None else mark.byte_size):
                raise self._other_size(name) if mark.byte_size is not None else self._endless(name)
            progress.received(number, byte_size)

        received(0)
        self._store.download(self._model, name, part, received)
        try:
            byte_size = part.stat().st_size
            if mark.byte_size not in (None, byte_size):
                raise self._other_size(name)
            # For reading only: links of it may serve other generations.
            part.chmod(0o400)
            os.replace(part, self.directory / name)
        except OSError as error:
            raise self._disk(error) from None
        progress.finished(number, byte_size)

    def _check_room(self, names: Sequence[str]) -> None:
        try:
            free = shutil.disk_usage(self._folder).free
        except OSError as error:
            raise self._disk(error) from None
        needed = self._byte_size(names)
        if needed > free:
            raise internal(f"no room for a copy of model '{self._model}': {needed} bytes are needed, {free} are free")

    def _byte_size(self, names: Sequence[str]) -> int:
        marks = (self._marks[name] for name in names)
        return sum(mark.byte_size or 0 for mark in marks if mark is not None)

    def _other_size(self, name: str) -> StatusError:
        return unavailable(f"'{self._model}/{name}' of {self._store.address.name} has another size than its listing says")

    def _endless(self, name: str) -> StatusError:
        return internal(
            f"'{self._model}/{name}' of {self._store.address.name} is longer than {MAX_UNTOLD_BYTE_SIZE >> 20} MiB, "
            "and the server does not say how long"
        )

    def _disk(self, error: OSError) -> StatusError:
        return internal(f"failed to write a copy of model '{self._model}': {error.strerror}")


def _inode(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns
