"""A front end's end of its ZeroMQ link: the only place where front ends know ZeroMQ.

What is told in one turn of the loop leaves as one message at its end. The socket's descriptor is edge-triggered and a send may use up its
edge, so the socket is drained each time it rings and once more behind each send.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
import zmq

from ...workers.contract.messages import Hello
from .messages import FromFrontEnd, SaidRaw, Told

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Told)
_LINGER_MS = 1000


class Link:
    """Messages to and from the server process. ``receive`` takes all that it has told in one turn of its loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, endpoint: str, token: bytes, receive: Callable[[Told], None]) -> None:
        self._loop = loop
        self._receive = receive
        self._said: list[msgspec.Raw] = []
        self._closed = False
        self._context = zmq.Context(1)
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.setsockopt(zmq.LINGER, _LINGER_MS)
        self._socket.connect(endpoint)
        self._fd = int(self._socket.getsockopt(zmq.FD))
        loop.add_reader(self._fd, self._drain)
        self._socket.send(_encoder.encode(Hello(token)))
        loop.call_soon(self._drain)

    def tell(self, message: FromFrontEnd) -> None:
        """Say something, at the end of this turn of the loop. Never blocks. Raises what the encoder does, and then nothing is said."""
        content = msgspec.Raw(_encoder.encode(message))
        if not self._said:
            self._loop.call_soon(self.flush)
        self._said.append(content)

    def flush(self) -> None:
        """Send what has been said."""
        said, self._said = self._said, []
        if said and not self._closed:
            self._socket.send(_encoder.encode(SaidRaw(said)))
            self._drain()

    def _drain(self) -> None:
        while not self._closed:
            try:
                frame = self._socket.recv(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            self._receive(_decoder.decode(frame.buffer))

    def close(self) -> None:
        """Close the link; what was sent still arrives."""
        if not self._closed:
            self.flush()
            self._closed = True
            self._loop.remove_reader(self._fd)
            self._socket.close()
            self._context.term()
