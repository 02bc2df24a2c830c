"""What a front end passes on to the server process as it came: everything but inferences."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, TypeVar

from ...workers.contract.status import StatusError
from ..grpc.handlers import METHODS
from ..grpc.method import UnaryReply
from ..http.endpoint import Call, Endpoint, Receive, Scope, unless_gone
from ..http.exchange import Reply
from ..http.restriction import Restrictions
from .messages import AnsweredHttp
from .remote_service import RemoteService

T = TypeVar("T")


def _settle(outcome: asyncio.Future[T], answer: T) -> None:
    # Whoever waited may have been cancelled in this very turn.
    if not outcome.done():
        outcome.set_result(answer)


class RelayedEndpoint(Endpoint):
    """An endpoint that the server process answers, for the methods that have handlers there."""

    def __init__(
        self, service: RemoteService, restrictions: Restrictions, category: str, handlers: Mapping[str, Any], plain: bool = False
    ) -> None:
        methods: Iterable[str] = handlers
        super().__init__(service.admission, service.options.http_max_input_size, restrictions, category, methods, plain)
        self._service = service

    async def answer(self, call: Call, scope: Scope, receive: Receive) -> Reply:
        """As the base class says."""
        return await unless_gone(self._ask(call, scope), receive)

    async def _ask(self, call: Call, scope: Scope) -> Reply:
        outcome: asyncio.Future[AnsweredHttp] = asyncio.get_running_loop().create_future()
        query = scope["query_string"].decode("latin-1")
        method, path = scope["method"], scope["path"]
        asking = self._service.ask_http(method, path, query, call.headers, call.body, call.peer_is_local, partial(_settle, outcome))
        try:
            answer = await outcome
        finally:
            asking.cancel()
        return Reply(answer.status, [one for one in answer.headers if one[0].lower() != b"content-length"], (answer.body,))


def relayed_replies(service: RemoteService) -> dict[str, UnaryReply]:
    """What answers each unary gRPC method that is no inference, by path: the server process."""
    return {path: _RelayedReply(service, path) for path in METHODS}


class _RelayedReply:
    """A ``UnaryReply``."""

    __slots__ = ("_path", "_service")

    def __init__(self, service: RemoteService, path: str) -> None:
        self._service = service
        self._path = path

    async def __call__(self, content: bytes, peer_is_local: bool) -> bytes:
        outcome: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        def refused(error: StatusError) -> None:
            if not outcome.done():
                outcome.set_exception(error)

        asking = self._service.ask_rpc(self._path, content, peer_is_local, partial(_settle, outcome), refused)
        try:
            return await outcome
        finally:
            asking.cancel()
