"""What this process has done with CUDA, for tests to read: a file ``<pid>.ledger``, written with every change."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpu_ledger import LedgerFile

from . import settings

_lock = threading.RLock()
_files: dict[str, LedgerFile] = {}

content: dict[str, Any] = {
    "contexts": 0,
    "uuids": [],
    "device_bytes": 0,
    "opened": 0,
    "opens": 0,
    "closes": 0,
    "copies": {kind: {"count": 0, "bytes": 0} for kind in ("h2d", "d2h", "d2d", "h2h")},
    "pinned_bytes": 0,
    "preload_calls": 0,
    "provider_options": [],
    "gpu_graph_ids": [],
    "runs": 0,
    "fault": 0,
}


def change(how: Callable[[dict[str, Any]], None]) -> None:
    """Change the ledger, and the file where there is to be one."""
    with _lock:
        how(content)
        folder = os.environ.get(settings.LEDGER)
        if folder:
            if folder not in _files:
                _files[folder] = LedgerFile(Path(folder) / f"{os.getpid()}.ledger")
            _files[folder].write(content)


def end() -> None:
    """Close the file; it stays."""
    with _lock:
        for file in _files.values():
            file.close()
        _files.clear()


def add(**amounts: int) -> None:
    """Add to numbers of the ledger."""

    def added(ledger: dict[str, Any]) -> None:
        for name, amount in amounts.items():
            ledger[name] += amount

    change(added)


def copied(kind: str, byte_size: int) -> None:
    """Count a copy."""

    def counted(ledger: dict[str, Any]) -> None:
        ledger["copies"][kind]["count"] += 1
        ledger["copies"][kind]["bytes"] += byte_size

    change(counted)
