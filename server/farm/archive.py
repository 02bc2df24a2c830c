"""Unpacking tar archives that models bring: nothing is written outside the folder, and no more than is sensible.

The rules are those of tarfile's filter "data", and some more: no member lies behind a link, so that what a path means
never changes; no name comes twice; sizes are counted before anything is written.
"""

from __future__ import annotations

import gzip
import os
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO

MAX_BYTE_SIZE = 32 << 30
"""Of the unpacked files together, and of the archive's content without compression."""

MAX_MEMBERS = 1_000_000
MAX_NAME_BYTE_SIZE = 1024

MAX_HEADER_BYTE_SIZE = 4 << 20
"""Of all that describes one member, and that is kept in memory: its size is the archive's own word."""

_MAX_SHARED_SIZE = 64 << 10
"""Of the texts that describe all members together."""

_READ_BYTE_SIZE = 1 << 20

_MAX_MTIME = 1 << 33


class ArchiveError(Exception):
    """An archive that is damaged or refused; the text says why, and is a sentence's end."""


def unpack(archive: Path, folder: Path, stopped: Callable[[], bool]) -> None:
    """Unpack a tar archive, compressed with gzip or not, into an existing empty folder.

    Owners, groups and special modes are not taken over. ``stopped`` is asked between pieces whether to give up.
    Raises ArchiveError, or OSError where the archive cannot be read or the folder not be written to.
    """
    try:
        with open(archive, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            with gzip.GzipFile(fileobj=file) if packed else file as content:
                _Unpacking(folder, stopped).unpack(content)
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, ValueError, ArithmeticError, LookupError, RecursionError) as error:
        # The last four are what tarfile makes of numbers, texts and chains of headers that nobody writes.
        raise ArchiveError(f"it is damaged, or no tar archive ({type(error).__name__})") from error


class _Bounded:
    """A file to read from, up to the limits. ``left_byte_size`` may still be read before it is set anew."""

    def __init__(self, file: IO[bytes] | gzip.GzipFile) -> None:
        self.left_byte_size = 0
        self._file = file

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= self.left_byte_size:
            raise ArchiveError(f"it has a header of more than {MAX_HEADER_BYTE_SIZE} bytes")
        self.left_byte_size -= size
        self._check(self._file.tell() + size)
        return self._file.read(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._check(offset)
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def _check(self, end: int) -> None:
        if end > MAX_BYTE_SIZE:
            raise ArchiveError(f"it holds more than {MAX_BYTE_SIZE} bytes")


class _Unpacking:
    """One archive on its way into a folder."""

    def __init__(self, folder: Path, stopped: Callable[[], bool]) -> None:
        self._folder = os.path.realpath(folder)
        self._stopped = stopped
        self._folders = {""}
        self._links: set[str] = set()
        self._byte_size = 0

    def unpack(self, content: IO[bytes] | gzip.GzipFile) -> None:
        count = 0
        bounded = _Bounded(content)
        bounded.left_byte_size = MAX_HEADER_BYTE_SIZE
        with tarfile.TarFile(fileobj=bounded, mode="r") as tar:  # type: ignore[arg-type]
            while (member := tar.next()) is not None:
                # tarfile remembers them all.
                tar.members.clear()  # type: ignore[attr-defined]
                count += 1
                if count > MAX_MEMBERS:
                    raise ArchiveError(f"it has more than {MAX_MEMBERS} members")
                if sum([len(name) + len(text) for name, text in tar.pax_headers.items()]) > _MAX_SHARED_SIZE:
                    raise ArchiveError("it has too long a text about all of its members")
                self._check_stopped()
                bounded.left_byte_size = MAX_BYTE_SIZE
                self._take(tar, member)
                bounded.left_byte_size = MAX_HEADER_BYTE_SIZE
        self._check_links()

    def _take(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        name = _normal(member.name)
        if not name:
            if not member.isdir():
                raise ArchiveError("it has a member without a name")
            return
        path = f"{self._folder}/{name}"
        try:
            self._make_folder(name.rpartition("/")[0])
            if member.isdir():
                self._make_folder(name)
            elif member.isreg():
                self._write(tar, member, path)
            elif member.issym():
                if member.linkname.startswith("/") or len(os.fsencode(member.linkname)) > MAX_NAME_BYTE_SIZE:
                    raise ArchiveError(f"the link '{name}' leads outside")
                os.symlink(member.linkname, path)
                self._links.add(name)
            elif member.islnk():
                self._link(_normal(member.linkname), path, name)
            else:
                raise ArchiveError(f"'{name}' is neither a file nor a folder nor a link")
        except FileExistsError:
            raise ArchiveError(f"it has '{name}' twice") from None

    def _make_folder(self, name: str) -> None:
        """A real folder of this name, and of those above it."""
        if name in self._folders:
            return
        self._make_folder(name.rpartition("/")[0])
        if name in self._links:
            raise ArchiveError(f"'{name}' is a link and a folder")
        os.mkdir(f"{self._folder}/{name}", 0o755)
        self._folders.add(name)

    def _write(self, tar: tarfile.TarFile, member: tarfile.TarInfo, path: str) -> None:
        self._byte_size += member.size
        if self._byte_size > MAX_BYTE_SIZE:
            raise ArchiveError(f"it holds more than {MAX_BYTE_SIZE} bytes")
        content = tar.extractfile(member)
        assert content is not None
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o755 if member.mode & 0o100 else 0o644)
        with content, open(fd, "wb") as file:
            while piece := content.read(_READ_BYTE_SIZE):
                file.write(piece)
                self._check_stopped()
            file.flush()
            # Compiled modules are only used beside sources of the time that they were compiled from.
            mtime = min(max(0, int(member.mtime)), _MAX_MTIME)
            os.utime(fd, (mtime, mtime))

    def _link(self, target: str, path: str, name: str) -> None:
        """A second name for a file that came before."""
        parent = target.rpartition("/")[0]
        if parent not in self._folders or target in self._folders or target in self._links:
            raise ArchiveError(f"the link '{name}' leads to no file of the archive")
        try:
            os.link(f"{self._folder}/{target}", path, follow_symlinks=False)
        except FileNotFoundError:
            raise ArchiveError(f"the link '{name}' leads to no file of the archive") from None

    def _check_links(self) -> None:
        # At the end, because what a link leads through may come after it.
        for name in self._links:
            self._check_stopped()
            if os.path.commonpath((self._folder, os.path.realpath(f"{self._folder}/{name}"))) != self._folder:
                raise ArchiveError(f"the link '{name}' leads outside")

    def _check_stopped(self) -> None:
        if self._stopped():
            raise ArchiveError("the server is stopping")


def _normal(name: str) -> str:
    """A member's name without what means nothing. Raises ArchiveError for one that leads elsewhere."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or "\0" in name or len(os.fsencode(name)) > MAX_NAME_BYTE_SIZE:
        raise ArchiveError("the name of a member leads outside, or is too long")
    return "/".join(parts)
