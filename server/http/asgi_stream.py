"""A reply that is written piece by piece and sent as ASGI messages."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

from starlette.types import Receive, Send

from ..admission import Admission
from .exchange import Cancel, Headers

_PIECE_BYTE_SIZE = 256 * 1024


class AsgiStream:
    """The reply; what is written waits for the client. Beyond ``unsent_limit`` bytes that wait no more is taken: it is broken off.

    ``cancel`` is called where it is not sent to its end.
    """

    def __init__(self, status: int, headers: Headers, unsent_limit: int, admission: Admission) -> None:
        self._admission = admission
        self.cancel: Cancel | None = None
        self._status = status
        self._headers = [(name.lower(), value) for name, value in headers]
        self._unsent_limit = unsent_limit
        self._unsent_byte_size = 0
        self._parts: deque[bytes] = deque()
        self._complete = False
        self._over = False
        self._wake = asyncio.Event()
        self._sending: asyncio.Future[None] | None = None

    def write(self, parts: Sequence[bytes]) -> None:
        """Send more of the body; without parts, only the head where that has not left."""
        if self._over:
            return
        if parts and self._unsent_byte_size > self._unsent_limit:
            self.abort()
            return
        self._parts += parts
        byte_size = sum(map(len, parts))
        self._unsent_byte_size += byte_size
        self._admission.hold(byte_size)
        self._wake.set()

    def end(self, parts: Sequence[bytes] = ()) -> None:
        """Send the last of the body, and that it is the last."""
        self.write(parts)
        self._complete = True

    def abort(self) -> None:
        """Break the reply off, so that the client sees that it is not complete."""
        self._end()
        if self._sending is not None:
            self._sending.cancel()

    def _end(self) -> None:
        """No more of it is sent: what waits is forgotten."""
        self._over = True
        self._parts.clear()
        self._admission.let_go(self._unsent_byte_size)
        self._unsent_byte_size = 0

    async def send(self, receive: Receive, send: Send) -> None:
        """Send all that is written, as it comes, up to the end; returns early where the client has gone or the reply is broken off."""
        sending = self._sending = asyncio.ensure_future(self._send_all(send))
        gone = asyncio.ensure_future(disconnect(receive))
        sent = False
        if self._over:
            sending.cancel()
        try:
            await asyncio.wait((sending, gone), return_when=asyncio.FIRST_COMPLETED)
            if sending.done() and not sending.cancelled():
                sending.result()
                sent = True
        finally:
            sending.cancel()
            self._end()
            gone.cancel()
            if not sent and self.cancel is not None:
                self.cancel()

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self._status, "headers": self._headers})
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._parts:
                content = b"".join(self._parts)
                self._parts.clear()
                for start in range(0, len(content), _PIECE_BYTE_SIZE):
                    piece = content[start : start + _PIECE_BYTE_SIZE]
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
                    if not self._over:
                        self._unsent_byte_size -= len(piece)
                        self._admission.let_go(len(piece))
            if self._complete:
                break
        await send({"type": "http.response.body", "body": b""})


async def disconnect(receive: Receive) -> None:
    """Wait until the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
