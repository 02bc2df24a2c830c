"""The gRPC port: opened, drained, closed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc

from ...workers.contract.status import unavailable
from ..options import Options
from .handlers import Handlers

if TYPE_CHECKING:
    from ..service import Service

_COMPRESSION_LEVELS = {"none": 0, "low": 1, "medium": 2, "high": 3}
_UNBOUNDED = 2**31 - 1


def channel_arguments(options: Options) -> list[tuple[str, int]]:
    """What the flags say, as gRPC's core takes it. Times are in milliseconds."""
    arguments = [
        ("grpc.so_reuseport", int(options.reuse_grpc_port)),
        ("grpc.max_receive_message_length", _UNBOUNDED),
        ("grpc.max_send_message_length", _UNBOUNDED),
        ("grpc.keepalive_time_ms", options.grpc_keepalive_time),
        ("grpc.keepalive_timeout_ms", options.grpc_keepalive_timeout),
        ("grpc.keepalive_permit_without_calls", int(options.grpc_keepalive_permit_without_calls)),
        ("grpc.http2.max_pings_without_data", options.grpc_http2_max_pings_without_data),
        ("grpc.http2.min_ping_interval_without_data_ms", options.grpc_http2_min_recv_ping_interval_without_data),
        ("grpc.http2.max_ping_strikes", options.grpc_http2_max_ping_strikes),
    ]
    if options.grpc_max_connection_age:
        arguments.append(("grpc.max_connection_age_ms", options.grpc_max_connection_age))
    if options.grpc_max_connection_age_grace:
        arguments.append(("grpc.max_connection_age_grace_ms", options.grpc_max_connection_age_grace))
    return arguments


class GrpcDoor:
    """The port, and the calls that came by it."""

    def __init__(self, service: Service) -> None:
        self._options = service.options
        self._handlers = Handlers(service, service.options.grpc_restricted_protocol)
        self._server: Any | None = None
        self.port = 0

    async def start(self, credentials: Any | None) -> None:
        """Open the port. Raises StatusError UNAVAILABLE."""
        options = self._options
        server = grpc.aio.server(handlers=(self._handlers,), options=channel_arguments(options))
        host = f"[{options.grpc_address}]" if ":" in options.grpc_address else options.grpc_address
        address = f"{host}:{options.grpc_port}"
        try:
            self.port = server.add_insecure_port(address) if credentials is None else server.add_secure_port(address, credentials)
        except RuntimeError:
            raise unavailable(f"Socket '{address}' already in use ") from None
        await server.start()
        self._server = server

    async def stop(self, grace_s: float) -> None:
        """Take no more calls; those that run have so many seconds."""
        if self._server is not None:
            await self._server.stop(grace_s)
