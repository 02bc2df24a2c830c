"""The memory of a process, as the kernel counts it."""

from __future__ import annotations

import os
from pathlib import Path

_PAGE_BYTE_SIZE = os.sysconf("SC_PAGE_SIZE")


def resident_byte_size(pid: int) -> int:
    """Bytes of a process that are in memory (RSS), its shared memory and libraries included; 0 where it has gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * _PAGE_BYTE_SIZE
    except (OSError, IndexError):
        return 0
