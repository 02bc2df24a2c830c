"""An endpoint of the ASGI app: checks that come before its handler, and the handler's reply put on the wire."""

from __future__ import annotations

import asyncio
import inspect
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.types import Receive as Receive
from starlette.types import Scope as Scope
from starlette.types import Send

from ...workers.contract.json_writing import write
from ...workers.contract.status import StatusError, invalid
from ..admission import Admission
from ..door.bringing import bring
from ..door.peer import peer_is_local
from ..door.version_text import version_text
from ..repository.demand import NotResident
from .asgi_stream import disconnect
from .errors import JSON_TYPE, PLAIN_TYPE, error_body, error_reply, plain_error_reply
from .exchange import Reply
from .restriction import Restrictions

if TYPE_CHECKING:
    from ..service import Service

T = TypeVar("T")

_logger = logging.getLogger(__name__)
_PIECE_BYTE_SIZE = 256 * 1024


@dataclass(slots=True)
class Call:
    """A request to an endpoint: ``params`` are the path's variable parts, never percent-decoded."""

    params: Mapping[str, str]
    body: bytes = b""
    peer_is_local: bool = False
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)

    @property
    def model(self) -> str:
        return self.params["model"]

    @property
    def version(self) -> str:
        """The version in the path, or "". Raises INVALID_ARG where it is no 64-bit number."""
        return version_text(self.params.get("version", ""))


Handler = Callable[["Service", Call], Reply | Awaitable[Reply]]


def json_reply(document: object) -> Reply:
    """A 200 with a JSON document."""
    return Reply(200, (JSON_TYPE,), (write(document),))


def empty_json_reply() -> Reply:
    """A 200 without a body, as the state-changing endpoints send it."""
    return Reply(200, (JSON_TYPE,))


def empty_plain_reply() -> Reply:
    """A 200 without a body, as health checks send it."""
    return Reply(200, (PLAIN_TYPE,))


def not_allowed(plain: bool) -> Reply:
    """The 405 of a route that exists."""
    reply = plain_error_reply(405, "Method Not Allowed")
    return reply if plain else Reply(405, (JSON_TYPE,), reply.body)


def scope_peer_is_local(scope: Scope) -> bool:
    """Whether a request's client is on this host."""
    state = scope.get("state") or {}
    if "peer_is_local" in state:
        return bool(state["peer_is_local"])
    client, server = scope.get("client"), scope.get("server")
    return client is not None and server is not None and peer_is_local(str(client[0]), str(server[0]))


class Disconnected(Exception):
    """The client went away before its request was complete."""


async def read_body(receive: Receive, byte_size_limit: int, admission: Admission, admitted: bool = False) -> bytes:
    """A request's whole body, which counts as held until the caller lets go of it. ``admitted``: it is here, and has been let in.

    Raises Disconnected, and StatusError where it is larger than the limit or there is no room for it now.
    """
    pieces: list[bytes] = []
    byte_size = 0
    try:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Disconnected
            piece = message.get("body", b"")
            if byte_size + len(piece) > byte_size_limit:
                raise invalid(
                    f"request body exceeds the maximum allowed input size of {byte_size_limit} bytes. "
                    "Use --http-max-input-size to increase the limit."
                )
            if piece:
                if not admitted:
                    admission.check_bytes(len(piece))
                admission.hold(len(piece))
                byte_size += len(piece)
                pieces.append(piece)
            if not message.get("more_body", False):
                return b"".join(pieces)
    except BaseException:
        admission.let_go(byte_size)
        raise


async def send_reply(reply: Reply, scope: Scope, send: Send) -> None:
    """Send a reply as ASGI messages; ``on_sent`` follows the last of them."""
    try:
        size = sum(part.nbytes if isinstance(part, memoryview) else len(part) for part in reply.body)
        headers = [(name.lower(), value) for name, value in reply.headers]
        if not any(name == b"content-type" for name, _ in headers):
            headers.append((b"content-type", PLAIN_TYPE[1]))
        headers.append((b"content-length", b"%d" % size))
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        for part in () if scope["method"] == "HEAD" else reply.body:
            view = memoryview(part).cast("B")
            for start in range(0, len(view), _PIECE_BYTE_SIZE):
                await send({"type": "http.response.body", "body": bytes(view[start : start + _PIECE_BYTE_SIZE]), "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    finally:
        if reply.on_sent is not None:
            reply.on_sent()


async def unless_gone(work: Coroutine[Any, Any, T], receive: Receive) -> T:
    """The result of ``work``; cancels it and raises Disconnected where the client goes first."""
    working, gone = asyncio.ensure_future(work), asyncio.ensure_future(disconnect(receive))
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Disconnected
        return working.result()
    finally:
        working.cancel()
        gone.cancel()


class Guard:
    """What stands before a route: its restricted-API category, then its methods."""

    def __init__(self, restrictions: Restrictions, category: str, methods: tuple[str, ...], plain: bool) -> None:
        self._restrictions = restrictions
        self._category = category
        self._methods = methods
        self._plain = plain

    def refusal(self, scope: Scope) -> Reply | None:
        """The 403 or 405 for a request, or None where it may pass."""
        refused = self._restrictions.refusal(self._category, scope["headers"])
        if refused is None and scope["method"] not in self._methods:
            refused = not_allowed(self._plain)
        return refused


def _foreign_page(scope: Scope) -> Reply | None:
    """The 403 for a change that a web page of another site has its visitor's browser ask for, or None."""
    if scope["method"] == "GET" or (b"sec-fetch-site", b"cross-site") not in scope["headers"]:
        return None
    return plain_error_reply(403, "This API is not for web pages of other sites")


class Endpoint(ABC):
    """The ASGI app of one route for these methods.

    ``plain`` routes send their 405 as text/plain. A StatusError of ``answer`` becomes its JSON error,
    any other exception a 500 that tells the client nothing.
    """

    def __init__(
        self, admission: Admission, most_body_byte_size: int, restrictions: Restrictions, category: str, methods: Iterable[str], plain: bool
    ) -> None:
        self._admission = admission
        self._most_body_byte_size = most_body_byte_size
        self._guard = Guard(restrictions, category, tuple(methods), plain)

    @abstractmethod
    async def answer(self, call: Call, scope: Scope, receive: Receive) -> Reply:
        """The reply to a call that has been received. Raises StatusError, and Disconnected where nobody waits for it any more."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            reply = self._guard.refusal(scope) or _foreign_page(scope) or await self._handle(scope, receive)
        except StatusError as failure:
            reply = error_reply(failure)
        except Disconnected:
            return
        except Exception:
            _logger.exception("an HTTP handler failed")
            reply = Reply(500, (JSON_TYPE,), (error_body("internal error"),))
        await send_reply(reply, scope, send)

    async def _handle(self, scope: Scope, receive: Receive) -> Reply:
        admission = self._admission
        # A connection of our own has received all of it, and counts it until the last piece has been taken.
        admitted = scope["http_version"] == "1.1"
        body = await read_body(receive, self._most_body_byte_size, admission, admitted)
        try:
            return await self.answer(Call(scope["path_params"], body, scope_peer_is_local(scope), scope["headers"]), scope, receive)
        finally:
            admission.let_go(len(body))


class ServiceEndpoint(Endpoint):
    """An endpoint that the service itself answers. ``handlers``: method → handler."""

    def __init__(
        self, service: Service, restrictions: Restrictions, category: str, handlers: Mapping[str, Handler], plain: bool = False
    ) -> None:
        super().__init__(service.admission, service.options.http_max_input_size, restrictions, category, handlers, plain)
        self._service = service
        self._handlers = handlers

    async def answer(self, call: Call, scope: Scope, receive: Receive) -> Reply:
        """As the base class says."""
        handler = partial(self._handlers[scope["method"]], self._service, call)
        try:
            reply = handler()
        except NotResident as absent:
            reply = await unless_gone(bring(self._service, absent, handler), receive)
        return await reply if inspect.isawaitable(reply) else reply


EndpointOf = Callable[..., Endpoint]
"""Makes an endpoint of its category, its handlers by method, and whether it is ``plain``: what route files take."""
