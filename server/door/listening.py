"""The sockets of a port that clients come to."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Sequence

from ...workers.contract.status import unavailable


def new_socket(address: str) -> socket.socket:
    """A socket that can be bound to an address. Raises OSError where there are no descriptors left."""
    return socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)


def bind(unbound: socket.socket, address: str, port: int, reuse_port: bool) -> None:
    """Bind a socket to ``address:port`` (0: a free port), shared with others where they all say so.

    Raises StatusError UNAVAILABLE where the port cannot be had.
    """
    try:
        unbound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            unbound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        unbound.bind((address, port))
    except (OSError, OverflowError) as failure:
        raise unavailable(f"Socket '{address}:{port}' already in use ") from failure


def bind_all(unbound: Sequence[socket.socket], address: str, port: int, reuse_port: bool) -> int:
    """Bind sockets to the same port, which is returned: the system gives each new client to one of those that listen.

    Another server that has the port is found all the same, unless ``reuse_port`` says that it may. Raises as ``bind``.
    """
    with contextlib.ExitStack() as meanwhile:
        if not reuse_port:
            # Those that share a port are not refused one another's. Nobody gets it before they do: this one does not listen.
            probe = meanwhile.enter_context(bound_socket(address, port, False))
            port = probe.getsockname()[1]
        for one in unbound:
            bind(one, address, port, True)
            port = one.getsockname()[1]
    return port


def bound_socket(address: str, port: int, reuse_port: bool) -> socket.socket:
    """A socket that is bound, as ``bind`` says. Raises OSError where there are no descriptors left."""
    bound = new_socket(address)
    try:
        bind(bound, address, port, reuse_port)
    except BaseException:
        bound.close()
        raise
    return bound
