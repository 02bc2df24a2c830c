"""The Python environments that models bring: each archive unpacked once, each interpreter tried once."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import threading
from collections.abc import Callable, Coroutine, Hashable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from .archive import unpack
from .private_directory import PrivateDirectory, sweep

T = TypeVar("T")


class Environments:
    """What is known of environments, and the private directory that archives are unpacked into, made with the first of them.

    Making the object sweeps what killed servers have left in the system's folder for temporary files.
    """

    def __init__(self) -> None:
        self._base = Path(tempfile.gettempdir())
        self._directory: PrivateDirectory | None = None
        self._tasks: dict[Hashable, asyncio.Task[Any]] = {}
        self._threads = ThreadPoolExecutor(2, "unpack")
        self._stopped = threading.Event()
        self._count = 0
        sweep(self._base)

    async def unpacked(self, archive: Path) -> Path:
        """The folder with an archive's content. ``archive`` is a canonical path; once changed, it is unpacked again.

        Raises ArchiveError, or OSError where it cannot be read or there is no room.
        """
        status = archive.stat()
        return await self.once((archive, status.st_mtime_ns, status.st_size), lambda: self._unpack(archive))

    async def _unpack(self, archive: Path) -> Path:
        if self._directory is None:
            self._directory = PrivateDirectory(self._base)
        self._count += 1
        folder = self._directory.path / str(self._count)
        folder.mkdir(0o700)
        await asyncio.get_running_loop().run_in_executor(self._threads, _unpack_or_remove, archive, folder, self._stopped.is_set)
        return folder

    async def once(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The outcome of ``work`` for a key: of the first call, which others wait for. A failure is not remembered."""
        task = self._tasks.get(key)
        if task is None:
            task = self._tasks[key] = asyncio.get_running_loop().create_task(work())
            task.add_done_callback(lambda ended: self._ended(key, ended))
        # One who gives up waiting does not stop it for the others.
        outcome: T = await asyncio.shield(task)
        return outcome

    def _ended(self, key: Hashable, task: asyncio.Task[Any]) -> None:
        if task.cancelled() or task.exception() is not None:
            self._tasks.pop(key, None)

    async def close(self) -> None:
        """Stop what is under way and remove what was unpacked; no worker uses it any more."""
        self._stopped.set()
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.to_thread(self._remove)

    def _remove(self) -> None:
        self._threads.shutdown()
        self.end_now()

    def end_now(self) -> None:
        """Remove what was unpacked; the process exits right after, and the next server sweeps what is still being written."""
        self._stopped.set()
        if self._directory is not None:
            self._directory.close()


def _unpack_or_remove(archive: Path, folder: Path, stopped: Callable[[], bool]) -> None:
    try:
        unpack(archive, folder, stopped)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
