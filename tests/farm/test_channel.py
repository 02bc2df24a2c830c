"""The server's end of a link: every message is received, whatever else happens in the same turn."""

from __future__ import annotations

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

MOMENT_MS = 20
MOMENTS = 500
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

    def poll(self) -> None:
        """Call the channel where its descriptor rings within a moment."""
        poll = select.poll()
        for fd in self.readers:
            poll.register(fd, select.POLLIN)
        for fd, _ in poll.poll(MOMENT_MS):
            self.readers[fd]()


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
        self.peer.send(msgspec.msgpack.encode(Hello(b"")))
        self.wait(1)
        self.identity, _ = self.received.pop()  # type: ignore[misc]

    def _receive(self, identity: bytes, message: object) -> None:
        if self.fail:
            raise LookupError
        self.received.append((identity, message))

    def wait(self, count: int) -> None:
        """Let the loop run until that many messages have come."""
        for _ in range(MOMENTS):
            if len(self.received) >= count:
                return
            self.turns.turn()
            self.turns.poll()
        raise AssertionError(f"{len(self.received)} of {count} messages came")

    def say(self, *tasks: int) -> None:
        for task in tasks:
            self.peer.send(msgspec.msgpack.encode(Loaded(task)))


@pytest.fixture
def link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Link]:
    monkeypatch.chdir(tmp_path)  # the address of a socket has little room
    context = new_context()
    try:
        made = Link(f"ipc://link-{next(_names)}", context)
        yield made
        made.channel.close()
    finally:
        context.destroy(0)


def test_a_send_is_followed_by_one_look_at_the_end_of_the_turn(link: Link) -> None:
    """A send may swallow the edge that tells of what has come; nobody would look again."""
    for _ in range(100):
        link.channel.send(link.identity, Return([]))
    assert len(link.turns.soon) == 1
    link.say(1)
    link.wait(1)
    assert link.received == [(link.identity, Loaded(1))]
    assert link.turns.soon == []
    link.channel.send(link.identity, Return([]))
    assert len(link.turns.soon) == 1


def test_messages_cross_sends_and_none_is_left_lying(link: Link) -> None:
    for number in range(300):
        link.say(number)
        link.channel.send(link.identity, Return([]))
    link.wait(300)
    assert [message for _, message in link.received] == [Loaded(number) for number in range(300)]  # type: ignore[misc]


def test_what_is_behind_a_message_that_fails_is_received_in_the_next_turn(link: Link) -> None:
    link.fail = True
    link.say(1, 2, 3)
    with pytest.raises(LookupError):
        link.wait(1)
    assert len(link.turns.soon) == 1
    link.fail = False
    link.wait(2)
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
        context.destroy(0)
