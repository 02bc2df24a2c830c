"""Runs an ASGI app for one request of our own HTTP/1.1 connections, as one task."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable

from starlette.types import ASGIApp, Message, Scope

from ..door.body import Body
from .errors import JSON_TYPE, error_body
from .exchange import Answer, Cancel, HttpRequest, Reply

_logger = logging.getLogger(__name__)
_PIECE_BYTE_SIZE = 1024 * 1024


class AsgiCalls:
    """The calls of an app that are under way."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, request: HttpRequest, answer: Answer) -> Cancel:
        """Run the app for a request. Its reply is collected and answered in one piece.

        A client that goes away does not end the call: the app sees ``http.disconnect`` where it asks.
        """
        call = _Call(request, answer)
        task = asyncio.get_running_loop().create_task(_guarded(self._app(_scope(request), call.receive, call.send), call))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return call.gone.set

    async def close(self) -> None:
        """Cancel what is under way."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Call:
    def __init__(self, request: HttpRequest, answer: Answer) -> None:
        self._body: Body | None = request.body
        self._at = 0
        self._answer: Answer | None = answer
        self._status = 500
        self._headers: list[tuple[bytes, bytes]] = []
        self._parts: list[bytes] = []
        self.gone = asyncio.Event()

    async def receive(self) -> Message:
        body = self._body
        if body is None:
            await self.gone.wait()
            return {"type": "http.disconnect"}
        piece = bytes(body.view[self._at : self._at + _PIECE_BYTE_SIZE])
        self._at += len(piece)
        more = self._at < len(body.view)
        if not more:
            self._release()
        return {"type": "http.request", "body": piece, "more_body": more}

    def _release(self) -> None:
        body, self._body = self._body, None
        if body is not None:
            body.release()

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            self._headers = [(bytes(name).title(), value) for name, value in message["headers"] if name != b"content-length"]
        elif message["type"] == "http.response.body":
            self._parts.append(message.get("body", b""))
            if not message.get("more_body", False):
                self.reply(Reply(self._status, self._headers, self._parts))

    def reply(self, reply: Reply) -> None:
        self._release()
        answer, self._answer = self._answer, None
        if answer is not None:
            answer(reply)

    def fail(self) -> None:
        """The app ended without a reply."""
        self.reply(Reply(500, (JSON_TYPE,), (error_body("internal error"),)))


async def _guarded(running: Awaitable[None], call: _Call) -> None:
    try:
        await running
    except Exception:
        _logger.exception("the HTTP app failed")
    finally:
        call.fail()


def _scope(request: HttpRequest) -> Scope:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": request.head.method,
        "scheme": "http",
        "path": request.head.path,
        "raw_path": request.head.path.encode("latin-1"),
        "query_string": request.head.query.encode("latin-1"),
        "root_path": "",
        "headers": request.head.headers,
        "client": None,
        "server": None,
        "state": {"peer_is_local": request.peer_is_local},
    }
