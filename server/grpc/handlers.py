"""Which handler answers which method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import grpc

from ..door.restriction import restrictions
from . import health, metadata, model_repository, settings, shared_memory, statistics_method
from .infer import Infer
from .method import UnaryMethod
from .protocol import HEALTH_SERVICE, SERVICE
from .stream import StreamInfer

if TYPE_CHECKING:
    from ..service import Service

RESTRICTION_PREFIX = "triton-grpc-protocol-"

_METHODS = {
    f"/{SERVICE}/{name}": method
    for methods in (
        health.METHODS,
        metadata.METHODS,
        statistics_method.METHODS,
        model_repository.METHODS,
        shared_memory.METHODS,
        settings.METHODS,
    )
    for name, method in methods.items()
} | {f"/{HEALTH_SERVICE}/{name}": method for name, method in health.STANDARD.items()}


class Handlers(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpcio has no stubs
    """The methods of the service, for grpcio. ``rules``: protocol category → (key, value), as ``--grpc-restricted-protocol`` gives them.

    All of them take and give bytes: what inference reads and writes does not go through message objects.
    """

    def __init__(self, service: Service, rules: Mapping[str, tuple[str, str]]) -> None:
        found = restrictions(rules, RESTRICTION_PREFIX)
        infer, stream = Infer(service, found.get("inference")), StreamInfer(service, found.get("inference"))
        self._handlers = {
            path: grpc.unary_unary_rpc_method_handler(UnaryMethod(service, method, found).answer) for path, method in _METHODS.items()
        }
        self._handlers[f"/{SERVICE}/ModelInfer"] = grpc.unary_unary_rpc_method_handler(infer.answer)
        self._handlers[f"/{SERVICE}/ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(stream.answer)

    def service(self, handler_call_details: Any) -> Any:
        """The handler of a method; None for one that there is not."""
        return self._handlers.get(handler_call_details.method)
