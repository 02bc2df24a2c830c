"""A store of objects behind one address: what lies below it, and its files."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ...workers.contract.status import StatusError, internal, unavailable
from .cloud_address import Address
from .cloud_credentials import Credentials, find_credentials
from .cloud_driver import attempts_at, break_off, download, open_filesystem
from .cloud_failure import failure, is_denied, is_missing, is_transient

MAX_FILES = 100_000
"""A model with more files than this is none."""

PAUSES_S = (0.5, 2.0)
"""Between the attempts at what failed for a moment."""

STEP_S = 0.5
"""Between two looks at whether what was broken off has ended."""

_TAGS = ("ETag", "etag", "generation", "Content-MD5", "Digest")
_TIMES = ("LastModified", "last_modified", "Last-Modified", "updated", "mtime", "created")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Mark:
    """What tells one state of a file from another: its size in bytes where known, and its tag, or the time of its last change."""

    byte_size: int | None
    tag: str


def mark_of(info: Mapping[str, Any]) -> Mark:
    """The mark of a file by what its driver knows of it."""
    size = info.get("size")
    for key in (*_TAGS, *_TIMES):
        if info.get(key):
            return Mark(size, str(info[key]))
    return Mark(size, "")


def checked_name(name: str) -> str:
    """A name that a store has for a file, relative to its model.

    Raises StatusError INTERNAL where it could lead elsewhere, or cannot be a file's.
    """
    if not all(map(_is_name, name.split("/"))):
        raise internal(f"the name {ascii(name[:300])} cannot be given to a file")
    return name


def _is_name(part: str) -> bool:
    try:
        length = len(part.encode())
    except UnicodeEncodeError:
        return False
    return part not in (".", "..") and "\0" not in part and 0 < length <= 255


class BrokenOff(StatusError):
    """Another file failed, or the server ends."""

    def __init__(self) -> None:
        gone = unavailable("the download was broken off")
        super().__init__(gone.code, gone.message)


class Traffic:
    """What is under way with a store, each thread in this as a context, also within itself. After ``stop`` nothing begins."""

    def __init__(self) -> None:
        self.stopped = False
        self._under_way = 0
        self._changed = threading.Condition()

    def __enter__(self) -> None:
        with self._changed:
            self.check()
            self._under_way += 1

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._under_way -= 1
            self._changed.notify_all()

    def check(self) -> None:
        """Raises BrokenOff once it is stopped."""
        if self.stopped:
            raise BrokenOff

    def stop(self) -> None:
        """End what is under way, soon, and without waiting for a store that does not answer."""
        with self._changed:
            self.stopped = True
            under_way = self._under_way
        if under_way:
            break_off()

    def wait(self, timeout_s: float) -> None:
        """Wait until nothing is under way, for no longer than this."""
        for _ in range(round(timeout_s / STEP_S)):
            with self._changed:
                if self._changed.wait_for(lambda: not self._under_way, STEP_S):
                    return
            break_off()  # what began just when it was stopped


class Store:
    """Object stores, and every other file system of fsspec. Methods block, may be called by several threads, and raise StatusError.

    Credentials are looked up when it is first used, and again once they have been refused.
    """

    def __init__(self, address: Address, environment: Mapping[str, str], sleep: Callable[[float], None] = time.sleep) -> None:
        self.address = address
        self._environment = environment
        self._sleep = sleep
        self._lock = threading.Lock()
        self._opened: tuple[Any, Credentials] | None = None
        self.traffic = Traffic()

    def folders(self) -> list[str]:
        """The names of the folders at the address, in no order."""

        def listed(filesystem: Any) -> list[str]:
            prefix = self._prefix(filesystem)
            found = set()
            for entry in filesystem.ls(prefix.rstrip("/"), detail=True):
                name = entry["name"].removeprefix(prefix).rstrip("/")
                # A key with two slashes in a row is listed as the folder itself.
                if entry["type"] == "directory" and name and "/" not in name:
                    found.add(name)
            return list(found)

        return self.attempt(f"list {self.address.name}", listed)

    def files(self, folder: str) -> dict[str, Mark | None] | None:
        """The marks of all files below a folder, by their names relative to it. None: no such folder.

        Folders are there too: they end with a slash and have None.
        """
        return self.attempt(f"list {self.address.name} for '{folder}'", lambda filesystem: self._files(filesystem, folder))

    def marks(self, folder: str, names: list[str]) -> dict[str, Mark | None]:
        """The marks that these files have now; those that are gone are left out."""
        found = self.files(folder) or {}
        return {name: found[name] for name in names if name in found}

    def download(self, folder: str, name: str, to: Path, received: Callable[[int], None]) -> None:
        """Copy a file. ``received`` is told how many bytes there are so far, which may fall when it is tried again."""
        self.attempt(
            f"download '{folder}/{name}' of {self.address.name}",
            lambda filesystem: download(filesystem, self._location(filesystem, folder, name), str(to), received),
        )

    def close(self) -> None:
        """Let go of the connections. The next use would open new ones."""
        with self._lock:
            self._opened = None

    def attempt(self, what: str, work: Callable[[Any], T]) -> T:
        """What ``work`` makes of the file system, tried again where it fails for a moment."""
        with self.traffic:
            return self._attempt(what, work)

    def _attempt(self, what: str, work: Callable[[Any], T]) -> T:
        secrets: tuple[str, ...] = ()
        for pause_s in (*PAUSES_S[: attempts_at(self.address.scheme) - 1], None):
            try:
                self.traffic.check()
                filesystem, credentials = self._open()
                secrets = credentials.secrets
                result = work(filesystem)
                # What is broken off ends as if it had succeeded.
                self.traffic.check()
                return result
            except StatusError:
                raise
            except Exception as error:  # noqa: BLE001
                # Drivers bring dozens of packages, and let through whatever those raise.
                self.traffic.check()
                if is_denied(error):
                    self.close()
                if pause_s is None or not is_transient(error):
                    raise failure(what, error, secrets) from None
            self._sleep(pause_s)
        raise AssertionError("the last attempt returns or raises")

    def _open(self) -> tuple[Any, Credentials]:
        with self._lock:
            if self._opened is None:
                credentials = find_credentials(self.address, self._environment)
                self._opened = open_filesystem(self.address, credentials), credentials
            return self._opened

    def _prefix(self, filesystem: Any) -> str:
        """What the names in listings begin with."""
        return f"{filesystem._strip_protocol(self.address.root)}/"

    def _location(self, filesystem: Any, folder: str, name: str) -> str:
        return f"{self._prefix(filesystem)}{folder}/{name}"

    def _files(self, filesystem: Any, folder: str) -> dict[str, Mark | None] | None:
        prefix = f"{self._prefix(filesystem)}{folder}/"
        try:
            found = filesystem.find(prefix.rstrip("/"), withdirs=True, detail=True)
        except FileNotFoundError as error:
            if is_missing(error) and error.__cause__ is None:
                return None
            raise
        if not any(name.startswith(prefix) for name in found):
            return None
        return merged(_below(prefix, found.values()))


def _below(prefix: str, entries: Any) -> Iterator[tuple[str, Mark | None]]:
    # Files first: a refused name is then told in full, not by a folder that it would lie in.
    for entry in sorted(entries, key=lambda entry: bool(entry["type"] == "directory")):
        name = entry["name"].removeprefix(prefix)
        if name == entry["name"]:
            continue  # the folder itself, or one above it
        if entry["type"] == "directory":
            if not name.strip("/"):
                continue  # the driver's reading of a key with two slashes in a row, which comes too
            yield f"{name.rstrip('/')}/", None
        else:
            yield name, mark_of(entry)


def merged(entries: Any) -> dict[str, Mark | None]:
    """Entries as a tree that a disk can hold. Raises StatusError INTERNAL where there is none.

    A name with a slash at its end is a folder's. So is that of an empty object that others lie below, or that a version's
    folder would have: consoles make all three.
    """
    files: dict[str, Mark] = {}
    folders: set[str] = set()
    for name, mark in entries:
        if not name:
            continue  # the mark of the model's own folder
        parts = checked_name(name.removesuffix("/")).split("/")
        folders.update("/".join(parts[:end]) for end in range(1, len(parts)))
        if name.endswith("/"):
            folders.add(name[:-1])
        elif mark.byte_size == 0 and name.isdecimal():
            folders.add(name)
        else:
            files[name] = mark
        if len(files) + len(folders) > MAX_FILES:
            raise internal(f"more than {MAX_FILES} files")
    for name in folders & files.keys():
        if files.pop(name).byte_size != 0:
            raise internal(f"{ascii(name)} is both a file and a folder")
    return {**files, **{f"{name}/": None for name in folders}}
