"""The server's end of a child process's ZeroMQ link: the only place where the server process knows ZeroMQ.

A plain ROUTER socket whose descriptor the loop watches: a front end's one socket, or a worker's control socket and those of each of
its instances, are peers of it. The descriptor is edge-triggered and a send may use up its edge, so the
socket is drained each time it rings and once more at the end of each turn with sends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import zmq

from ...workers.contract.messages import FromWorker

Decode = Callable[[memoryview], Any]
"""Makes a message of its bytes. Raises MsgspecError."""

decode_worker: Decode = msgspec.msgpack.Decoder(FromWorker).decode


def _plain(value: object) -> object:
    """A mapping that cannot be changed, as the command line's options have them, as one that msgspec knows."""
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is not for messages")


encode = msgspec.msgpack.Encoder(enc_hook=_plain).encode

Context = zmq.Context[zmq.Socket[bytes]]


def new_context() -> Context:
    """The server's ZeroMQ context."""
    return zmq.Context(1)


class Channel:
    """Messages to and from one child process. ``receive(identity, message)`` is called for each that comes.

    ``reject(why)`` is called for what ``decode`` finds is no message. Raises OSError where there is no room for another socket.
    """

    def __init__(
        self,
        context: Context,
        endpoint: str,
        loop: asyncio.AbstractEventLoop,
        receive: Callable[[bytes, Any], None],
        reject: Callable[[str], None],
        decode: Decode = decode_worker,
    ) -> None:
        self._loop = loop
        self._receive = receive
        self._reject = reject
        self._decode = decode
        self._closed = False
        self._drain_is_due = False
        try:
            self._socket = context.socket(zmq.ROUTER)
        except zmq.ZMQError as error:
            raise OSError(error.errno, str(error)) from error
        try:
            self._socket.setsockopt(zmq.SNDHWM, 0)
            self._socket.setsockopt(zmq.RCVHWM, 0)
            self._socket.setsockopt(zmq.LINGER, 0)
            self._socket.bind(endpoint)
            self._fd = int(self._socket.getsockopt(zmq.FD))
        except zmq.ZMQError as error:
            self._socket.close()
            raise OSError(error.errno, str(error)) from error
        loop.add_reader(self._fd, self.drain)

    def send(self, identity: bytes, message: msgspec.Struct) -> None:
        """Send a message to a peer. Never blocks; for a peer that is gone it is dropped, its process's end tells the rest."""
        content = encode(message)
        self._socket.send(identity, zmq.SNDMORE)
        self._socket.send(content)
        if not self._drain_is_due:
            self._drain_is_due = True
            self._loop.call_soon(self._drain_at_end_of_turn)

    def _drain_at_end_of_turn(self) -> None:
        self._drain_is_due = False
        self.drain()

    def drain(self) -> None:
        """Receive all that has come."""
        socket = self._socket
        while not self._closed:
            try:
                identity = socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            frame = socket.recv(zmq.NOBLOCK, copy=False)
            if frame.more:
                while socket.getsockopt(zmq.RCVMORE):
                    socket.recv(zmq.NOBLOCK)
                self._reject("a message in several parts was dropped")
                continue
            try:
                message = self._decode(frame.buffer)
            except msgspec.MsgspecError as error:
                self._reject(f"a malformed message was dropped: {error}")
                continue
            try:
                self._receive(identity, message)
            except BaseException:
                # The descriptor rings once for all that has come: the rest must not wait for the next message.
                self._loop.call_soon(self.drain)
                raise

    def close(self) -> None:
        """Close the socket; nothing is received any more, and ``receive`` and ``reject`` are let go of."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._fd)
            self._socket.close()
            self._receive = _ignore
            self._reject = _ignore


def _ignore(*_: object) -> None:
    pass
