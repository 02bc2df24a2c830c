"""The socket of a port that clients come to."""

from __future__ import annotations

import errno
import socket

from ...workers.contract.status import unavailable


def bound_socket(address: str, port: int, reuse_port: bool) -> socket.socket:
    """A socket bound to ``address:port`` (0: a free port), shared with other processes where they all say so.

    Raises StatusError UNAVAILABLE where the port cannot be had, OSError where there are no descriptors left.
    """
    bound = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind((address, port))
    except (OSError, OverflowError) as failure:
        bound.close()
        if isinstance(failure, OSError) and failure.errno == errno.EMFILE:
            raise
        raise unavailable(f"Socket '{address}:{port}' already in use ") from failure
    return bound
