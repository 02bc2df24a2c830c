"""Looking at files that may be anything: missing, unreadable, no files at all, or far too large."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from ..repository.layout import read_text_file

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class Unreadable(Exception):
    """A file that cannot be read; ``str()`` says why."""


def complaint(path: Path) -> str:
    """Why a path is no file that can be read, "" where it is one. Never opens what could block."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        if os.path.islink(path):
            return "is a symbolic link that leads nowhere"
        return f"cannot be read: {reason(error)}"
    if not stat.S_ISREG(mode):
        return f"is {_KINDS.get(stat.S_IFMT(mode), 'no regular file')}, not a file"
    return ""


def read(path: Path) -> bytes:
    """The content of a regular file of at most 16 MiB. Raises Unreadable."""
    wrong = complaint(path)
    if wrong:
        raise Unreadable(wrong)
    try:
        return read_text_file(path)
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise Unreadable(f"is {error.strerror}") from error
        raise Unreadable(f"cannot be read: {reason(error)}") from error


def is_file(path: Path) -> bool:
    """Is there a regular file, or a link to one?"""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False


def present(path: Path) -> bool:
    """Is there anything of this name, be it a link that leads nowhere?"""
    return os.path.lexists(path)


def reason(error: OSError | ValueError) -> str:
    """What the system says of a failure, without the path."""
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
