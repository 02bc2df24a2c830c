"""A unary method of the service: the checks before its handler, and the handler's outcome on the wire."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
from google.protobuf.message import DecodeError, Message

from ...workers.contract.status import Code, StatusError, internal, unavailable
from ..admission import Overloaded
from ..door.bringing import bring
from ..door.restriction import Restriction
from ..repository.demand import NotResident
from .peer import peer_is_local
from .protocol import Unparsable

if TYPE_CHECKING:
    from ..service import Service

_logger = logging.getLogger(__name__)

_STATUSES = {
    Code.UNKNOWN: grpc.StatusCode.UNKNOWN,
    Code.INTERNAL: grpc.StatusCode.INTERNAL,
    Code.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Code.INVALID_ARG: grpc.StatusCode.INVALID_ARGUMENT,
    Code.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    Code.UNSUPPORTED: grpc.StatusCode.UNIMPLEMENTED,
    Code.ALREADY_EXISTS: grpc.StatusCode.ALREADY_EXISTS,
    Code.CANCELLED: grpc.StatusCode.CANCELLED,
}

Context = Any
"""grpcio's ``grpc.aio.ServicerContext``, which has no type stubs."""


def status_code(code: Code) -> grpc.StatusCode:
    """The gRPC status of an error code."""
    return _STATUSES[code]


def pushback(error: StatusError) -> tuple[tuple[str, str], ...]:
    """Trailing metadata that say when to try again, in milliseconds. Source: gRPC proposal A6, "Pushback"."""
    return (("grpc-retry-pushback-ms", str(error.retry_after_s * 1000)),) if isinstance(error, Overloaded) else ()


async def refuse(context: Context, error: StatusError) -> NoReturn:
    """End a call with an error."""
    await context.abort(status_code(error.code), error.message, pushback(error))
    raise AssertionError("abort has not raised")


@dataclass(slots=True)
class Call:
    """What a handler may want to know of a call besides its request."""

    context: Context

    @property
    def peer_is_local(self) -> bool:
        """Is the client on this host?"""
        return peer_is_local(self.context.peer())


@dataclass(frozen=True, slots=True)
class Method:
    """A unary method: its category for ``--grpc-restricted-protocol``, the message it takes, and what makes its reply.

    ``handler`` gives a message or something that awaits one, and may raise StatusError or NotResident.
    """

    category: str
    request: Callable[[], Message]
    handler: Callable[[Service, Any, Call], Message | Awaitable[Message]]


def check_restriction(rule: Restriction | None, context: Context) -> None:
    """Raises StatusError UNAVAILABLE where a call lacks what its category needs."""
    if rule is None:
        return
    key = rule.header.lower()
    given = next((value for name, value in context.invocation_metadata() or () if name == key), None)
    if not rule.met_by(given.encode("utf-8", "surrogateescape") if isinstance(given, str) else given):
        raise unavailable(f"This protocol is restricted, expecting header '{rule.header}'")


class UnaryMethod:
    """A method as grpcio calls it: bytes in, bytes out."""

    def __init__(self, service: Service, method: Method, restrictions: Mapping[str, Restriction]) -> None:
        self._service = service
        self._method = method
        self._rule = restrictions.get(method.category)

    async def answer(self, content: bytes, context: Context) -> bytes:
        """Answer one call."""
        try:
            check_restriction(self._rule, context)
            return await self._answer(content, Call(context))
        except StatusError as error:
            failure = error
        except Exception:
            _logger.exception("a gRPC handler failed")
            failure = internal("internal error")
        await refuse(context, failure)

    async def _answer(self, content: bytes, call: Call) -> bytes:
        request = self._method.request()
        try:
            request.ParseFromString(content)
        except DecodeError:
            raise Unparsable from None

        def run() -> Message | Awaitable[Message]:
            return self._method.handler(self._service, request, call)

        try:
            reply = run()
        except NotResident as absent:
            reply = await bring(self._service, absent, run)
        message = await reply if inspect.isawaitable(reply) else reply
        return bytes(message.SerializeToString())
