"""What a worker process is called where people look at processes."""

from __future__ import annotations

import ctypes

_PR_SET_NAME = 15


def set_title(name: str) -> None:
    """Have ``top`` and ``ps -o comm`` show the first 15 bytes of ``name``; for the main thread."""
    ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode()[:15])
