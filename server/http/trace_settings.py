"""The trace extension's endpoints, as a build without tracing answers them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.routing import Route

from ...workers.contract.status import unavailable
from .endpoint import Call, EndpointOf
from .exchange import Reply

if TYPE_CHECKING:
    from ..service import Service


def _refuse(service: Service, call: Call) -> Reply:
    raise unavailable("the server does not support tracing")


def model_routes(endpoint: EndpointOf) -> list[Route]:
    """Trace settings of a model; there are none per version."""
    return [Route("/v2/models/{model}/trace/setting", endpoint("trace", {"GET": _refuse, "POST": _refuse}))]


def routes(endpoint: EndpointOf) -> list[Route]:
    """Trace settings of the server."""
    return [Route("/v2/trace/setting", endpoint("trace", {"GET": _refuse, "POST": _refuse}))]
