"""Directories that only this user can enter, and that do not outlive their server for long."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

_PREFIX = "tensorfarm-"


class PrivateDirectory:
    """A new directory in ``base``, gone when closed.

    A lock in it says that its server lives; directories whose server was killed are swept by the
    next one that starts. Raises OSError where it cannot be made.
    """

    def __init__(self, base: Path) -> None:
        # Locked before it has the name that others sweep.
        made = Path(tempfile.mkdtemp(prefix="." + _PREFIX, dir=base))
        self._lock = os.open(made / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.path = made.rename(base / made.name[1:])

    def close(self) -> None:
        """Remove the directory. A second call does nothing."""
        if self._lock >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._lock)
            self._lock = -1


def sweep(base: Path) -> None:
    """Remove what servers that were killed have left in ``base``."""
    for path in base.glob(_PREFIX + "*"):
        try:
            if path.is_symlink() or path.stat().st_uid != os.geteuid():
                continue
            lock = os.open(path / "lock", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            continue  # another user's, or not ours at all
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue  # its server lives
        else:
            shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(lock)
