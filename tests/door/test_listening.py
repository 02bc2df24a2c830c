"""Sockets that share a port, and ports that somebody else has."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tensorfarm.server.door.listening import bound_socket, listen_together, new_socket
from tensorfarm.workers.contract.status import Code, StatusError

HERE = "127.0.0.1"


@pytest.fixture
def unbound() -> Iterator[list[socket.socket]]:
    sockets = [new_socket(HERE) for _ in range(3)]
    yield sockets
    for one in sockets:
        one.close()


def refusal(sockets: list[socket.socket], port: int, reuse_port: bool = False) -> StatusError:
    with pytest.raises(StatusError) as raised:
        listen_together(sockets, HERE, port, reuse_port)
    return raised.value


def test_all_of_them_have_the_port(unbound: list[socket.socket]) -> None:
    port = listen_together(unbound, HERE, 0, False)
    assert port and {one.getsockname() for one in unbound} == {(HERE, port)}


def test_each_of_those_that_listen_gets_clients(unbound: list[socket.socket]) -> None:
    port = listen_together(unbound, HERE, 0, False)
    for one in unbound:
        one.setblocking(False)
    clients = [socket.create_connection((HERE, port), 5.0) for _ in range(60)]
    accepted = [0, 0, 0]
    try:
        for number, one in enumerate(unbound):
            while True:
                try:
                    one.accept()[0].close()
                except BlockingIOError:
                    break
                accepted[number] += 1
    finally:
        for client in clients:
            client.close()
    assert sum(accepted) == len(clients) and min(accepted) > 0


def test_two_servers_that_start_together(unbound: list[socket.socket]) -> None:
    """Whoever listens first has the port, also while neither did when both were bound."""
    with bound_socket(HERE, 0, False) as other:
        port = other.getsockname()[1]
        assert listen_together(unbound, HERE, port, False) == port
        with pytest.raises(OSError, match="Address already in use"):
            other.listen()
        more = [new_socket(HERE)]
        with more[0]:
            assert refusal(more, port).code is Code.UNAVAILABLE


@pytest.mark.parametrize("theirs", [False, True], ids=["alone", "shared"])
def test_a_port_that_somebody_listens_at(unbound: list[socket.socket], theirs: bool) -> None:
    with bound_socket(HERE, 0, theirs) as other:
        other.listen()
        port = other.getsockname()[1]
        error = refusal(unbound, port)
        assert error.code is Code.UNAVAILABLE and error.message == f"Socket '{HERE}:{port}' already in use "


def test_a_port_that_is_shared_with_others(unbound: list[socket.socket]) -> None:
    with bound_socket(HERE, 0, True) as other:
        other.listen()
        port = other.getsockname()[1]
        assert listen_together(unbound, HERE, port, True) == port


def test_a_port_that_is_to_be_shared_with_somebody_who_does_not(unbound: list[socket.socket]) -> None:
    with bound_socket(HERE, 0, False) as other:
        other.listen()
        assert refusal(unbound, other.getsockname()[1], True).code is Code.UNAVAILABLE


def test_no_port(unbound: list[socket.socket]) -> None:
    assert refusal(unbound, 65536).message == f"Socket '{HERE}:65536' already in use "


def test_nothing_to_bind() -> None:
    assert listen_together([], HERE, 4321, True) == 4321
