"""Whether a client is on this host: what ``--allow-client-shm`` left unset turns on."""

from __future__ import annotations

import asyncio
import ipaddress


def peer_is_local(peer: str, own: str) -> bool:
    """True where the addresses of a connection's two ends show that both are this host's.

    ``peer`` and ``own`` are the hosts of the socket's remote and local address.
    """
    if peer == own and peer:
        return True
    try:
        address = ipaddress.ip_address(peer.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped.is_loopback
    return address.is_loopback


def transport_peer_is_local(transport: asyncio.BaseTransport) -> bool:
    """As ``peer_is_local``, of the two ends of a connection."""
    peer, own = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
    return isinstance(peer, tuple) and isinstance(own, tuple) and peer_is_local(str(peer[0]), str(own[0]))
