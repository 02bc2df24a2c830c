"""The doors of a front end: those of the server process, with what they cannot know asked there."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ..grpc.handlers import handlers
from ..grpc.listener import GrpcDoor
from ..http.app import http_app
from ..http.front import Front
from ..http.limits import Limits
from ..http.listener import HttpDoor
from ..http.restriction import Restrictions
from .relay import RelayedEndpoint, relayed_replies
from .remote_service import RemoteService


def http_door(service: RemoteService, stay_awake: Callable[[], None] = lambda: None) -> HttpDoor:
    """The HTTP door."""
    limits = Limits()
    restrictions = Restrictions(service.options.http_restricted_api)
    app = http_app(service, restrictions, limits, partial(RelayedEndpoint, service, restrictions))
    return Front(service, restrictions, app, limits=limits).door(stay_awake)


def grpc_door(service: RemoteService) -> GrpcDoor:
    """The gRPC door."""
    return GrpcDoor(service, handlers(service, service.options.grpc_restricted_protocol, relayed_replies(service)))
