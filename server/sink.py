"""A file descriptor that text is written to without ever waiting for whoever reads it."""

from __future__ import annotations

import os
import select
import stat
import threading
import time
from collections import deque

BACKLOG_LIMIT = 4 << 20
"""How many bytes may wait for a slow reader; what comes on top is dropped."""


class Sink:
    """Writes whole records to a descriptor, at once where it takes them, else from a thread as the reader catches up.

    Nothing is raised and nothing blocks: a record is dropped and counted (``dropped``) where the reader is gone, the
    disk is full or the backlog has reached its limit. May be used from any thread, and from within itself (a finaliser
    that logs).
    """

    def __init__(self, descriptor: int, *, owned: bool = False, backlog_limit: int = BACKLOG_LIMIT) -> None:
        self.dropped = 0
        self._backlog_limit = backlog_limit
        self._backlog: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._torn = False
        self._closed = False
        self._thread: threading.Thread | None = None
        self._lock = threading.RLock()
        self._drained = threading.Condition(self._lock)
        self._descriptor, self._owned, self._chunk = _unblocking(descriptor, owned)

    def write(self, record: bytes) -> bool:
        """Write the record, or have it written soon. False: it was dropped."""
        with self._lock:
            if self._closed:
                self.dropped += 1
                return False
            if self._torn:
                record = b"\n" + record
            if self._backlog:
                return self._enqueue(record)
            try:
                rest = self._push(memoryview(record))
            except OSError:
                self.dropped += 1
                return False
            self._torn = False
            return self._enqueue(rest) if rest else True

    def _enqueue(self, record: bytes) -> bool:
        if self._backlog and self._waiting_bytes + len(record) > self._backlog_limit:
            self.dropped += 1
            return False
        self._torn = False
        self._backlog.append(record)
        self._waiting_bytes += len(record)
        if self._thread is None:
            self._thread = threading.Thread(target=self._drain, name="log-backlog", daemon=True)
            self._thread.start()
        return True

    def _push(self, left: memoryview) -> bytes:
        """Write as much as goes without waiting; the rest is returned. OSError: nothing more goes."""
        written = 0
        try:
            while left:
                if self._chunk and not _ready(self._descriptor, 0):
                    break
                count = os.write(self._descriptor, left[: self._chunk] if self._chunk else left)
                written += count
                left = left[count:]
        except BlockingIOError:
            pass  # the descriptor is full: the rest waits
        except OSError:
            self._torn = self._torn or written > 0
            raise
        return bytes(left)

    def _drain(self) -> None:
        stuck = False
        while True:
            if stuck:
                time.sleep(0.02)  # called ready, yet it took nothing
            ready = _ready(self._descriptor, 200)
            with self._lock:
                before = self._waiting_bytes
                try:
                    while self._backlog:
                        rest = self._push(memoryview(self._backlog[0]))
                        self._waiting_bytes -= len(self._backlog[0]) - len(rest)
                        if rest:
                            self._backlog[0] = rest
                            break
                        self._backlog.popleft()
                except OSError:
                    self.dropped += len(self._backlog)
                    self._backlog.clear()
                    self._waiting_bytes = 0
                    self._torn = True
                stuck = ready and self._waiting_bytes == before
                if not self._backlog or self._closed:
                    self._thread = None
                    self._drained.notify_all()
                    return

    def flush(self, timeout_s: float) -> bool:
        """Wait until nothing is left to write, but no longer than this. True: nothing is."""
        with self._lock:
            return self._drained.wait_for(lambda: not self._backlog, timeout_s)

    def close(self, timeout_s: float = 1.0) -> None:
        """Flush and let go of the descriptor; what could not be written by then is dropped."""
        self.flush(timeout_s)
        with self._lock:
            self._closed = True
            thread = self._thread
        if thread is not None:
            thread.join()
        with self._lock:
            self.dropped += len(self._backlog)
            self._backlog.clear()
            if self._owned:
                self._owned = False
                os.close(self._descriptor)


def _ready(descriptor: int, timeout_ms: int) -> bool:
    """Can something be written, or is there an error for write() to report?"""
    poller = select.poll()
    poller.register(descriptor, select.POLLOUT)
    return bool(poller.poll(timeout_ms))


def _unblocking(descriptor: int, owned: bool) -> tuple[int, bool, int]:
    """A descriptor for the same file that does not block, whether it is ours to close, and the most to write at once (0: all).

    O_NONBLOCK belongs to the open file, which stdout and stderr share with other processes (the shell, the workers), so
    it is not set on those but on one opened anew. Files on disk are always ready and are taken as they are.
    """
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
            twin = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
            if owned:
                os.close(descriptor)
            return twin, True, 0
        if stat.S_ISREG(mode):
            return descriptor, owned, 0
    except OSError:
        return descriptor, owned, select.PIPE_BUF  # closed, or not ours to open again: asked before each small write
    return descriptor, owned, select.PIPE_BUF
