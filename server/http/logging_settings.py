"""The logging extension: reads and changes the log's settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.routing import Route

from . import json_text
from .endpoint import Call, EndpointOf, json_reply
from .exchange import Reply

if TYPE_CHECKING:
    from ..service import Service


def _show(service: Service, call: Call) -> Reply:
    return json_reply(service.log_settings.as_dict())


def _update(service: Service, call: Call) -> Reply:
    document = json_text.parse(call.body)
    service.log_settings.update(document if isinstance(document, dict) else {})
    return _show(service, call)


def routes(endpoint: EndpointOf) -> list[Route]:
    """The log's settings."""
    return [Route("/v2/logging", endpoint("logging", {"GET": _show, "POST": _update}))]
