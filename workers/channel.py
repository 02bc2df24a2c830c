"""A worker's ends of its ZeroMQ link: the only place where workers know ZeroMQ."""

from __future__ import annotations

import threading
from collections.abc import Callable

import msgspec
import zmq

from .contract.messages import FromWorker, Hello, ToInstance, ToWorker, Voice

_encoder = msgspec.msgpack.Encoder()


class InstanceChannel:
    """One instance's own socket. Belongs to the thread that made it."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> None:
        self._socket = _dealer(context, endpoint)
        self._decoder = msgspec.msgpack.Decoder(ToInstance)

    def receive(self) -> ToInstance:
        """Wait for the next message."""
        message: ToInstance = self._decoder.decode(self._socket.recv(copy=False).buffer)
        return message

    def send(self, message: FromWorker) -> None:
        """Send a message to the server."""
        self._socket.send(_encoder.encode(message))

    def close(self) -> None:
        """Close the socket; what was sent is still delivered."""
        self._socket.close()


class VoiceChannel:
    """The socket over which any thread of the worker speaks; nothing comes back over it. ``send`` never waits for the server."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, token: bytes) -> None:
        self._lock = threading.Lock()
        self._socket = _dealer(context, endpoint)
        self.send(Voice(token))

    def send(self, message: FromWorker) -> None:
        """Send a message to the server, from any thread."""
        content = _encoder.encode(message)
        with self._lock:
            self._socket.send(content)


class ControlChannel:
    """The worker's control socket: says Hello, and receives from then on. Belongs to the thread that serves it."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> None:
        self._socket = _dealer(context, endpoint)
        self._decoder = msgspec.msgpack.Decoder(ToWorker)

    def serve(self, token: bytes, handle: Callable[[ToWorker], bool]) -> None:
        """Say Hello, receive messages and pass them to ``handle`` until it returns False."""
        self._socket.send(_encoder.encode(Hello(token)))
        while handle(self._decoder.decode(self._socket.recv())):
            pass


def new_context() -> zmq.Context[zmq.Socket[bytes]]:
    """The process's ZeroMQ context."""
    return zmq.Context(1)


def _dealer(context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> zmq.Socket[bytes]:
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.setsockopt(zmq.LINGER, 1000)
    socket.connect(endpoint)
    return socket
