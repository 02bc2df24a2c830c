"""A process's ledger as a file that is mapped: a change costs a microsecond, where a new file would cost a fifth of a millisecond.

The file begins with a count of the changes; behind it are two places, of which the count says in which the newest content lies. Whoever
finds the same count before and after it has read has it whole.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
from pathlib import Path
from typing import Any

_COUNT = struct.Struct("<Q")
_LENGTH = struct.Struct("<I")
_PLACE_BYTE_SIZE = 1 << 20
_FILE_BYTE_SIZE = _COUNT.size + 2 * _PLACE_BYTE_SIZE


class LedgerFile:
    """The file as its process writes it, one thread at a time."""

    def __init__(self, file: Path) -> None:
        fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, _FILE_BYTE_SIZE)
            self._memory = mmap.mmap(fd, _FILE_BYTE_SIZE)
        finally:
            os.close(fd)
        self._changes = 0

    def close(self) -> None:
        """Others read on what was written last."""
        self._memory.close()

    def write(self, content: dict[str, Any]) -> None:
        """From now on this is what others read."""
        self._changes += 1
        at = _place(self._changes)
        text = json.dumps(content).encode()
        _LENGTH.pack_into(self._memory, at, len(text))
        self._memory[at + _LENGTH.size : at + _LENGTH.size + len(text)] = text
        _COUNT.pack_into(self._memory, 0, self._changes)


def _place(changes: int) -> int:
    return _COUNT.size + changes % 2 * _PLACE_BYTE_SIZE


def read_ledger(file: Path) -> dict[str, Any] | None:
    """What a process has written, living or not; None where it has written nothing."""
    try:
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        while True:
            count = os.pread(fd, _COUNT.size, 0)
            changes = _COUNT.unpack(count)[0] if count else 0
            if not changes:
                return None
            (length,) = _LENGTH.unpack(os.pread(fd, _LENGTH.size, _place(changes)))
            text = os.pread(fd, length, _place(changes) + _LENGTH.size)
            if os.pread(fd, _COUNT.size, 0) == count:
                content: dict[str, Any] = json.loads(text)
                return content
    finally:
        os.close(fd)
