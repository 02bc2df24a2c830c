"""What becomes of a Python model whose process ends."""

from __future__ import annotations

from ..servers import Server, wait_until
from .case import verb


def test_process_that_ends(python_servers: tuple[Server, Server]) -> None:
    """The request that it ran fails on both. Release 24.10 never starts it again, and says that it is ready; tensorfarm does both right."""
    theirs, ours = python_servers
    die, live = verb("dies", "die"), verb("dies", "live")
    before = [live.send(server.http_port) for server in python_servers]
    assert before[1].body == before[0].body
    expected, got = (die.send(server.http_port) for server in python_servers)
    assert (expected.status, expected.error) == (500, "Stub process 'dies_0_0' is not healthy.")
    assert got.status == 503
    assert "dies" in got.error
    assert live.send(theirs.http_port).error == expected.error
    assert theirs.model_ready("dies")
    wait_until(lambda: live.send(ours.http_port).body == before[1].body, "the model to be started again")
    assert ours.model_ready("dies")
