"""The listening socket of a door, and whether connections are taken from it just now."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable
from typing import Any

from .. import descriptors
from .listening import BACKLOG

_logger = logging.getLogger(__name__)

_AT_ONCE = 64
_REST_S = 0.1
_SILENCE_S = 60.0
_THE_CLIENTS = frozenset((errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.EINTR))


class Acceptor:
    """Takes connections from ``listening``, a socket bound to its port, and makes a protocol for each by ``make``.

    While hardly any descriptors are left it rests: new clients wait in the kernel's queue, and the open connections are
    served. The loop's own server would hang up on everybody who waits, or try again and again without a pause.
    ``on_short`` is called when it goes to rest; it may close what nobody needs. Raises OSError where it cannot listen.
    """

    def __init__(self, listening: socket.socket, make: Callable[[], asyncio.BaseProtocol], on_short: Callable[[], None]) -> None:
        self._listening = listening
        self._make = make
        self._on_short = on_short
        self._loop = asyncio.get_running_loop()
        self._beginning: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._said = float("-inf")
        listening.setblocking(False)
        try:
            listening.listen(BACKLOG)
        except OSError:
            # Somebody else who shares the address was quicker.
            listening.close()
            raise
        self._loop.add_reader(listening.fileno(), self._take)

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._listening.getsockname()[1])

    @property
    def resting(self) -> bool:
        """No connections are taken for now."""
        return self._timer is not None

    def close(self) -> None:
        """Take no more connections; those that wait are reset."""
        if self._listening.fileno() < 0:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        else:
            self._loop.remove_reader(self._listening.fileno())
        self._listening.close()

    def _take(self) -> None:
        """Take those who wait, but not so many that everybody else would have to."""
        enough = descriptors.enough()
        for _ in range(_AT_ONCE):
            try:
                accepted, _ = self._listening.accept()
            except BlockingIOError:
                return
            except OSError as failure:
                if failure.errno in _THE_CLIENTS:
                    continue
                self._rest(str(failure.strerror))
                return
            accepted.setblocking(False)
            # The system hands out the lowest number that is free.
            last = accepted.fileno() >= enough
            task = self._loop.create_task(self._loop.connect_accepted_socket(self._make, accepted))
            self._beginning.add(task)
            task.add_done_callback(self._begun)
            if last:
                self._rest("hardly any file descriptors are left")
                return

    def _begun(self, task: asyncio.Task[Any]) -> None:
        self._beginning.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _logger.error("a connection could not be begun", exc_info=task.exception())

    def _rest(self, reason: str) -> None:
        now = self._loop.time()
        if now - self._said > _SILENCE_S:
            self._said = now
            _logger.warning("new connections have to wait: %s", reason)
        self._loop.remove_reader(self._listening.fileno())
        self._timer = self._loop.call_later(_REST_S, self._resume)
        self._on_short()

    def _resume(self) -> None:
        if descriptors.few_left(self._listening.fileno()):
            self._timer = self._loop.call_later(_REST_S, self._resume)
        else:
            self._timer = None
            self._loop.add_reader(self._listening.fileno(), self._take)
