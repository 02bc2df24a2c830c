"""The arenas that a front end reaches: its own, and those of the server process and the workers, which it only reads."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable

from ...shm.arena import Arena, ArenaView
from ...shm.placement import Lease
from ...workers.contract.messages import Adopt, LifelineMessage
from ...workers.contract.status import unavailable
from ...workers.lifeline import receive

_logger = logging.getLogger(__name__)


class Arenas:
    """Takes arenas from the ``lifeline``, which is read on the loop. Without the server process there is nothing to serve: its end is ours.

    ``own`` takes request bodies. ``request_arena_fd`` is a descriptor of the server process's arena, which is closed here.
    ``on_arrival`` is called when others may have come.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        lifeline: socket.socket,
        own: Arena,
        request_arena_fd: int,
        on_arrival: Callable[[], None] = lambda: None,
    ) -> None:
        self.own = own
        self.on_arrival = on_arrival
        self._loop = loop
        self._lifeline = lifeline
        self._others: dict[int, ArenaView | None] = {}
        self._adopt(0, request_arena_fd)
        lifeline.setblocking(False)
        loop.add_reader(lifeline.fileno(), self._arrived)

    def has(self, number: int) -> bool:
        """Is there an arena of that number, or was there one? Looks whether it has just come."""
        if number == self.own.number or number in self._others:
            return True
        self._read()
        return number in self._others

    def view(self, lease: Lease) -> memoryview:
        """The bytes of a lease. Raises StatusError UNAVAILABLE where the arena's process has gone."""
        if lease.arena == self.own.number:
            return self.own.view(lease)
        arena = self._others.get(lease.arena)
        if arena is None:
            raise unavailable("the worker that made a tensor has gone, and the tensor with it")
        return arena.view(lease)

    def _arrived(self) -> None:
        self._read()
        self.on_arrival()

    def _read(self) -> None:
        """Take all that has come over the lifeline."""
        while True:
            try:
                received = receive(self._lifeline)
            except BlockingIOError:
                return
            except ConnectionError:
                received = None
            if received is None:
                # What hangs on an exit handler would outlive the server process.
                os._exit(0)
            self._take(*received)

    def _take(self, message: LifelineMessage, fd: int | None) -> None:
        # What its process answered before its end may still be on its way: Disown is for workers, ``gone`` for us.
        if isinstance(message, Adopt):
            self._adopt(message.arena, fd)

    def gone(self, number: int) -> None:
        """The process of an arena has gone, and nothing that it answered is on its way. Views that are being sent keep their pages."""
        if number in self._others:
            self._others[number] = None

    def _adopt(self, number: int, fd: int | None) -> None:
        self._others[number] = None
        if fd is None:
            return
        try:
            self._others[number] = ArenaView(number, fd)
        except OSError as error:
            # Responses that lie there are told of it; those that wait behind them must not wait for ever.
            _logger.error("the memory of a worker cannot be mapped: %s", error)  # noqa: TRY400
        finally:
            os.close(fd)

    def close(self) -> None:
        """Listen to the lifeline no more."""
        self._loop.remove_reader(self._lifeline.fileno())
