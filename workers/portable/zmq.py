"""Stands in for pyzmq where a model's own interpreter has none: DEALER sockets that connect to one unix socket."""

from __future__ import annotations

from typing import Any

from .zmtp import Connection, LinkError

DEALER = 5
LINGER = 17
SNDHWM = 23
RCVHWM = 24

_IPC = "ipc://"


class ZMQError(Exception):
    """What a socket cannot do."""


class Frame:
    """One received part of a message."""

    __slots__ = ("buffer", "more")

    def __init__(self, content: bytes, more: bool) -> None:
        self.buffer = memoryview(content)
        self.more = more

    @property
    def bytes(self) -> bytes:
        """Its content, copied."""
        return self.buffer.tobytes()


class Context:
    """Makes sockets."""

    def __init__(self, io_threads: int = 1) -> None:
        self._io_threads = io_threads

    def socket(self, socket_type: int) -> Socket:
        """A new socket. Raises ZMQError for any type but DEALER."""
        if socket_type != DEALER:
            raise ZMQError("only DEALER sockets are possible here")
        return Socket()


class Socket:
    """A DEALER socket with one peer. Sends never wait, and may come from any thread; one thread receives."""

    def __init__(self) -> None:
        self._connection: Connection | None = None

    def setsockopt(self, option: int, value: int) -> None:
        """Takes the options that say what is so anyway: queues without a limit, and time to deliver what was sent."""
        if option not in (SNDHWM, RCVHWM, LINGER) or (option != LINGER and value):
            raise ZMQError(f"option {option} with value {value} is not possible here")

    def connect(self, endpoint: str) -> None:
        """Connect to an ``ipc://`` endpoint that is bound already. Raises ZMQError."""
        if not endpoint.startswith(_IPC) or self._connection is not None:
            raise ZMQError("only one endpoint, and only ipc://, is possible here")
        try:
            self._connection = Connection(endpoint[len(_IPC) :])
        except OSError as error:
            raise ZMQError(f"the connection to the server failed: {error}") from error

    def send(self, content: Any) -> None:
        """Send a message of one part."""
        self._connected().send(content)

    def recv(self, *, copy: bool = True) -> Any:
        """Wait for a part of a message: bytes, or a Frame without ``copy``. Raises ZMQError once the server has gone."""
        try:
            content, more = self._connected().receive()
        except LinkError as error:
            raise ZMQError(str(error)) from None
        return content if copy else Frame(content, more)

    def close(self) -> None:
        """End the connection; what was sent is still delivered."""
        if self._connection is not None:
            self._connection.close()

    def _connected(self) -> Connection:
        if self._connection is None:
            raise ZMQError("the socket is not connected")
        return self._connection
