"""The HTTP API as one ASGI app: the routes of every endpoint family, in the reference's order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.convertors import Convertor, register_url_convertor
from starlette.routing import Router
from starlette.types import ASGIApp, Receive, Scope, Send

from . import (
    generate,
    health,
    inference,
    logging_settings,
    metadata,
    model_repository,
    shared_memory,
    statistics_routes,
    trace_settings,
)
from .endpoint import EndpointOf, send_reply
from .errors import plain_error_reply
from .limits import Limits
from .restriction import Restrictions

if TYPE_CHECKING:
    from ..inference_service import InferenceService

_NOT_FOUND = plain_error_reply(404, "Not Found")


class _Digits(Convertor[str]):
    """A path's version: digits, kept as they were written."""

    regex = "[0-9]+"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("digits", _Digits())


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:
    await send_reply(_NOT_FOUND, scope, send)


class RawPath:
    """Routes by the path as the client sent it: nothing is percent-decoded, slashes count. HTTP only."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            raw = scope.get("raw_path")
            await self._app({**scope, "path": raw.decode("latin-1")} if raw is not None else scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close"})


def http_app(service: InferenceService, restrictions: Restrictions, limits: Limits, endpoint: EndpointOf) -> ASGIApp:
    """The app; ``limits`` says where request bodies of inference go, ``endpoint`` makes what answers everything else."""
    routes = [
        *statistics_routes.routes(endpoint),
        *logging_settings.routes(endpoint),
        *inference.model_routes(service, restrictions, limits),
        *generate.model_routes(service, restrictions, limits),
        *health.model_routes(endpoint),
        *statistics_routes.model_routes(endpoint),
        *trace_settings.model_routes(endpoint),
        *metadata.model_routes(endpoint),
        *metadata.routes(endpoint),
        *health.routes(endpoint),
        *shared_memory.routes(endpoint),
        *model_repository.routes(endpoint),
        *trace_settings.routes(endpoint),
    ]
    return RawPath(Router(routes, redirect_slashes=False, default=_not_found))
