"""The server's end of a link: every message is received, whatever else happens in the same turn."""

from __future__ import annotations

import contextlib
import itertools
import select
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq

from tensorfarm.server.farm.channel import Channel, new_context
from tensorfarm.workers.contract.messages import Close, Hello, Loaded, Return

PATIENCE_MS = 10_000
_names = itertools.count()


class Turns:
    """The two methods of a loop that a channel needs."""

    def __init__(self) -> None:
        self.soon: list[Callable[[], None]] = []
        self.readers: dict[int, Callable[[], None]] = {}

    def call_soon(self, call: Callable[[], None]) -> None:
        self.soon.append(call)

    def add_reader(self, fd: int, call: Callable[[], None]) -> None:
        self.readers[fd] = call

    def remove_reader(self, fd: int) -> None:
        del self.readers[fd]

    def turn(self) -> None:
        """Run what was asked for."""
        calls, self.soon = self.soon, []
        for call in calls:
            call()

    def rings(self) -> bool:
        """Wait for the channel's descriptor."""
        poll = select.poll()
        for fd in self.readers:
            poll.register(fd, select.POLLIN)
        return bool(poll.poll(PATIENCE_MS))


class Link:
    """A channel and a peer of it."""

    def __init__(self, endpoint: str, context: Any) -> None:
        self.turns = Turns()
        self.received: list[object] = []
        self.rejected: list[str] = []
        self.fail = False
        self.channel = Channel(context, endpoint, self.turns, self._receive, self.rejected.append)  # type: ignore[arg-type]
        self.peer = context.socket(zmq.DEALER)
        self.peer.connect(endpoint)
        self.peer.send(msgspec.msgpack.encode(Hello(b"", 1)))
        assert self.turns.rings()
        self.channel.drain()
        self.identity, _ = self.received.pop()  # type: ignore[misc]

    def _receive(self, identity: bytes, message: object) -> None:
        if self.fail:
            raise LookupError
        self.received.append((identity, message))

    def say(self, *tasks: int) -> None:
        for task in tasks:
            self.peer.send(msgspec.msgpack.encode(Loaded(task)))


@pytest.fixture
def link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Link]:
    monkeypatch.chdir(tmp_path)  # the address of a socket has little room
    context = new_context()
    made = Link(f"ipc://link-{next(_names)}", context)
    try:
        yield made
    finally:
        made.channel.close()
        made.peer.close(0)
        context.term()


def test_a_send_is_followed_by_one_look_at_the_end_of_the_turn(link: Link) -> None:
    """A send may swallow the edge that tells of what has come; nobody would look again."""
    link.say(1)
    assert link.turns.rings()
    for _ in range(100):
        link.channel.send(link.identity, Return([]))
    assert len(link.turns.soon) == 1
    link.turns.turn()
    assert link.received == [(link.identity, Loaded(1))]
    assert link.turns.soon == []
    link.channel.send(link.identity, Return([]))
    assert len(link.turns.soon) == 1


def test_what_is_behind_a_message_that_fails_is_received_in_the_next_turn(link: Link) -> None:
    link.say(1, 2, 3)
    link.fail = True
    with contextlib.suppress(LookupError):
        while link.turns.rings():
            link.channel.drain()
    link.fail = False
    while len(link.received) < 2:
        link.turns.turn()
        link.channel.drain()
    assert link.received == [(link.identity, Loaded(2)), (link.identity, Loaded(3))]


def test_a_message_to_nobody_is_dropped(link: Link) -> None:
    link.channel.send(b"nobody", Close())
    link.peer.close(0)
    link.channel.send(link.identity, Close())
    link.turns.turn()
    assert link.received == [] and link.rejected == []


def test_a_closed_channel_receives_nothing(link: Link) -> None:
    link.channel.send(link.identity, Close())
    link.say(1)
    link.channel.close()
    link.turns.turn()
    link.channel.drain()
    link.channel.close()
    assert link.received == [] and link.turns.readers == {}


def test_an_address_that_cannot_be_bound_is_an_os_error(link: Link) -> None:
    context = new_context()
    try:
        with pytest.raises(OSError):
            Channel(context, "ipc:///nothing/of/this/name/socket", link.turns, lambda *_: None, print)  # type: ignore[arg-type]
    finally:
        context.term()
