"""A worker's ends of its ZeroMQ link: the only place where workers know ZeroMQ."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

import msgspec
import zmq

from .contract.messages import FromWorker, ToInstance, ToWorker

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


class ControlChannel:
    """The worker's control socket: received from by one thread, sent to by any."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> None:
        self._socket = _dealer(context, endpoint)
        self._decoder = msgspec.msgpack.Decoder(ToWorker)
        self._outbox: deque[FromWorker] = deque()
        self._bell_address = f"inproc://control-{id(self)}"
        self._bell = context.socket(zmq.PULL)
        self._bell.bind(self._bell_address)
        self._context = context
        self._local = threading.local()

    def send(self, message: FromWorker) -> None:
        """Send a message to the server, from any thread."""
        self._outbox.append(message)
        ring: zmq.Socket[bytes] | None = getattr(self._local, "ring", None)
        if ring is None:
            ring = self._local.ring = self._context.socket(zmq.PUSH)
            ring.connect(self._bell_address)
        ring.send(b"")

    def serve(self, handle: Callable[[ToWorker], bool]) -> None:
        """Receive messages and pass them to ``handle`` until it returns False."""
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._bell, zmq.POLLIN)
        while True:
            ready = dict(poller.poll())
            if self._bell in ready:
                self._bell.recv()
                while self._outbox:
                    self._socket.send(_encoder.encode(self._outbox.popleft()))
            if self._socket in ready and not handle(self._decoder.decode(self._socket.recv())):
                return


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
