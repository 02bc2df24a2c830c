"""Archives for tests, good and bad ones."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path


def archive_of(folder: Path, path: Path) -> Path:
    """An archive of a folder's content, compressed unless its name ends with ``.tar``."""
    with tarfile.open(path, "w:gz" if path.suffix != ".tar" else "w") as tar:
        tar.add(folder, ".")
    return path


def add_file(path: Path, name: str, byte_size: int) -> None:
    """An archive of one file of zeros."""
    with tarfile.open(path, "w") as tar:
        tar.addfile(member(name, size=byte_size), io.BytesIO(bytes(byte_size)))


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0, mode: int = 0o644, mtime: float = 0) -> tarfile.TarInfo:
    """A member's head."""
    made = tarfile.TarInfo(name)
    made.type, made.linkname, made.size, made.mode, made.mtime = kind, link, size, mode, mtime
    return made


def written(path: Path, *members: tarfile.TarInfo, mode: str = "w:gz", headers: dict[str, str] | None = None) -> Path:
    """An archive of members, files filled with x."""
    with tarfile.open(path, mode, pax_headers=headers) as tar:  # type: ignore[call-overload]
        for one in members:
            tar.addfile(one, io.BytesIO(b"x" * one.size))
    return path
