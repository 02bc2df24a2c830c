"""Inference by a path's model and version; and through the ASGI app, which is what HTTP/2 clients reach."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from ...workers.contract.status import StatusError
from .body import Growing
from .endpoint import Disconnected, Guard, scope_peer_is_local, send_reply, version_text
from .errors import JSON_TYPE, error_body, error_reply, plain_error_reply
from .exchange import Answer, Body, Cancel, Head, HttpRequest, Reply
from .head import Malformed
from .infer import infer
from .infer_head import infer_head
from .limits import Limits
from .restriction import Restrictions

if TYPE_CHECKING:
    from ..service import Service

_logger = logging.getLogger(__name__)


def infer_guarded(service: Service, model: str, version: str, request: HttpRequest, answer: Answer) -> Cancel | None:
    """Hand a request to ``infer`` once its version is known to be a number; takes over its body in any case."""
    try:
        version = version_text(version)
    except StatusError as failure:
        request.body.release()
        answer(error_reply(failure, plain=True))
        return None
    head = request.head.seen = infer_head(request.head, model, version)
    return infer(service, head, request, answer)


class InferenceApp:
    """The ASGI app of the inference routes."""

    def __init__(self, service: Service, restrictions: Restrictions, limits: Limits) -> None:
        self._service = service
        self._guard = Guard(restrictions, "inference", ("POST",), plain=True)
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            reply = self._guard.refusal(scope) or await self._infer(scope, receive)
        except StatusError as failure:
            reply = error_reply(failure)
        except Malformed as failure:
            reply = plain_error_reply(failure.status, failure.message)
        except Disconnected:
            return
        except Exception:
            _logger.exception("inference over HTTP/2 failed")
            reply = Reply(500, (JSON_TYPE,), (error_body("internal error"),))
        await send_reply(reply, scope, send)

    async def _infer(self, scope: Scope, receive: Receive) -> Reply:
        start_ns = time.monotonic_ns()
        arena = self._service.arena
        body = await _received(receive, Growing(arena, self._limits))
        headers = scope["headers"]
        head = Head(scope["method"], scope["path"], headers, [name for name, _ in headers], scope["query_string"].decode("latin-1"))
        request = HttpRequest(head, body, start_ns, scope_peer_is_local(scope))
        answered: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()

        def answer(reply: Reply) -> None:
            if not answered.done():
                answered.set_result(reply)
            elif reply.on_sent is not None:
                reply.on_sent()

        params = scope["path_params"]
        cancel = infer_guarded(self._service, params["model"], params.get("version", ""), request, answer)
        return await self._answer_or_disconnect(answered, receive, cancel)

    async def _answer_or_disconnect(self, answered: asyncio.Future[Reply], receive: Receive, cancel: Cancel | None) -> Reply:
        """Wait for the reply; cancels the request where the client goes first."""
        if answered.done():
            return answered.result()
        gone = asyncio.ensure_future(_disconnect(receive))
        try:
            try:
                await asyncio.wait((answered, gone), return_when=asyncio.FIRST_COMPLETED)
            except asyncio.CancelledError:
                # Answered in the very turn in which the connection ended: nobody else gives the outputs back.
                if answered.done() and (on_sent := answered.result().on_sent) is not None:
                    on_sent()
                raise
            if not answered.done():
                raise Disconnected
            return answered.result()
        finally:
            gone.cancel()
            if not answered.done():
                answered.cancel()
                if cancel is not None:
                    cancel()


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


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def model_routes(service: Service, restrictions: Restrictions, limits: Limits) -> list[Route]:
    """Inference with a model."""
    app = InferenceApp(service, restrictions, limits)
    return [Route("/v2/models/{model}/versions/{version:digits}/infer", app), Route("/v2/models/{model}/infer", app)]
