"""The messages of the protocol's gRPC service.

Source: Triton's ``grpc_service.proto``, as generated code in the tritonclient package.
"""

from __future__ import annotations

from typing import Any

from tritonclient.grpc import service_pb2

from ...workers.contract.status import Code, StatusError

messages: Any = service_pb2
"""The generated module: every message class of the service."""

SERVICE = "inference.GRPCInferenceService"
HEALTH_SERVICE = "grpc.health.v1.Health"


class Unparsable(StatusError):
    """Bytes that are not the message that a method takes."""

    def __init__(self) -> None:
        super().__init__(Code.INTERNAL, "Unable to parse request")
