"""The server's end of a worker's ZeroMQ link: the only place where the server knows ZeroMQ.

A plain ROUTER socket whose descriptor the loop watches: the worker's control socket and each of
its instances are peers of it. The descriptor is edge-triggered, so the socket is drained each time
it rings and after each turn's sends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
import zmq

from ...workers.contract.messages import FromWorker, ToInstance, ToWorker

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(FromWorker)


def new_context() -> zmq.Context[zmq.Socket[bytes]]:
    """The server's ZeroMQ context."""
    return zmq.Context(1)


class Channel:
    """Messages to and from one worker process. ``receive(identity, message)`` is called for each that comes."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        endpoint: str,
        loop: asyncio.AbstractEventLoop,
        receive: Callable[[bytes, FromWorker], None],
        reject: Callable[[str], None],
    ) -> None:
        self._socket = context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind(endpoint)
        self._loop = loop
        self._receive = receive
        self._reject = reject
        self._fd = self._socket.getsockopt(zmq.FD)
        self._closed = False
        loop.add_reader(self._fd, self.drain)

    def send(self, identity: bytes, message: ToWorker | ToInstance) -> None:
        """Send a message to a peer. Never blocks; a peer that is gone is noticed by its process's end."""
        self._socket.send(identity, zmq.SNDMORE)
        self._socket.send(_encoder.encode(message))

    def drain(self) -> None:
        """Receive all that has come."""
        socket = self._socket
        while not self._closed:
            try:
                identity = socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            frame = socket.recv(zmq.NOBLOCK, copy=False)
            try:
                message = _decoder.decode(frame.buffer)
            except msgspec.MsgspecError as error:
                self._reject(str(error))
                continue
            self._receive(identity, message)

    def close(self) -> None:
        """Close the socket; nothing is received any more."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._fd)
            self._socket.close()
