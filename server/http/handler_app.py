"""A handler of our own connections as an ASGI app, which is how HTTP/2 clients reach it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from starlette.types import Receive, Scope, Send

from ...workers.contract.status import StatusError
from ..admission import Admission
from ..door.body import Body, Growing
from ..door.malformed import Malformed
from .asgi_stream import AsgiStream, disconnect
from .early_refusal import early_refusal
from .endpoint import Disconnected, Guard, scope_peer_is_local, send_reply
from .errors import JSON_TYPE, error_body, error_reply, plain_error_reply
from .exchange import Answer, Cancel, Head, Headers, Reply, StreamingRequest
from .limits import Limits
from .restriction import Restrictions

if TYPE_CHECKING:
    from ..inference_service import InferenceService

_logger = logging.getLogger(__name__)

STREAM_BYTE_SIZE = 64 * 1024
"""What a request over HTTP/2 takes by itself: objects, tasks and buffers, those of the library included."""

Handler = Callable[["InferenceService", str, str, StreamingRequest, Answer], Cancel | None]
"""Replies to a request to a model and, where that is not empty, one version of it; takes over its body in any case."""


class _AsgiRequest(StreamingRequest):
    """A request that came as ASGI messages; its reply is ``reply``."""

    __slots__ = ("_admission", "_unsent_limit", "reply")

    def __init__(self, head: Head, body: Body, start_ns: int, peer_is_local: bool, unsent_limit: int, admission: Admission) -> None:
        super().__init__(head, body, start_ns, peer_is_local)
        self._unsent_limit = unsent_limit
        self._admission = admission
        self.reply: asyncio.Future[Reply | AsgiStream] = asyncio.get_running_loop().create_future()

    def begin(self, status: int, headers: Headers) -> AsgiStream:
        stream = AsgiStream(status, headers, self._unsent_limit, self._admission)
        if not self.reply.done():
            self.reply.set_result(stream)
        return stream

    def answer(self, reply: Reply) -> None:
        """The handler's reply; one that comes after the client has gone is dropped."""
        if not self.reply.done():
            self.reply.set_result(reply)
        elif reply.on_sent is not None:
            reply.on_sent()


class HandlerApp:
    """The ASGI app of a model's route; ``plain`` routes send their 405 as text/plain."""

    def __init__(self, service: InferenceService, restrictions: Restrictions, limits: Limits, handler: Handler, plain: bool) -> None:
        self._service = service
        self._admission = service.admission
        self._plain = plain
        self._guard = Guard(restrictions, "inference", ("POST",), plain)
        self._limits = limits
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Many streams share a connection, so that only this bounds what they take together.
        self._admission.hold(STREAM_BYTE_SIZE)
        try:
            await self._reply(scope, receive, send)
        finally:
            self._admission.let_go(STREAM_BYTE_SIZE)

    async def _reply(self, scope: Scope, receive: Receive, send: Send) -> None:
        reply: Reply | AsgiStream
        try:
            reply = self._guard.refusal(scope) or await self._handle(scope, receive)
        except StatusError as failure:
            reply = error_reply(failure, self._plain)
        except Malformed as failure:
            reply = plain_error_reply(failure.status, failure.message, failure.retry_after_s)
        except Disconnected:
            return
        except Exception:
            _logger.exception("an HTTP handler failed")
            reply = Reply(500, (JSON_TYPE,), (error_body("internal error"),))
        if isinstance(reply, Reply):
            byte_size = sum([memoryview(part).nbytes for part in reply.body])
            self._admission.hold(byte_size)
            try:
                await send_reply(reply, scope, send)
            finally:
                self._admission.let_go(byte_size)
        else:
            await reply.send(receive, send)

    async def _handle(self, scope: Scope, receive: Receive) -> Reply | AsgiStream:
        start_ns = time.monotonic_ns()
        headers = scope["headers"]
        params = scope["path_params"]
        announced = _announced_byte_size(headers)
        refusal = early_refusal(self._service, params["model"], params.get("version", ""), announced)
        if refusal is not None:
            raise refusal
        growing = Growing(self._service.arena, self._limits, self._admission)
        growing.expect(announced)
        body = await _received(receive, growing)
        head = Head(scope["method"], scope["path"], headers, [name for name, _ in headers], scope["query_string"].decode("latin-1"))
        unsent_limit = self._limits.stream_unsent_byte_size
        request = _AsgiRequest(head, body, start_ns, scope_peer_is_local(scope), unsent_limit, self._admission)
        cancel = self._handler(self._service, params["model"], params.get("version", ""), request, request.answer)
        reply = await _reply_or_disconnect(request.reply, receive, cancel)
        if isinstance(reply, AsgiStream):
            reply.cancel = cancel
        return reply


async def _reply_or_disconnect(replied: asyncio.Future[Reply | AsgiStream], receive: Receive, cancel: Cancel | None) -> Reply | AsgiStream:
    """Wait for the reply, or its beginning; cancels the request and raises Disconnected where the client goes first."""
    if replied.done():
        return replied.result()
    gone = asyncio.ensure_future(disconnect(receive))
    wanted = False
    try:
        await asyncio.wait((replied, gone), return_when=asyncio.FIRST_COMPLETED)
        if gone.done():
            raise Disconnected
        wanted = True
        return replied.result()
    finally:
        gone.cancel()
        reply = replied.result() if replied.done() else None
        if not wanted and isinstance(reply, Reply):
            # Answered in the very turn in which the connection ended: nobody else gives the outputs back.
            if reply.on_sent is not None:
                reply.on_sent()
        elif not wanted:
            if isinstance(reply, AsgiStream):
                reply.abort()
            replied.cancel()
            if cancel is not None:
                cancel()


def _announced_byte_size(headers: Iterable[tuple[bytes, bytes]]) -> int:
    """What a request's Content-Length says, 0 where there is none."""
    for name, value in headers:
        if name == b"content-length" and value.isdigit() and len(value) <= 19:
            return int(value)
    return 0


async def _received(receive: Receive, growing: Growing) -> Body:
    """A request's whole body. Raises Disconnected, and Malformed where there is no room for it."""
    try:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Disconnected
            growing.append(message.get("body", b""))
            if not message.get("more_body", False):
                return growing.take()
    finally:
        growing.abandon()
