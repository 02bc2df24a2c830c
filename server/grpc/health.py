"""Health: is the server alive, is it ready, is a model ready; also as the standard health service."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...workers.contract.status import Code, StatusError
from ..door.version_text import version_text
from .method import Method
from .protocol import messages
from .standard_files import HEALTH, message_class

if TYPE_CHECKING:
    from ..service import Service

_CheckResponse: Any = message_class(f"{HEALTH}.HealthCheckResponse")


def _live(service: Service, request: Any, peer_is_local: bool) -> Any:
    return messages.ServerLiveResponse(live=service.live)


async def _ready(service: Service, request: Any, peer_is_local: bool) -> Any:
    return messages.ServerReadyResponse(ready=await service.asked_ready())


async def _model_ready(service: Service, request: Any, peer_is_local: bool) -> Any:
    version = version_text(request.version)
    try:
        ready = await service.asked_version_ready(request.name, version)
    except StatusError as failure:
        if failure.code not in (Code.NOT_FOUND, Code.UNAVAILABLE):
            raise
        # That it is not there looks the same as that it cannot run.
        ready = False
    return messages.ModelReadyResponse(ready=ready)


async def _check(service: Service, request: Any, peer_is_local: bool) -> Any:
    serving = await service.asked_ready()
    return _CheckResponse(status="SERVING" if serving else "NOT_SERVING")


METHODS = {
    "ServerLive": Method("health", messages.ServerLiveRequest, _live),
    "ServerReady": Method("health", messages.ServerReadyRequest, _ready),
    "ModelReady": Method("health", messages.ModelReadyRequest, _model_ready),
}

STANDARD = {"Check": Method("health", message_class(f"{HEALTH}.HealthCheckRequest"), _check)}
"""The methods of ``grpc.health.v1.Health``."""
