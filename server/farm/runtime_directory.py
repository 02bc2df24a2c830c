"""The server's private directory for its sockets."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from .private_directory import PrivateDirectory, sweep


class RuntimeDirectory(PrivateDirectory):
    """A private directory with a path short enough for sockets; making it sweeps what killed servers have left."""

    def __init__(self) -> None:
        base = _base()
        sweep(base)
        super().__init__(base)

    def endpoint(self, name: str) -> str:
        """The ZeroMQ address of a socket in the directory."""
        return f"ipc://{self.path / name}"


def _base() -> Path:
    for candidate in (os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), "/tmp"):
        # The address of a unix socket has room for 107 bytes.
        if candidate and len(candidate) < 60 and os.access(candidate, os.W_OK | os.X_OK):
            return Path(candidate)
    raise OSError("no writable folder for the server's sockets: set TMPDIR to one with a short path")
