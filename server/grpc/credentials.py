"""TLS of the gRPC port, as the flags ask for it."""

from __future__ import annotations

from typing import Any

from ...workers.contract.status import invalid
from ..log import Log
from ..options import Options


def credentials_of(options: Options, log: Log) -> Any | None:
    """The server's credentials; None: plain gRPC. Raises StatusError INVALID_ARG."""
    named = {
        "--grpc-server-cert": options.grpc_server_cert,
        "--grpc-server-key": options.grpc_server_key,
        "--grpc-root-cert": options.grpc_root_cert,
    }
    if not options.grpc_use_ssl:
        return None
    raise invalid(str(named))
