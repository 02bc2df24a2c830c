"""A unary method of the service: the checks before its handler, and the handler's outcome on the wire."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError, Message

from ...workers.contract.status import StatusError, internal, unavailable
from ..door.body import Body
from ..door.bringing import bring
from ..door.restriction import Restriction
from ..repository.demand import NotResident
from .protocol import Unparsable
from .rpc import Rpc, nothing

if TYPE_CHECKING:
    from ..service import Service

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Method:
    """A unary method: its category for ``--grpc-restricted-protocol``, the message it takes, and what makes its reply.

    ``handler`` gives a message or something that awaits one, and may raise StatusError or NotResident.
    """

    category: str
    request: Callable[[], Message]
    handler: Callable[[Service, Any, bool], Message | Awaitable[Message]]
    """Also gets whether the client is on this host."""


UnaryReply = Callable[[bytes, bool], Awaitable[bytes]]
"""Answers a unary call: the reply's message for a request's message, and whether its client is on this host. Raises StatusError."""


def check_restriction(rule: Restriction | None, rpc: Rpc) -> None:
    """Raises StatusError UNAVAILABLE where a call lacks what its category needs."""
    if rule is None:
        return
    given = rpc.head.value(rule.header.lower())
    if not rule.met_by(given.encode("utf-8", "surrogateescape") if isinstance(given, str) else given):
        raise unavailable(f"This protocol is restricted, expecting header '{rule.header}'")


class SingleMessage:
    """Takes the one message of a unary call. ``run`` gets it once the client has ended its side, and owns it then."""

    __slots__ = ("_body", "_rpc", "_run", "on_gone")
    idle = False

    def __init__(self, rpc: Rpc, run: Callable[[Rpc, Body], Callable[[], None] | None]) -> None:
        self._rpc = rpc
        self._run: Callable[[Rpc, Body], Callable[[], None] | None] | None = run
        self._body: Body | None = None
        self.on_gone: Callable[[], None] | None = None

    def message(self, body: Body) -> None:
        """As ``Receiver`` says."""
        if self._body is not None:
            body.release()
            self._rpc.fail(internal("more than one message in a unary call"))
            self.gone()
        elif self._run is None:
            body.release()
        else:
            self._body = body

    def ended(self) -> None:
        """As ``Receiver`` says."""
        body, self._body = self._body, None
        run, self._run = self._run, None
        if run is None:
            return
        if body is None:
            self._rpc.fail(internal("no message in a unary call"))
            return
        self.on_gone = run(self._rpc, body)

    def gone(self) -> None:
        """As ``Receiver`` says."""
        body, self._body = self._body, None
        self._run = None
        if body is not None:
            body.release()
        on_gone, self.on_gone = self.on_gone, None
        if on_gone is not None:
            on_gone()


class UnaryMethod:
    """Begins calls of a method that ``reply`` answers."""

    def __init__(self, reply: UnaryReply, rule: Restriction | None) -> None:
        self._reply = reply
        self._rule = rule

    def begin(self, rpc: Rpc) -> SingleMessage:
        """What takes a call's message. Raises StatusError where the call may not be made."""
        check_restriction(self._rule, rpc)
        return SingleMessage(rpc, self._run)

    def _run(self, rpc: Rpc, body: Body) -> Callable[[], None]:
        content = bytes(body.view)
        body.release()
        task = asyncio.get_running_loop().create_task(self._answer(rpc, content))
        # The loop itself keeps no task alive.
        task.add_done_callback(partial(_ended, rpc))
        return partial(_cancel, task)

    async def _answer(self, rpc: Rpc, content: bytes) -> None:
        try:
            message = await self._reply(content, rpc.peer_is_local)
        except StatusError as error:
            rpc.fail(error)
        else:
            rpc.reply((message,), nothing)


async def reply(service: Service, method: Method, content: bytes, peer_is_local: bool) -> bytes:
    """A ``UnaryReply`` of the service itself."""
    request = method.request()
    try:
        request.ParseFromString(content)
    except DecodeError:
        raise Unparsable from None

    def run() -> Message | Awaitable[Message]:
        return method.handler(service, request, peer_is_local)

    try:
        message = run()
    except NotResident as absent:
        message = await bring(service, absent, run)
    message = await message if inspect.isawaitable(message) else message
    return bytes(message.SerializeToString())


def _ended(rpc: Rpc, task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        _logger.error("a gRPC handler failed", exc_info=task.exception())
        rpc.fail(internal("internal error"))


def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
