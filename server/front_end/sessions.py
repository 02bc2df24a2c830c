"""Makes the sessions of a server's front ends: they share what answers all that is no inference."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..grpc.handlers import unary_replies
from ..http.asgi_call import AsgiCalls
from ..http.front import own_app
from ..http.limits import Limits
from ..http.restriction import Restrictions
from .messages import ToFrontEnd
from .session import Session

if TYPE_CHECKING:
    from ..service import Service


class Sessions:
    """Those of one service."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._http = AsgiCalls(own_app(service, Restrictions(service.options.http_restricted_api), Limits()))
        self._rpc = unary_replies(service)

    def begin(self, tell: Callable[[ToFrontEnd], None], share: Callable[[int], None], arena: int) -> Session:
        """The session of a front end that has come; its parameters are those of ``Session``."""
        return Session(self._service, tell, share, arena, self._http, self._rpc)

    async def close(self) -> None:
        """Cancel what is under way."""
        await self._http.close()
