"""The generate extension's endpoints, as a build without it answers them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.routing import Route

from ...workers.contract.status import unsupported
from .endpoint import Call, EndpointOf
from .exchange import Reply

if TYPE_CHECKING:
    from ..service import Service


def _refuse(service: Service, call: Call) -> Reply:
    service.find(call.model, call.version)
    raise unsupported("the server does not support the generate extension")


def model_routes(endpoint: EndpointOf) -> list[Route]:
    """Both forms of it, with and without a version."""
    app = endpoint("inference", {"POST": _refuse})
    return [
        Route(f"/v2/models/{{model}}{version}/{name}", app)
        for name in ("generate", "generate_stream")
        for version in ("/versions/{version:digits}", "")
    ]
