"""Whether a gRPC client is on this host."""

from __future__ import annotations

from urllib.parse import unquote

from ..door import peer


def peer_is_local(name: str) -> bool:
    """What grpcio calls a peer: ``ipv4:127.0.0.1:4711``, ``ipv6:%5B::1%5D:4711``, ``unix:``. Only loopback addresses show it."""
    kind, _, rest = name.partition(":")
    if kind in ("unix", "unix-abstract"):
        return True
    host = unquote(rest).rpartition(":")[0].strip("[]")
    return peer.peer_is_local(host, "")
