"""The sockets of a port that clients come to."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Sequence
from typing import Any

from ...workers.contract.status import StatusError, unavailable

BACKLOG = 1024
"""How many clients may wait in the kernel's queue of a socket."""


def new_socket(address: str) -> socket.socket:
    """A socket that can be bound to an address. Raises OSError where there are no descriptors left."""
    return socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)


def bind(unbound: socket.socket, address: str, port: int, reuse_port: bool) -> None:
    """Bind a socket to ``address:port`` (0: a free port), shared with others where they all say so.

    Raises StatusError UNAVAILABLE where the port cannot be had.
    """
    try:
        bind_at(unbound, (address, port), reuse_port)
    except (OSError, OverflowError) as failure:
        raise _in_use(address, port) from failure


def bind_at(unbound: socket.socket, name: tuple[Any, ...], reuse_port: bool) -> None:
    """As ``bind``, by what ``getsockname`` says of another one. Raises what the system says."""
    unbound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if reuse_port:
        unbound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    unbound.bind(name)


def listen_together(unbound: Sequence[socket.socket], address: str, port: int, reuse_port: bool) -> int:
    """Bind sockets to the same port, which is returned, and listen: the system gives each new client to one of them.

    Another server that has the port is found all the same, unless ``reuse_port`` says that it may. Raises as ``bind``.
    """
    with contextlib.ExitStack() as meanwhile:
        if not reuse_port:
            # Those that share a port are not refused one another's. One that does not share it and listens is alone, and stays so until
            # the others listen as well.
            alone = meanwhile.enter_context(bound_socket(address, port, False))
            port = alone.getsockname()[1]
            _listen(alone, address, port)
            alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        for one in unbound:
            bind(one, address, port, True)
            port = one.getsockname()[1]
        for one in unbound:
            _listen(one, address, port)
    return port


def _listen(bound: socket.socket, address: str, port: int) -> None:
    try:
        bound.listen(BACKLOG)
    except OSError as failure:
        raise _in_use(address, port) from failure


def _in_use(address: str, port: int) -> StatusError:
    return unavailable(f"Socket '{address}:{port}' already in use ")


def bound_socket(address: str, port: int, reuse_port: bool) -> socket.socket:
    """A socket that is bound, as ``bind`` says. Raises OSError where there are no descriptors left."""
    bound = new_socket(address)
    try:
        bind(bound, address, port, reuse_port)
    except BaseException:
        bound.close()
        raise
    return bound
