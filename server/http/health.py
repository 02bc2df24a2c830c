"""Health: is the server alive, is it ready, is a model ready."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.routing import Route

from ...workers.contract.status import Code, StatusError
from .endpoint import Call, EndpointOf, empty_plain_reply
from .errors import error_reply, plain_error_reply
from .exchange import Reply

if TYPE_CHECKING:
    from ..service import Service

_YES = empty_plain_reply()
_NO = Reply(400, _YES.headers)


def _exiting() -> Reply:
    return error_reply(StatusError(Code.UNAVAILABLE, "Server exiting"))


def live(service: Service) -> Reply:
    """200 once the server has started, 400 before, 503 once it is exiting."""
    if service.exiting:
        return _exiting()
    return _YES if service.live else _NO


def ready(service: Service) -> Reply:
    """200 where the server may be sent requests."""
    if service.exiting:
        return _exiting()
    return _YES if service.ready() else _NO


async def asked_ready(service: Service, call: Call) -> Reply:
    """As ``ready``, asking the models that have a check of their own."""
    if service.exiting:
        return _exiting()
    return _YES if await service.asked_ready() else _NO


async def model_ready(service: Service, call: Call) -> Reply:
    """200 where a model version can run; that it is not there looks the same as that it cannot."""
    try:
        if await service.asked_version_ready(call.model, call.version):
            return _YES
    except StatusError as failure:
        if failure.code not in (Code.NOT_FOUND, Code.UNAVAILABLE):
            return error_reply(failure, plain=True)
    return plain_error_reply(400, "Model version not ready")


def routes(endpoint: EndpointOf) -> list[Route]:
    """Server health; the fast path answers the GETs of HTTP/1.1 before they come here."""
    return [
        Route("/v2/health/live", endpoint("health", {"GET": lambda service, call: live(service)}, plain=True)),
        Route("/v2/health/ready", endpoint("health", {"GET": asked_ready}, plain=True)),
    ]


def model_routes(endpoint: EndpointOf) -> list[Route]:
    """Model readiness."""
    app = endpoint("health", {"GET": model_ready}, plain=True)
    return [Route("/v2/models/{model}/versions/{version:digits}/ready", app), Route("/v2/models/{model}/ready", app)]
